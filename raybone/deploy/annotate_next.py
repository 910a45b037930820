"""Which scans to annotate next: those on which fold models disagree most, unlike each other, one a
patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raybone.data.cache import intensities_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.loader import validation_loader
from raybone.deploy.bundle import Bundle
from raybone.deploy.ensemble import outputs
from raybone.deploy.out_of_distribution import correlation, thumbnail
from raybone.errors import WrongInput
from raybone.tasks import task_named
from raybone.types import Array, Scan

POOL = 4  # candidates a scan that is asked for, of which the most unlike are taken
TOP = 1000  # of the pixels of a mask one in so many says how far members disagree


def annotate_next(
    bundle: Bundle,
    dataset: Path | str,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Scan, float]]:
    """The scans without annotation whose annotation would teach most, the first first.

    From the scans on which the members disagree most, four a scan that is asked for and one a
    patient, the first is taken, and then again and again the one that looks least like those that
    are taken (Sener & Savarese 2018, arXiv:1708.00489, on thumbnails).

    Args:
        bundle: of fold models, of any task but the classification of lesions.
    Returns:
        Scans with the standard deviation of their scores over the members: of masks the mean of the
        highest thousandth of their pixels, else the highest.
    Raises:
        WrongInput: a bundle of one model, or of lesions, or of scans that were prepared otherwise;
            no scan is without annotation.
    """
    opened = open_dataset(dataset)
    waiting = [s for s in opened.scans if not s.annotated]
    _check(bundle, opened, waiting, count)
    window = bundle.meta["preprocessing"]["window"]
    scans = [replace(s, high=window or s.high) for s in waiting]
    best: dict[str, tuple[float, Scan]] = {}
    for scan, spread in _spreads(bundle, opened, scans, progress):
        if spread > best.get(scan.patient_id, (-1.0, scan))[0]:
            best[scan.patient_id] = spread, scan
    pool = sorted(best.values(), key=lambda c: (-c[0], c[1].scan_id))[: POOL * count]
    small_NHW = [thumbnail(opened.counts(scan), scan.high) for _, scan in pool]
    return [(pool[n][1], pool[n][0]) for n in _unlike(small_NHW, count)]


def _check(bundle: Bundle, dataset: Dataset, waiting: Sequence[Scan], count: int) -> None:
    """Refuse what cannot be."""
    task, problems = bundle.model.task, []
    if len(bundle.meta["members"]) < 2:
        problems.append(
            "must have several members, which may disagree, but has one; refit the fold models"
        )
    if task == "classification" and not bundle.meta["config"].get("target"):
        problems.append("classifies lesions, which nobody has drawn yet; give a finder of them")
    problems += bundle.other_steps(dataset)
    lines = [f"--annotate-next {bundle.path}: {problem}" for problem in problems]
    if not waiting:
        rule = "needs scans without annotation, but has none; prepare it with those as well"
        lines.append(f"dataset {dataset.path}: {rule}")
    if count < 1:
        lines.append(f"--count: must be at least 1, got {count}; 10 is usual")
    if lines:
        raise WrongInput(*lines)


def _spreads(
    bundle: Bundle, dataset: Dataset, scans: list[Scan], progress: Callable[[int, int], None]
) -> list[tuple[Scan, float]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, task = bundle.config, task_named(bundle.model.task)

    def images(scan: Scan) -> Array:
        return intensities_of(dataset.counts(scan), scan.high, config.imgsz)

    samples, spreads = task.predicted(images, scans, config), list[tuple[Scan, float]]()
    loader = validation_loader(samples, 4, 0, 1, 0)
    said = outputs(task, bundle.members(device), samples, loader, device)
    for number, (index, predictions) in enumerate(said, 1):
        scan = samples.scan_of(index) if task.judged else samples.scans[index]
        sd_N = np.sort(np.ravel(task.agreed(predictions)[1]))
        top_N = sd_N[-max(1, len(sd_N) // TOP) :]
        spreads.append((scan, round(float(top_N.mean()), 5) if len(top_N) else 0.0))
        progress(number, len(samples))
    return spreads


def _unlike(small_NHW: Sequence[Array], count: int) -> list[int]:
    """The first, and then by turns the one whose likest among those before it is the least like."""
    chosen, rest = [0], [*range(1, len(small_NHW))]
    while rest and len(chosen) < count:
        likest = {
            n: max(correlation(small_NHW[n], small_NHW[taken]) for taken in chosen) for n in rest
        }
        chosen.append(min(rest, key=lambda n: (likest[n], n)))
        rest.remove(chosen[-1])
    return chosen
