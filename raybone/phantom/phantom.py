"""A synthetic cohort of whole-body bone scans with known lesions, in every layout that ``prepare``
reads.

Anatomy is drawn on the 1024x256 grid of a whole-body scan at 2.26 mm a pixel (the matrix and
spacing of NEMA's public study NM1), blurred by the camera's point spread and counted with Poisson
noise. It is for tests and demonstrations: detectors that are good on it need not be good on
patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import yaml

from raybone.data.annotations import lesion_of_mask
from raybone.errors import WrongInput
from raybone.phantom.export import LAYOUTS, write_coco, write_labels, write_view
from raybone.study.param import Strict
from raybone.types import Array, Lesion, Scan

HEIGHT, WIDTH, PIXEL_MM = 1024, 256, 2.26
PSF_SIGMA = 1.9  # pixels: about 10 mm FWHM of a low-energy collimator at body distance
KEY = "raybone phantom: no secret"
View = Literal["anterior", "posterior"]
VIEWS: tuple[View, View] = ("anterior", "posterior")

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
class Patient:
    """What makes one phantom patient: size, tilt, counts and contrast; hard ones have few counts
    and faint foci.
    """

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


class Shape(Strict):
    """A part of the body, in pixels about the midline: an ellipse (x, y, half axes), or points.

    ``width`` is that of a stroke along the points; with none they are the corners of an area.
    ``uptake`` is what is seen of it from the front and from behind.
    """

    uptake: tuple[float, float]
    ellipse: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    width: int = 0


@dataclass(frozen=True)
class Focus:
    """A hot spot of the phantom: blobs as (x, y, sigma_x, sigma_y, weight), uptake, and how far
    front it lies.
    """

    category: str
    blobs: tuple[tuple[float, float, float, float, float], ...]
    uptake: float
    front: float


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
            ``masks`` (16-bit PNG), or ``bs80k`` (8-bit JPEG).
        height: rows of the images, a multiple of 4; columns are a quarter of it.
    Raises:
        WrongInput: the folder holds something, another key lies beside it, or a number is out of
            range.
    """
    out = Path(out)
    if patients < 1 or height < 64 or height % 4 or seed < 0:
        raise WrongInput(
            "phantom: needs patients >= 1, height >= 64 in steps of 4 and seed >= 0, got "
            f"{patients}, {height} and {seed}"
        )
    _check(out, layout)
    out.mkdir(parents=True, exist_ok=True)
    scans, names = list[Scan](), list[str]()
    for number in range(patients):
        rng = np.random.default_rng([seed, number])
        patient = _patient(f"PHANTOM-{number + 1:04d}", rng)
        foci = _foci(patient, rng)
        tumours = np.random.default_rng([seed, number, 1])
        tumour = str(tumours.choice(("breast", "lung", "prostate")))
        for view in VIEWS:
            counts_HW, lesions = render(patient, foci, view, rng, height)
            scan = Scan(
                "",
                patient.name,
                view,
                height,
                height // 4,
                PIXEL_MM * HEIGHT / height,
                0,
                1.0,
                labels=(("primary_tumour", tumour),),
                lesions=lesions,
            )
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


def _check(out: Path, layout: str) -> None:
    """Refuse a layout that there is not, and a place that holds something else."""
    if layout not in LAYOUTS:
        raise WrongInput(f"phantom: layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    if out.exists() and any(out.iterdir()):
        raise WrongInput(
            f"phantom: {out} must be empty or absent, but holds files; choose another folder"
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


def _pose(patient: Patient, view: View) -> Array:
    """Affine 2x3 of the patient's size and tilt; the back view is the mirror image."""
    matrix_23 = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), patient.tilt, 1.0)
    matrix_23 = matrix_23 @ np.array(
        [
            [patient.girth, 0, WIDTH / 2 * (1 - patient.girth)],
            [0, patient.stretch, 90 * (1 - patient.stretch)],
            [0, 0, 1],
        ]
    )
    if view == "posterior":
        matrix_23 = np.array([[-1, 0, WIDTH - 1], [0, 1, 0]], float) @ np.vstack(
            [matrix_23, [0, 0, 1]]
        )
    return np.asarray(matrix_23, np.float64)


def _body(patient: Patient, view: View) -> Array:
    """Activity of a healthy body, about 1 in soft tissue, float32 (HEIGHT, WIDTH)."""
    anatomy = _anatomy()
    soft_HW = _drawn(view, anatomy["soft"], anatomy["soft, each side"])
    bone_HW = _drawn(view, anatomy["bone"], [*_ribs(view), *anatomy["bone, each side"]])
    # The rim of the skull stands over what is there.
    cv2.ellipse(bone_HW, _at(0, 120), (32 * 16, 36 * 16), 0, 180, 360, 1.4, 4, cv2.LINE_AA, 4)
    bladder = Shape(ellipse=(0, 436, 15, 12), uptake=(patient.bladder, patient.bladder * 0.6))
    kidney = Shape(ellipse=(32, 340, 9, 15), uptake=(patient.kidneys * 0.25, patient.kidneys))
    injection = Shape(ellipse=(100, 352, 4, 6), uptake=(patient.injection, patient.injection))
    organ_HW = _drawn(view, [bladder, injection], [kidney])
    soft_HW = cv2.GaussianBlur(soft_HW, (0, 0), 5)
    bone_HW = cv2.GaussianBlur(bone_HW, (0, 0), 1.2)
    whole_HW = soft_HW + patient.bone * bone_HW + organ_HW
    posed_HW = cv2.warpAffine(whole_HW, _pose(patient, view), (WIDTH, HEIGHT))
    return np.asarray(posed_HW + 0.02, np.float32)


@cache
def _anatomy() -> dict[str, list[Shape]]:
    content = yaml.safe_load(
        files("raybone.phantom").joinpath("anatomy.yaml").read_text(encoding="utf-8")
    )
    return {
        name: [Shape.model_validate(shape) for shape in shapes] for name, shapes in content.items()
    }


def _ribs(view: View) -> Iterator[Shape]:
    """Ribs of a side: twelve down and out from the spine behind, ten of them up and in to the
    sternum in front.
    """
    front, turn_T = view == "anterior", np.linspace(0, 1, 9)
    for number in range(10 if front else 12):
        top = 212 + number * 10.5
        reach = 50 + 14 * np.sin(np.pi * (number + 1) / 13)
        if front:
            xs = 12 + (reach - 12) * np.sin(turn_T * np.pi / 2)
            ys = top + 8 + 30 * turn_T**2 * (1 - number / 18)
        else:
            xs = 8 + (reach - 8) * np.sin(turn_T * np.pi / 2)
            ys = top - 2 + 26 * turn_T**1.5
        yield Shape(points=tuple(zip(xs.tolist(), ys.tolist())), width=3, uptake=(0.75, 0.9))


def _drawn(view: View, middle: Sequence[Shape], each_side: Sequence[Shape]) -> Array:
    """The sum of shapes, float32 (HEIGHT, WIDTH); those of each side are given for the right of the
    image.
    """
    image_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    for side, shape in [
        *((1, s) for s in middle),
        *((side, s) for side in (-1, 1) for s in each_side),
    ]:
        layer_HW, value = np.zeros_like(image_HW), shape.uptake[VIEWS.index(view)]
        points_N2 = np.array([_at(side * x, y) for x, y in shape.points], np.int32)
        if shape.ellipse:
            x, y, *axes = shape.ellipse
            cv2.ellipse(
                layer_HW,
                _at(side * x, y),
                [round(a * 16) for a in axes],
                0,
                0,
                360,
                value,
                -1,
                cv2.LINE_AA,
                4,
            )
        elif shape.width:
            cv2.polylines(layer_HW, [points_N2], False, value, shape.width, cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(layer_HW, [points_N2], value, cv2.LINE_AA, 4)
        image_HW += layer_HW
    return image_HW


def _at(x: float, y: float) -> tuple[int, int]:
    """OpenCV's fixed-point place (4 fractional bits) of a point given about the midline."""
    return round((WIDTH / 2 + x) * 16), round(y * 16)
