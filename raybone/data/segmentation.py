"""Masks as a DICOM Segmentation object that refers to its source (PS3.3 A.51), through highdicom."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from raybone import __version__
from raybone.records import Array

TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "ReferringPhysicianName", "AccessionNumber")
# What a segment is, by category; others are abnormal structures.
KINDS = {"malignant": Code("14799000", "SCT", "Neoplasm, Secondary")}


def write_segmentation(source: Path, frame: int, masks: Mapping[str, Array], model: str, out: Path) -> None:
    """Write the masks of one frame of a DICOM object, one segment a category.

    A planar scan has no place in space, so the object refers to frame and pixels alone, without a frame of reference.
    It carries the patient of its source.

    Args:
        frame: 0-based.
        masks: category -> boolean (Rows, Columns) of the source; the empty ones are left out.
    Raises:
        ValueError: every mask is empty, which a segmentation cannot be.
    """
    found = {name: mask_HW for name, mask_HW in masks.items() if mask_HW.any()}
    if not found:
        raise ValueError("no mask has a pixel; a Segmentation object needs one")
    header = pydicom.dcmread(source, stop_before_pixels=True, force=True)
    frames = int(header.get("NumberOfFrames", 1) or 1)
    spacing = [float(v) for v in header.get("PixelSpacing") or ()] or [1.0, 1.0]
    measures = hd.PixelMeasuresSequence(spacing, spacing[0])
    algorithm = hd.AlgorithmIdentificationSequence(model, codes.DCM.ArtificialIntelligence, __version__)
    segments = [hd.seg.SegmentDescription(number, name, codes.SCT.MorphologicallyAbnormalStructure,
                                          KINDS.get(name, codes.SCT.MorphologicallyAbnormalStructure),
                                          hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm)
                for number, name in enumerate(found, 1)]
    mask_NHWC = np.stack(list(found.values()), axis=-1)[None]
    made = hd.seg.Segmentation(
        [_planar(header, measures)], mask_NHWC, hd.seg.SegmentationTypeValues.BINARY, segments,
        hd.UID(), 900, hd.UID(), 1, "raybone", "raybone", __version__, "0", pixel_measures=measures,
        content_label="LESIONS", content_description="Findings of a research model; not a medical device")
    made.PatientOrientation = header.get("PatientOrientation") or []
    if frames > 1:
        for group in made.PerFrameFunctionalGroupsSequence:
            for derivation in group.DerivationImageSequence:
                for image in derivation.SourceImageSequence:
                    image.ReferencedFrameNumber = frame + 1
    made.save_as(out)


def _planar(header: Dataset, measures: hd.PixelMeasuresSequence) -> Dataset:
    """The header as of one frame without a place in space, in the words of multi-frame objects, as highdicom wants."""
    planar = copy.copy(header)
    for keyword in TYPE_2:  # anonymised headers lack them, which have to be there, if only empty
        if keyword not in planar:
            setattr(planar, keyword, None)
    if "FrameOfReferenceUID" in planar:
        del planar.FrameOfReferenceUID
    shared = Dataset()
    shared.PixelMeasuresSequence = measures
    planar.NumberOfFrames, planar.SharedFunctionalGroupsSequence = 1, [shared]
    planar.PerFrameFunctionalGroupsSequence = [Dataset()]
    return planar
