"""A synthetic cohort of whole-body bone scans with known lesions, in every layout that ``prepare`` reads.

Anatomy is drawn on the 1024x256 grid of a whole-body scan at 2.26 mm a pixel (the matrix and spacing of NEMA's public
study NM1), blurred by the camera's point spread and counted with Poisson noise. It is for tests and demonstrations:
detectors that are good on it need not be good on patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from raybone.data.annotations import lesion_of_mask
from raybone.data.export import LAYOUTS, write_coco, write_labels, write_view
from raybone.records import Array, Lesion, Scan, WrongInput

HEIGHT, WIDTH, PIXEL_MM = 1024, 256, 2.26
PSF_SIGMA = 1.9  # pixels: about 10 mm FWHM of a low-energy collimator at body distance
KEY = "raybone phantom: no secret"
View = Literal["anterior", "posterior"]
VIEWS: tuple[View, View] = ("anterior", "posterior")

# Where lesions occur: name, centre (x, y) on the right of the image, spread, share of malignant lesions, and how
# near the front the bone lies (1 = seen from the front alone).
MALIGNANT_SITES = (("rib", 40, 265, 9, 0.5), ("vertebra", 2, 320, 3, 0.25), ("lumbar", 3, 370, 3, 0.25),
                   ("ilium", 44, 400, 7, 0.4), ("sacrum", 4, 405, 6, 0.2), ("sternum", 1, 250, 3, 0.9),
                   ("femur", 46, 470, 4, 0.5), ("skull", 22, 110, 7, 0.5), ("scapula", 56, 235, 6, 0.2),
                   ("humerus", 84, 260, 3, 0.5))
BENIGN_SITES = (("knee", 40, 605, 7, 0.8), ("shoulder", 66, 212, 5, 0.5), ("facet", 6, 375, 3, 0.2),
                ("foot", 28, 812, 7, 0.6), ("sternoclavicular", 12, 222, 3, 0.9))


@dataclass(frozen=True)
class Patient:
    """What makes one phantom patient: size, tilt, counts and contrast; hard ones have few counts and faint foci."""

    name: str
    stretch: float
    girth: float
    tilt: float
    counts: float
    bone: float
    bladder: float
    kidneys: float
    injection: float
    hard: bool


@dataclass(frozen=True)
class Focus:
    """A hot spot of the phantom: blobs as (x, y, sigma_x, sigma_y, weight), uptake, and how far front it lies."""

    category: str
    blobs: tuple[tuple[float, float, float, float, float], ...]
    uptake: float
    front: float


def phantom(out: Path | str, patients: int = 24, seed: int = 0, layout: str = "dicom", height: int = HEIGHT,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write a cohort; the same arguments give the same files.

    Args:
        out: a folder that does not exist or is empty.
        patients: two views each, named PHANTOM-0001 and so on.
        layout: ``dicom`` (a folder a patient, annotations.json beside), ``coco``, ``labelme`` or ``masks`` (16-bit
            PNG), or ``bs80k`` (8-bit JPEG).
        height: rows of the images, a multiple of 4; columns are a quarter of it.
    Raises:
        WrongInput: the folder holds something, or a number is out of range.
    """
    out = Path(out)
    if patients < 1 or height < 64 or height % 4 or seed < 0:
        raise WrongInput("phantom: needs patients >= 1, height >= 64 in steps of 4 and seed >= 0, "
                         f"got {patients}, {height} and {seed}")
    if layout not in LAYOUTS:
        raise WrongInput(f"phantom: layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    if out.exists() and any(out.iterdir()):
        raise WrongInput(f"phantom: {out} must be empty or absent, but holds files; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    scans, names = list[Scan](), list[str]()
    for number in range(patients):
        rng = np.random.default_rng([seed, number])
        patient = _patient(f"PHANTOM-{number + 1:04d}", rng)
        foci = _foci(patient, rng)
        tumour = str(np.random.default_rng([seed, number, 1]).choice(("breast", "lung", "prostate")))
        for view in VIEWS:
            counts_HW, lesions = render(patient, foci, view, rng, height)
            scan = Scan("", patient.name, view, height, height // 4, PIXEL_MM * HEIGHT / height, 0, 1.0,
                        labels=(("primary_tumour", tumour),), lesions=lesions)
            scans.append(scan)
            names.append(write_view(out, layout, scan, counts_HW))
        progress(number + 1, patients)
    if layout in ("dicom", "coco"):
        write_coco(out, names, scans)
    write_labels(out, layout, names, scans)
    (out / "phantom.key").write_text(KEY, encoding="utf-8")
    (out / "phantom.key").chmod(0o600)
    return out


def render(patient: Patient, foci: tuple[Focus, ...], view: View, rng: np.random.Generator,
           height: int = HEIGHT) -> tuple[Array, tuple[Lesion, ...]]:
    """Counts uint16 of shape (height, height / 4) of one view, and its lesions with boxes and masks."""
    body_HW = _body(patient, view)
    lesions: list[Lesion] = []
    warp_23 = _pose(patient, view)
    size = (height // 4, height)
    for focus in foci:
        seen = focus.front if view == "anterior" else 1 - focus.front
        if seen < 0.25:
            continue
        spot_HW = cv2.warpAffine(_blobs(focus), warp_23, (WIDTH, HEIGHT))
        body_HW += focus.uptake * (0.4 + 0.6 * seen) * spot_HW
        blurred_HW = cv2.resize(cv2.GaussianBlur(spot_HW, (0, 0), PSF_SIGMA), size, interpolation=cv2.INTER_AREA)
        mask_HW = blurred_HW > 0.4 * max(float(blurred_HW.max()), 1e-6)
        lesions.append(lesion_of_mask(mask_HW, focus.category))
    counts_HW = cv2.resize(cv2.GaussianBlur(body_HW, (0, 0), PSF_SIGMA), size, interpolation=cv2.INTER_AREA)
    return rng.poisson(np.clip(counts_HW * patient.counts, 0, None)).astype(np.uint16), tuple(lesions)


def _patient(name: str, rng: np.random.Generator) -> Patient:
    hard = bool(rng.random() < 0.35)
    return Patient(name, float(rng.uniform(0.93, 1.05)), float(rng.uniform(0.9, 1.12)), float(rng.normal(0, 0.8)),
                   float(rng.uniform(9, 14) if hard else rng.uniform(16, 26)), float(rng.uniform(1.0, 1.7)),
                   float(rng.uniform(2, 10)), float(rng.uniform(0.6, 2.2)), float(rng.choice([0.0, 6.0, 9.0])), hard)


def _foci(patient: Patient, rng: np.random.Generator) -> tuple[Focus, ...]:
    """2 to 11 malignant foci in six of seven patients, 0 to 3 benign ones in all."""
    malignant = int(rng.integers(2, 12)) if rng.random() < 6 / 7 else 0
    foci = [_focus("malignant", MALIGNANT_SITES, rng, (1.4, 3.0) if patient.hard else (3.0, 8.0))
            for _ in range(malignant)]
    foci += [_focus("benign", BENIGN_SITES, rng, (1.0, 2.4)) for _ in range(int(rng.integers(0, 4)))]
    return tuple(foci)


def _focus(category: str, sites: tuple[tuple[str, float, float, float, float], ...], rng: np.random.Generator,
           uptake: tuple[float, float]) -> Focus:
    _, x, y, spread, front = sites[rng.integers(len(sites))]
    side = rng.choice([-1, 1])
    x, y = WIDTH / 2 + side * (x + rng.normal(0, spread / 2)), y + rng.normal(0, spread * 1.5)
    size = float(np.exp(rng.uniform(np.log(2.8), np.log(9.0)))) if category == "malignant" else \
        float(rng.uniform(2.5, 5.0))
    blobs = [(x, y, size, size * float(rng.uniform(0.7, 1.3)), 1.0)]
    for _ in range(int(rng.integers(0, 3)) if category == "malignant" else 0):
        blobs.append((x + rng.normal(0, size), y + rng.normal(0, size), size * float(rng.uniform(0.5, 0.9)),
                      size * float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.5, 0.9))))
    seen = float(np.clip(rng.normal(front, 0.12), 0.05, 0.95))
    return Focus(category, tuple(blobs), float(rng.uniform(*uptake)), seen)


def _blobs(focus: Focus) -> Array:
    """The focus's shape, 1 at its hottest, float32 (HEIGHT, WIDTH)."""
    rows_H1, columns_1W = np.mgrid[:HEIGHT, :1][0], np.mgrid[:1, :WIDTH][1]
    spot_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    for x, y, sigma_x, sigma_y, weight in focus.blobs:
        across = np.exp(-0.5 * ((columns_1W - x) / sigma_x) ** 2) * np.exp(-0.5 * ((rows_H1 - y) / sigma_y) ** 2)
        spot_HW = np.maximum(spot_HW, weight * across.astype(np.float32))
    return spot_HW


def _pose(patient: Patient, view: View) -> Array:
    """Affine 2x3 of the patient's size and tilt; the back view is the mirror image."""
    matrix_23 = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), patient.tilt, 1.0)
    matrix_23 = matrix_23 @ np.array([[patient.girth, 0, WIDTH / 2 * (1 - patient.girth)],
                                      [0, patient.stretch, 90 * (1 - patient.stretch)], [0, 0, 1]])
    if view == "posterior":
        matrix_23 = np.array([[-1, 0, WIDTH - 1], [0, 1, 0]], float) @ np.vstack([matrix_23, [0, 0, 1]])
    return np.asarray(matrix_23, np.float64)


def _body(patient: Patient, view: View) -> Array:
    """Activity of a healthy body, about 1 in soft tissue, float32 (HEIGHT, WIDTH)."""
    soft_HW, bone_HW, organ_HW = (np.zeros((HEIGHT, WIDTH), np.float32) for _ in range(3))
    _soft_tissue(soft_HW)
    _skeleton(bone_HW, view)
    _organs(organ_HW, patient, view)
    soft_HW = cv2.GaussianBlur(soft_HW, (0, 0), 5)
    bone_HW = cv2.GaussianBlur(bone_HW, (0, 0), 1.2)
    whole_HW = soft_HW + patient.bone * bone_HW + organ_HW
    posed_HW = cv2.warpAffine(whole_HW, _pose(patient, view), (WIDTH, HEIGHT))
    return np.asarray(posed_HW + 0.02, np.float32)


def _soft_tissue(image: Array) -> None:
    trunk = [(-18, 168), (-30, 182), (-72, 194), (-84, 216), (-70, 300), (-70, 360), (-72, 420), (-62, 470), (62, 470),
             (72, 420), (70, 360), (70, 300), (84, 216), (72, 194), (30, 182), (18, 168)]
    _polygon(image, trunk, 1.0)
    _ellipse(image, 0, 128, 36, 46, 0.9)
    for side in (-1, 1):
        _line(image, [(side * 84, 212), (side * 98, 290), (side * 104, 360), (side * 106, 430), (side * 108, 478)], 26,
              0.8)
        _line(image, [(side * 38, 450), (side * 42, 560), (side * 40, 620)], 58, 0.9)
        _line(image, [(side * 40, 610), (side * 34, 700), (side * 28, 790)], 40, 0.8)
        _line(image, [(side * 28, 790), (side * 36, 838)], 30, 0.7)


def _skeleton(image: Array, view: View) -> None:
    front = view == "anterior"
    _skull(image, front)
    for number in range(7):
        _ellipse(image, 0, 170 + number * 6, 8, 3, 1.1)
    for number in range(12):  # thoracic spine
        _ellipse(image, 0, 212 + number * 11, 8, 5, 0.8 if front else 1.7)
    for number in range(5):  # lumbar spine
        _ellipse(image, 0, 346 + number * 13, 10, 6, 1.1 if front else 1.8)
    if front:
        _line(image, [(0, 214), (0, 284)], 9, 1.3)  # sternum
        _ellipse(image, 0, 214, 11, 8, 0.8)
    for side in (-1, 1):
        _ribs(image, side, front)
        _limbs(image, side, front)
        _line(image, [(side * 6, 210), (side * 40, 200), (side * 70, 204)], 6, 0.9 if front else 0.5)  # clavicle
        if not front:  # scapula
            _polygon(image, [(side * 40, 218), (side * 68, 212), (side * 58, 270), (side * 46, 268)], 0.7)
        _ellipse(image, side * 71, 211, 10, 10, 1.3)  # shoulder
        _pelvis(image, side, front)


def _skull(image: Array, front: bool) -> None:
    _ellipse(image, 0, 124, 34, 40, 0.7)
    cv2.ellipse(image, _at(0, 120), (32 * 16, 36 * 16), 0, 180, 360, 1.4, 4, cv2.LINE_AA, 4)
    if front:
        for side in (-1, 1):
            _ellipse(image, side * 12, 130, 8, 7, 0.25)
        _ellipse(image, 0, 146, 9, 12, 2.0)
        _line(image, [(-18, 158), (-12, 172), (12, 172), (18, 158)], 5, 1.2)


def _ribs(image: Array, side: int, front: bool) -> None:
    """Twelve ribs: down and out from the spine behind, up and in to the sternum in front."""
    for number in range(12):
        top = 212 + number * 10.5
        reach = 50 + 14 * np.sin(np.pi * (number + 1) / 13)
        turn_T = np.linspace(0, 1, 9)
        if front:
            xs = side * (12 + (reach - 12) * np.sin(turn_T * np.pi / 2))
            ys = top + 8 + 30 * turn_T**2 * (1 - number / 18)
        else:
            xs = side * (8 + (reach - 8) * np.sin(turn_T * np.pi / 2))
            ys = top - 2 + 26 * turn_T**1.5
        if not (front and number > 9):
            _line(image, list(zip(xs.tolist(), ys.tolist())), 3, 0.75 if front else 0.9)


def _pelvis(image: Array, side: int, front: bool) -> None:
    _line(image, [(side * 14, 412), (side * 34, 384), (side * 54, 388), (side * 58, 404)], 6, 1.3)  # iliac crest
    _polygon(image, [(side * 12, 414), (side * 36, 386), (side * 56, 396), (side * 44, 436), (side * 24, 440)], 0.5)
    _line(image, [(side * 10, 456), (side * 26, 448), (side * 40, 452)], 7, 0.8)
    _line(image, [(side * 10, 458), (side * 20, 478), (side * 30, 468)], 6, 0.8)
    _ellipse(image, side * 46, 446, 10, 10, 1.2)  # hip
    _line(image, [(side * 11, 396), (side * 17, 424)], 6, 0.7 if front else 1.9)  # sacroiliac joint
    _polygon(image, [(0, 392), (side * 13, 396), (side * 6, 432), (0, 440)], 0.5 if front else 1.2)  # sacrum


def _limbs(image: Array, side: int, front: bool) -> None:
    _line(image, [(side * 78, 216), (side * 88, 276), (side * 96, 332)], 9, 0.7)  # humerus
    _line(image, [(side * 97, 338), (side * 102, 392), (side * 106, 428)], 9, 0.5)  # radius and ulna
    _ellipse(image, side * 97, 336, 7, 6, 0.7)
    _ellipse(image, side * 107, 446, 8, 16, 0.5)
    _line(image, [(side * 46, 448), (side * 55, 464), (side * 50, 500), (side * 42, 592)], 12, 0.8)  # femur
    _ellipse(image, side * 40, 604, 15, 13, 0.8 if not front else 1.0)
    if front:
        _ellipse(image, side * 40, 598, 7, 7, 0.5)  # patella
    _line(image, [(side * 38, 618), (side * 34, 700), (side * 29, 780)], 11, 0.7)  # tibia
    _line(image, [(side * 47, 622), (side * 40, 776)], 3, 0.3)  # fibula
    _ellipse(image, side * 29, 788, 11, 8, 0.9)
    _line(image, [(side * 29, 796), (side * 36, 832)], 14, 0.7)


def _organs(image: Array, patient: Patient, view: View) -> None:
    _ellipse(image, 0, 436, 15, 12, patient.bladder * (1.0 if view == "anterior" else 0.6))
    for side in (-1, 1):
        _ellipse(image, side * 32, 340, 9, 15, patient.kidneys * (0.25 if view == "anterior" else 1.0))
    if patient.injection:
        _ellipse(image, 100, 352, 4, 6, patient.injection)


def _line(image: Array, points: Sequence[tuple[float, float]], thickness: int, value: float) -> None:
    """Add a stroke of a value along points given about the midline."""
    layer = np.zeros_like(image)
    fixed = np.array([_at(x, y) for x, y in points], np.int32)
    cv2.polylines(layer, [fixed[:, None]], False, value, thickness, cv2.LINE_AA, 4)
    image += layer


def _polygon(image: Array, points: Sequence[tuple[float, float]], value: float) -> None:
    layer = np.zeros_like(image)
    cv2.fillPoly(layer, [np.array([_at(x, y) for x, y in points], np.int32)], value, cv2.LINE_AA, 4)
    image += layer


def _ellipse(image: Array, x: float, y: float, half_width: float, half_height: float, value: float) -> None:
    layer = np.zeros_like(image)
    axes = (round(half_width * 16), round(half_height * 16))
    cv2.ellipse(layer, _at(x, y), axes, 0, 0, 360, value, -1, cv2.LINE_AA, 4)
    image += layer


def _at(x: float, y: float) -> tuple[int, int]:
    """OpenCV's fixed-point place (4 fractional bits) of a point given about the midline."""
    return round((WIDTH / 2 + x) * 16), round(y * 16)
