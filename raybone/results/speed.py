"""How long the networks of a leaderboard take for an image, on the machine that asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from raybone.data.dataset import open_dataset
from raybone.errors import InvalidConfig, WrongInput
from raybone.models._model import TrainingConfig
from raybone.results.compare import unfetched
from raybone.results.leaderboard import Entry
from raybone.results.study_folder import StudyFolder
from raybone.tasks import configured

# Of the hyper-parameters that every model has, those that change what is computed of an image.
SHAPING = {"categories", "imgsz", "montage"}
SQUARE = (1, 1)  # a shape, of any size


class Timer:
    """Times networks, each that differs once.

    Args:
        folder: a study; its dataset says which shape of scan is the most common one. Where that is
            gone, or at an address that study.yaml alone names, images are square.
        tell: hears of how many of all configurations the time is known.
    """

    def __init__(self, folder: StudyFolder, tell: Callable[[int, int], None]) -> None:
        self.shape, self.tell = _usual_shape(folder), tell
        self.known: dict[tuple[str, str], float] = {}

    def columns(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Of each configuration ``ms``, milliseconds an image as ``milliseconds`` says, and
        ``ms_on``, what was timed on what.
        """
        from raybone.train.timing import image_of, machine, milliseconds

        columns = []
        for number, (study, configuration, _) in enumerate(entries, 1):
            try:
                model, config = configured(study, configuration.params)
            except InvalidConfig as error:
                raise WrongInput(
                    f"time: {configuration.id} of study {study.name} must be one that its model "
                    f"takes, but: {error}; leave the time out, or use the version that trained it"
                ) from None
            network = (model.name, config.model_dump_json(exclude=_training()))
            if network not in self.known:
                self.known[network] = milliseconds(model, config, self.shape or SQUARE)
            size = "x".join(map(str, image_of(model, config, self.shape or SQUARE)))
            why = "most common shape" if self.shape else "imgsz, as the dataset is not at hand"
            on = f"{size} ({why}), {machine()}"
            columns.append({"ms": round(self.known[network], 2), "ms_on": on})
            self.tell(number, len(entries))
        return columns


def _training() -> set[str]:
    """Hyper-parameters that matter to training alone."""
    return set(TrainingConfig.model_fields) - SHAPING


def _usual_shape(folder: StudyFolder) -> tuple[int, int] | None:
    """(H, W) of most scans of the study's dataset, None where that is not at hand."""
    study = folder.study
    if unfetched(study, folder.moved):
        return None
    try:
        dataset = open_dataset(study.dataset)
    except (WrongInput, OSError):
        return None
    if dataset.hash != study.resolved.dataset_hash:
        return None
    return Counter((s.height, s.width) for s in dataset.scans).most_common(1)[0][0]
