"""Masks as a DICOM Segmentation object that refers to its source (PS3.3 A.51), through
highdicom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import NuclearMedicineImageStorage

from raybone.data.annotations import NOT_LESIONS
from raybone.data.ingest.dicom.header import spacing_of, text, values
from raybone.deploy.dicom.source import (
    ABNORMAL,
    ANATOMY,
    BONE,
    KINDS,
    LONG_STRING,
    NAMES,
    TYPE_2,
    MadeBy,
    frames_of,
    give_patient,
    header_of,
    write,
)
from raybone.types import Array
from raybone.version import version

LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
WORDS = {"malignant": "bone metastases"}  # of the series; others are named as they are


def write_segmentation(
    source: Path,
    frame: int,
    masks: Mapping[str, Array],
    made_by: MadeBy,
    out: Path,
    pixel_mm: float | None = None,
) -> bool:
    """Write the masks of one frame of a DICOM object, one segment a category; whether it says the
    size of its pixels.

    A planar scan has no place in space, so the object refers to frame and pixels alone, without a
    frame of reference. Pixel Measures are then left out where the source does not say its spacing
    (PS3.3 A.51.5 wants them of an object without a Derivation Image). It carries the patient of its
    source, in the source's character set, or in UTF-8 where the name cannot be written in that.

    Args:
        frame: 0-based.
        masks: category -> boolean (Rows, Columns) of the source; the empty ones are left out.
        made_by: the model and its study, for the Series Description.
        pixel_mm: the height of a pixel as a table says it, which counts instead of the source's.
    Raises:
        ValueError: every mask is empty, which a segmentation cannot be, or the source lacks what to
            refer to.
    """
    found = {name: mask_HW for name, mask_HW in masks.items() if mask_HW.any()}
    if not found:
        raise ValueError("no mask has a pixel; a Segmentation object needs one")
    with header_of(source) as header:
        spacing = spacing_of(header, frame)
        if pixel_mm and (not spacing or abs(spacing[0] - pixel_mm) > 1e-6):
            spacing = (pixel_mm, pixel_mm)
        made = _made(header, found, made_by.model, spacing)
        made.SeriesDescription = _described(made_by.study, made_by.model, found)
        _refer(made, header, frame)
        write(made, header, out)
    return spacing is not None


def _made(
    header: Dataset, masks: Mapping[str, Array], model: str, spacing: tuple[float, float] | None
) -> Dataset:
    """The object without what it has of its source."""
    measures = hd.PixelMeasuresSequence(spacing or (1, 1), None)
    algorithm = hd.AlgorithmIdentificationSequence(
        model, codes.DCM.ArtificialIntelligence, version()
    )
    segments = [
        hd.seg.SegmentDescription(
            number,
            name,
            *((ANATOMY, BONE) if name in NOT_LESIONS else (ABNORMAL, KINDS.get(name, ABNORMAL))),
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, name in enumerate(masks, 1)
    ]
    mask_NHWC = np.stack(list(masks.values()), axis=-1)[None]
    made = hd.seg.Segmentation(
        [_planar(header, mask_NHWC.shape[1:3], measures)],
        mask_NHWC,
        hd.seg.SegmentationTypeValues.BINARY,
        segments,
        hd.UID(),
        900,
        hd.UID(),
        1,
        "raybone",
        "raybone",
        version(),
        "0",
        pixel_measures=measures,
        content_label="SKELETON" if {*masks} <= {*NOT_LESIONS} else "LESIONS",
        content_description="Findings of a research model; not a medical device",
    )
    if not spacing:
        del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    return made


def _described(study: str, model: str, names: Iterable[str]) -> str:
    """What a viewer lists the series by, such as "raybone smoke unet, bone metastases".

    A backslash parts values and is no character of one (PS3.5 6.2).
    """
    said = (
        f"{' '.join(['raybone', *study.split(), model])}, "
        f"{', '.join(WORDS.get(n, n) for n in names)}"
    )
    return said.replace("\\", "/")[:LONG_STRING].strip()


def _planar(
    header: Dataset, shape_HW: tuple[int, ...], measures: hd.PixelMeasuresSequence
) -> Dataset:
    """What highdicom needs of the source: one frame without a place in space, in the words of
    multi-frame objects.

    What it would check and refuse of a patient, such as an empty character set, is put in
    afterwards.
    """
    planar = Dataset()
    for keyword in TYPE_2:
        setattr(planar, keyword, None)
    for keyword in (*NAMES, *LOSSY):
        if text(header, keyword):
            setattr(planar, keyword, header[keyword].value)
    shared = Dataset()
    shared.PixelMeasuresSequence = measures
    planar.SOPClassUID, planar.Modality, (planar.Rows, planar.Columns) = (
        NuclearMedicineImageStorage,
        "NM",
        shape_HW,
    )
    planar.NumberOfFrames, planar.SharedFunctionalGroupsSequence = 1, [shared]
    planar.PerFrameFunctionalGroupsSequence = [Dataset()]
    return planar


def _refer(made: Dataset, header: Dataset, frame: int) -> None:
    """Give the object its source's patient, study, class and frame."""
    give_patient(made, header)
    made.PatientOrientation = values(header, "PatientOrientation")
    for element in made.iterall():
        if element.keyword == "ReferencedSOPClassUID" and text(header, "SOPClassUID"):
            element.value = header.SOPClassUID
    if frames_of(header) > 1:
        for group in made.PerFrameFunctionalGroupsSequence:
            for derivation in group.DerivationImageSequence:
                for image in derivation.SourceImageSequence:
                    image.ReferencedFrameNumber = frame + 1
