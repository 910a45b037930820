"""A synthetic cohort of whole-body bone scans with known lesions, in every layout that ``prepare``
reads.

Anatomy is drawn on the 1024x256 grid of a whole-body scan at 2.26 mm a pixel (the matrix and
spacing of NEMA's public study NM1), blurred by the camera's point spread and counted with Poisson
noise. It is for tests and demonstrations: detectors that are good on it need not be good on
patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from raybone.data.annotations import lesion_of_mask
from raybone.errors import WrongInput
from raybone.phantom.body import HEIGHT, VIEWS, WIDTH, Patient, View, body, pose, skeleton
from raybone.phantom.export import LAYOUTS, write_coco, write_labels, write_view
from raybone.types import Array, Lesion, Scan

PIXEL_MM = 2.26
PSF_SIGMA = 1.9  # pixels: about 10 mm FWHM of a low-energy collimator at body distance
KEY = "raybone phantom: no secret"

# Where lesions occur: name, centre (x, y) on the right of the image, spread, share of malignant
# lesions, and how near the front the bone lies (1 = seen from the front alone).
MALIGNANT_SITES = (
    ("rib", 40, 265, 9, 0.5),
    ("vertebra", 2, 320, 3, 0.25),
    ("lumbar", 3, 370, 3, 0.25),
    ("ilium", 44, 400, 7, 0.4),
    ("sacrum", 4, 405, 6, 0.2),
    ("sternum", 1, 250, 3, 0.9),
    ("femur", 46, 470, 4, 0.5),
    ("skull", 22, 110, 7, 0.5),
    ("scapula", 56, 235, 6, 0.2),
    ("humerus", 84, 260, 3, 0.5),
)
BENIGN_SITES = (
    ("knee", 40, 605, 7, 0.8),
    ("shoulder", 66, 212, 5, 0.5),
    ("facet", 6, 375, 3, 0.2),
    ("foot", 28, 812, 7, 0.6),
    ("sternoclavicular", 12, 222, 3, 0.9),
)


@dataclass(frozen=True)
class Focus:
    """A hot spot of the phantom: blobs as (x, y, sigma_x, sigma_y, weight), uptake, and how far
    front it lies.
    """

    category: str
    blobs: tuple[tuple[float, float, float, float, float], ...]
    uptake: float
    front: float


HIGHEST = 4096  # rows; bodies are drawn on 1024


def phantom(
    out: Path | str,
    patients: int = 24,
    seed: int = 0,
    layout: str = "dicom",
    height: int = HEIGHT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a cohort, and beside it the key of its pseudonyms (see ``key_beside``); the same
    arguments give the same files.

    Args:
        out: a folder that does not exist or is empty.
        patients: two views each, named PHANTOM-0001 and so on.
        layout: ``dicom`` (a folder a patient, annotations.json beside), ``coco``, ``labelme`` or
            ``masks`` (16-bit PNG), ``bs80k`` (8-bit JPEG), or ``skeleton``: as ``masks``, of the
            regions of the skeleton instead of lesions.
        height: rows of the images, a multiple of 4 from 64 to 4096; columns are a quarter of it.
    Raises:
        WrongInput: the folder holds something, another key lies beside it, or a number is out of
            range.
    """
    out = Path(out)
    if patients < 1 or not 64 <= height <= HIGHEST or height % 4 or seed < 0:
        raise WrongInput(
            "phantom: needs patients >= 1, seed >= 0 and height in steps of 4 from 64 to "
            f"{HIGHEST}, got {patients}, {seed} and {height}"
        )
    _check(out, layout)
    out.mkdir(parents=True, exist_ok=True)
    scans, names = list[Scan](), list[str]()
    for number in range(patients):
        for scan, counts_HW in _views(seed, number, layout, height):
            scans.append(scan)
            names.append(write_view(out, layout, scan, counts_HW))
        progress(number + 1, patients)
    if layout in ("dicom", "coco"):
        write_coco(out, names, scans)
    write_labels(out, layout, names, scans)
    key = key_beside(out)
    key.write_text(KEY, encoding="utf-8")
    key.chmod(0o600)
    return out


def _views(seed: int, number: int, layout: str, height: int) -> Iterator[tuple[Scan, Array]]:
    """Both views of a patient, with their counts; for the layout ``skeleton`` with its regions
    instead of lesions.
    """
    rng = np.random.default_rng([seed, number])
    patient = _patient(f"PHANTOM-{number + 1:04d}", rng)
    foci = _foci(patient, rng)
    tumours = np.random.default_rng([seed, number, 1])
    labels = (("primary_tumour", str(tumours.choice(("breast", "lung", "prostate")))),)
    size, pixel_mm = (height, height // 4), PIXEL_MM * HEIGHT / height
    for view in VIEWS:
        counts_HW, lesions = render(patient, foci, view, rng, height)
        if layout == "skeleton":
            drawn = skeleton(patient, view, height).items()
            lesions = tuple(lesion_of_mask(m, region) for region, m in drawn if m.any())
        about = Scan("", patient.name, view, *size, pixel_mm, 0, 1.0, labels=labels)
        yield replace(about, lesions=lesions), counts_HW


def _check(out: Path, layout: str) -> None:
    """Refuse a layout that there is not, and a place that holds something else."""
    if layout not in LAYOUTS:
        raise WrongInput(f"phantom: layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise WrongInput(
            f"phantom: {out} must be an empty folder or absent, but {what}; choose another"
        )
    key = key_beside(out)
    if key.exists() and key.read_text(encoding="utf-8", errors="replace") != KEY:
        raise WrongInput(
            f"phantom: {key} must be absent or a phantom's key, but is another; choose another OUT"
        )


def key_beside(cohort: Path) -> Path:
    """The key of a cohort's pseudonyms, beside its folder: what lies in there is read as scans."""
    cohort = cohort.absolute()
    return cohort.with_name(f"{cohort.name}.key")


def render(
    patient: Patient,
    foci: tuple[Focus, ...],
    view: View,
    rng: np.random.Generator,
    height: int = HEIGHT,
) -> tuple[Array, tuple[Lesion, ...]]:
    """Counts uint16 of shape (height, height / 4) of one view, and its lesions with boxes and
    masks.
    """
    body_HW = body(patient, view)
    lesions: list[Lesion] = []
    warp_23 = pose(patient, view)
    size = (height // 4, height)
    for focus in foci:
        seen = focus.front if view == "anterior" else 1 - focus.front
        if seen < 0.25:
            continue
        spot_HW = cv2.warpAffine(_blobs(focus), warp_23, (WIDTH, HEIGHT))
        body_HW += focus.uptake * (0.4 + 0.6 * seen) * spot_HW
        blurred_HW = cv2.resize(
            cv2.GaussianBlur(spot_HW, (0, 0), PSF_SIGMA), size, interpolation=cv2.INTER_AREA
        )
        mask_HW = blurred_HW > 0.4 * max(float(blurred_HW.max()), 1e-6)
        lesions.append(lesion_of_mask(mask_HW, focus.category))
    counts_HW = cv2.resize(
        cv2.GaussianBlur(body_HW, (0, 0), PSF_SIGMA), size, interpolation=cv2.INTER_AREA
    )
    return rng.poisson(np.clip(counts_HW * patient.counts, 0, None)).astype(np.uint16), tuple(
        lesions
    )


def _patient(name: str, rng: np.random.Generator) -> Patient:
    hard = bool(rng.random() < 0.35)
    return Patient(
        name,
        float(rng.uniform(0.93, 1.05)),
        float(rng.uniform(0.9, 1.12)),
        float(rng.normal(0, 0.8)),
        float(rng.uniform(9, 14) if hard else rng.uniform(16, 26)),
        float(rng.uniform(1.0, 1.7)),
        float(rng.uniform(2, 10)),
        float(rng.uniform(0.6, 2.2)),
        float(rng.choice([0.0, 6.0, 9.0])),
        hard,
    )


def _foci(patient: Patient, rng: np.random.Generator) -> tuple[Focus, ...]:
    """2 to 11 malignant foci in six of seven patients, 0 to 3 benign ones in all."""
    malignant = int(rng.integers(2, 12)) if rng.random() < 6 / 7 else 0
    foci = [
        _focus("malignant", MALIGNANT_SITES, rng, (1.4, 3.0) if patient.hard else (3.0, 8.0))
        for _ in range(malignant)
    ]
    foci += [
        _focus("benign", BENIGN_SITES, rng, (1.0, 2.4)) for _ in range(int(rng.integers(0, 4)))
    ]
    return tuple(foci)


def _focus(
    category: str,
    sites: tuple[tuple[str, float, float, float, float], ...],
    rng: np.random.Generator,
    uptake: tuple[float, float],
) -> Focus:
    _, x, y, spread, front = sites[rng.integers(len(sites))]
    side = rng.choice([-1, 1])
    x, y = WIDTH / 2 + side * (x + rng.normal(0, spread / 2)), y + rng.normal(0, spread * 1.5)
    size = (
        float(np.exp(rng.uniform(np.log(2.8), np.log(9.0))))
        if category == "malignant"
        else float(rng.uniform(2.5, 5.0))
    )
    blobs = [(x, y, size, size * float(rng.uniform(0.7, 1.3)), 1.0)]
    for _ in range(int(rng.integers(0, 3)) if category == "malignant" else 0):
        blobs.append(
            (
                x + rng.normal(0, size),
                y + rng.normal(0, size),
                size * float(rng.uniform(0.5, 0.9)),
                size * float(rng.uniform(0.5, 0.9)),
                float(rng.uniform(0.5, 0.9)),
            )
        )
    seen = float(np.clip(rng.normal(front, 0.12), 0.05, 0.95))
    return Focus(category, tuple(blobs), float(rng.uniform(*uptake)), seen)


def _blobs(focus: Focus) -> Array:
    """The focus's shape, 1 at its hottest, float32 (HEIGHT, WIDTH)."""
    rows_H1, columns_1W = np.mgrid[:HEIGHT, :1][0], np.mgrid[:1, :WIDTH][1]
    spot_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    for x, y, sigma_x, sigma_y, weight in focus.blobs:
        across = np.exp(-0.5 * ((columns_1W - x) / sigma_x) ** 2) * np.exp(
            -0.5 * ((rows_H1 - y) / sigma_y) ** 2
        )
        spot_HW = np.maximum(spot_HW, weight * across.astype(np.float32))
    return spot_HW
