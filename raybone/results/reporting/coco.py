"""What the best configuration finds out of fold, as COCO's results: for ``COCO.loadRes`` beside the
annotations that ``raybone export DATASET --to coco`` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raybone.data.annotations import lesions_of_mask, mask_of
from raybone.data.dataset import dataset_of
from raybone.errors import WrongInput
from raybone.results.compare import unfetched
from raybone.results.study_folder import StudyFolder
from raybone.tasks import task_of
from raybone.types import Finding


def coco_results(url: str, moved: str = "") -> list[dict[str, Any]]:
    """image_id (of annotations.json), category_id, bbox (x, y, width, height) and score; of masks a
    result a component, with its run lengths and a score of 1, as they hold none.

    Args:
        moved: where the study's dataset is now, if it was moved.
    Raises:
        WrongInput: no study there, none complete, its predictions or dataset are gone, or it
            classifies.
    """
    folder = StudyFolder(url, moved)
    study, best = folder.study, folder.winner()
    if task_of(study).judged:
        raise WrongInput(
            f"export {url}: must find boxes or masks, but this study classifies; its "
            "predictions.json have what it says"
        )
    if best is None:
        raise WrongInput(
            f"export {url}: needs a complete configuration, but there is none yet; let the search "
            "end"
        )
    if why := unfetched(study, moved):
        raise WrongInput(f"export {url}: needs the dataset, but {why}; give it with --dataset")
    dataset = dataset_of(study)
    folds = best.predictions(dataset)
    if folds is None:
        raise WrongInput(
            f"export {url}: needs the predictions of {best.id}, but those of a fold are gone; "
            "train it again"
        )
    number = {name: n for n, name in enumerate(dataset.categories, 1)}
    names = list(study.values(best.params).get("categories") or ["malignant"])
    image = {s.scan_id: n for n, s in enumerate((s for s in dataset.scans if s.annotated), 1)}
    return [
        {"image_id": image[finding["scan_id"]], "category_id": number[names[label]], **rest}
        for own in folds
        for finding in own
        if finding["scan_id"] in image
        for label, rest in _parts(finding)
    ]


def _parts(finding: Finding) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each box or component with its label."""
    if "boxes" in finding:
        for box, score, label in zip(finding["boxes"], finding["scores"], finding["labels"]):
            yield label, {"bbox": _bbox(box), "score": score}
        return
    for label, rle in enumerate(finding["masks"]):
        for lesion in lesions_of_mask(mask_of(rle), ""):
            yield label, {"bbox": _bbox(lesion.box_xyxy), "segmentation": lesion.rle, "score": 1.0}


def _bbox(box: Any) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
