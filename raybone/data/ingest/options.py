"""What a person may choose about reading scans and making a dataset of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from raybone.data.ingest.layouts import LAYOUTS, Layout
from raybone.data.ingest.plugins import plugin_steps
from raybone.data.ingest.steps import STEPS, rescaling, step_named


@dataclass(frozen=True)
class ReadOptions:
    """How scans are read.

    Attributes:
        layout: of the folders; ``dicom`` takes every DICOM file, ``labelme`` any scan, ``coco``
            what COCO files name; see docs/data.md. ``any`` is ``auto`` for scans that need no
            annotation: it takes images beside DICOM files.
        modality: for DICOM, the only Modality taken; None takes all.
        categories: further names of annotations -> categories of the dataset.
        steps: preprocessing, names of ``raybone.data.ingest.steps.STEPS`` in order.
        unannotated: whether a scan without annotation, where others have one, is kept apart,
            neither trained on nor scored, or counts as one without lesion.
        allow_unmatched: go on although annotations find no scan, or several; they are left out.
        show_paths: name files in errors.
    """

    layout: Layout | Literal["any"] = "auto"
    modality: str | None = "NM"
    categories: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[str] = ()
    unannotated: Literal["apart", "negative"] = "apart"
    allow_unmatched: bool = False
    show_paths: bool = False

    @property
    def unannotated_flag(self) -> str:
        """The flag of a scan that nothing annotates."""
        return "unannotated" if self.unannotated == "apart" else "taken-as-negative"

    def problems(self) -> list[str]:
        """A line for every rule that the options break."""
        lines, changed = list[str](), rescaling(self.steps)
        unknown = [name for name in self.steps if step_named(name) is None]
        if len(changed) > 1:
            lines.append(f"--steps: {' and '.join(changed)} undo each other; take one of them")
        if unknown:
            lines.append(
                f"--steps: no step is called {', '.join(unknown)}; there are "
                f"{', '.join([*STEPS, *plugin_steps()])}"
            )
        return lines


@dataclass(frozen=True)
class PrepareOptions(ReadOptions):
    """How scans are read, and how patients are dealt out to folds.

    Attributes:
        folds: cross-validation folds, fewer when there are fewer patients; or ``site`` to leave
            one site out.
        key: file with the key of the pseudonyms; made (mode 0600) when absent. The map from inputs
            to paths is written beside it. Default: ``$XDG_CONFIG_HOME/raybone/key``.
        seed: another order of patients of equal burden.
        holdout: share (below 1) or number of the patients for the test group, which no search
            sees.
        split: CSV of patient_id and fold (or ``test``) to take the folds from.
        negatives: whether patients without a malignant lesion are dealt out to the folds as all
            are, or are in the training part of every fold.
    """

    folds: int | Literal["site"] = 5
    key: Path | str | None = None
    seed: int = 0
    holdout: float = 0.0
    split: Path | str | None = None
    negatives: Literal["folds", "training"] = "folds"

    def problems(self) -> list[str]:
        """A line for every rule that the options break."""
        by_site, holdout = self.folds == "site", self.holdout
        rules = (
            (
                self.layout not in LAYOUTS,
                f"--layout: must be one of {', '.join(LAYOUTS)}; got {self.layout}",
            ),
            (
                not by_site and (not isinstance(self.folds, int) or self.folds < 2),
                f"prepare: folds must be at least 2, or site, got {self.folds}; 5 is usual",
            ),
            (
                not 0 <= holdout < float("inf") or (holdout > 1 and holdout != int(holdout)),
                f"--holdout: must be a share below 1 or a number of patients, got {holdout:g}",
            ),
            (
                by_site and bool(holdout),
                "--holdout: cannot go with --folds site, which leaves each site out in turn; leave "
                "one out",
            ),
            (
                bool(self.split) and (bool(holdout) or by_site),
                "--split: gives all folds and the test group; leave --holdout and --folds site out",
            ),
            (
                self.negatives not in ("folds", "training"),
                f"--negatives: must be folds or training, got {self.negatives}",
            ),
            (
                self.negatives == "training" and (bool(self.split) or by_site),
                "--negatives: training cannot go with --split, which names such patients itself, "
                "or --folds site; leave one out",
            ),
            (
                self.unannotated not in ("apart", "negative"),
                f"--unannotated: must be apart or negative, got {self.unannotated}",
            ),
        )
        return [sentence for broken, sentence in rules if broken] + super().problems()


class PrepareKeywords(TypedDict, total=False):
    """The options of ``prepare`` as keywords, for type checkers: those of ``PrepareOptions``."""

    layout: Layout
    modality: str | None
    categories: Mapping[str, str]
    steps: Sequence[str]
    unannotated: Literal["apart", "negative"]
    allow_unmatched: bool
    show_paths: bool
    folds: int | Literal["site"]
    key: Path | str | None
    seed: int
    holdout: float
    split: Path | str | None
    negatives: Literal["folds", "training"]
