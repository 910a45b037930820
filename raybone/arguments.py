"""The arguments of every verb."""

from __future__ import annotations

import argparse
from typing import Any

from raybone import __version__
from raybone.errors import WrongInput

JSON_HELP = "one JSON document on stdout"
WAIT: dict[str, Any] = {
    "type": float,
    "default": 0,
    "metavar": "MINUTES",
    "help": "wait so long for nodes that an autoscaler adds, while not one run fits (default 0)",
}
MOVED: dict[str, Any] = {
    "default": "",
    "metavar": "DATASET",
    "help": "where the dataset is now, if it was moved",
}


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; ``verb`` of what it gives is the verb's name."""
    top = _OneLine(
        prog="raybone",
        description="Cross-validated hyper-parameter search for bone-metastasis models.",
    )
    top.add_argument("--version", action="version", version=f"raybone {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=_OneLine)
    _demo_parser(verbs)
    _data_parsers(verbs)
    _study_parsers(verbs)
    _following_parsers(verbs)
    _result_parsers(verbs)
    return top


def _demo_parser(verbs: Any) -> None:
    verb = _verb(verbs, "demo", "phantom -> prepare -> search on a local Ray -> leaderboard")
    verb.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="study folder (default %(default)s)"
    )


def _data_parsers(verbs: Any) -> None:
    verb = _verb(verbs, "phantom", "a synthetic cohort: DICOM and annotations with known truth")
    verb.add_argument("out", metavar="OUT")
    verb.add_argument("--patients", type=int, default=24)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument(
        "--layout",
        default="dicom",
        help="dicom, coco, labelme, bs80k or masks (default %(default)s)",
    )
    verb.add_argument(
        "--height",
        type=int,
        default=1024,
        help="rows of a scan, columns are a quarter (default 1024)",
    )
    verb = _verb(verbs, "prepare", "raw scans and annotations -> dataset folder")
    verb.add_argument("source", metavar="SOURCE")
    verb.add_argument("dataset", metavar="DATASET")
    verb.add_argument(
        "--layout",
        default="auto",
        help="auto, dicom, coco, labelme, bs80k, bs80k_regions, masks or nnunet",
    )
    verb.add_argument(
        "--modality", default="NM", help="DICOM Modality to take, or 'any' (default %(default)s)"
    )
    verb.add_argument(
        "--folds", default="5", metavar="K", help="number of folds, or site: leave one site out"
    )
    verb.add_argument(
        "--seed", type=int, default=0, help="another order of patients of equal burden"
    )
    verb.add_argument(
        "--key", metavar="FILE", help="key of the pseudonyms (default: in your config folder)"
    )
    verb.add_argument(
        "--holdout",
        type=float,
        default=0,
        metavar="SHARE",
        help="share or number of patients for a test group that no search sees",
    )
    verb.add_argument(
        "--split", metavar="FILE", help="CSV of patient_id and fold (or test, training) to take"
    )
    verb.add_argument(
        "--negatives",
        default="folds",
        help="training: patients without metastases join every training "
        "part and no validation (default %(default)s)",
    )
    verb.add_argument(
        "--unannotated",
        default="apart",
        metavar="apart|negative",
        help="scans without annotation where others have one: kept apart, neither trained on nor "
        "scored, "
        "or taken as scans without lesion (default %(default)s)",
    )
    verb.add_argument(
        "--allow-unmatched",
        action="store_true",
        help="go on although annotations find no scan, or several; they are left out",
    )
    verb.add_argument(
        "--categories",
        nargs="+",
        default=[],
        metavar="NAME=CATEGORY",
        help="further names of annotations, such as mets=malignant fracture=fracture",
    )
    verb.add_argument(
        "--steps",
        nargs="+",
        default=[],
        metavar="STEP",
        help="preprocessing of the papers, in order: body_range, brightness, knee_cut, montage, "
        "...",
    )
    verb.add_argument("--show-paths", action="store_true", help="name source files on the terminal")
    verb = _verb(
        verbs, "inspect", "integrity, leakage, near-duplicates and fingerprint of a dataset"
    )
    verb.add_argument("dataset", metavar="DATASET")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb.add_argument(
        "--png",
        metavar="FILE",
        help="write a contact sheet: scans to look at first, then a selection",
    )
    verb = _verb(verbs, "models", "the menu, or the hyper-parameters of one model")
    verb.add_argument("name", nargs="?", metavar="MODEL", help="whose hyper-parameters to list")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb = _verb(verbs, "example", "the studies that come with raybone, or the YAML of one")
    verb.add_argument("name", nargs="?", metavar="NAME", help="whose YAML to print")
    _verb(verbs, "schema", "the JSON schema of a study's YAML, for editors")


def _study_parsers(verbs: Any) -> None:
    verb = _verb(
        verbs, "preview", "trials x rungs, expected fold epochs and hours, before spending them"
    )
    _study_arguments(verb)
    verb.add_argument(
        "--epochs-from",
        nargs="+",
        default=[],
        metavar="STUDY",
        help="take what an epoch takes from earlier studies of the same model",
    )
    verb.add_argument(
        "--epoch-seconds", type=float, metavar="S", help="or from here; without both it is timed"
    )
    verb.add_argument(
        "--slots",
        type=int,
        default=1,
        metavar="W",
        help="training runs at once (default %(default)s)",
    )
    verb.add_argument(
        "--png", metavar="FILE", help="draw a training batch here, as the network sees it"
    )
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb = _verb(verbs, "search", "start or resume a study: the same command")
    _study_arguments(verb)
    verb.add_argument(
        "--out", required=True, metavar="STUDY", help="study folder, or an fsspec URL"
    )
    verb.add_argument(
        "--address", help="a Ray cluster (default: RAY_ADDRESS, else a local one for the run)"
    )
    verb.add_argument("--wait", **WAIT)
    verb.add_argument("--dataset", **MOVED)
    verb.add_argument("--local", action="store_true", help="in this process, without Ray")
    verb.add_argument(
        "--record",
        action="store_true",
        help="train every fold of every configuration in full, and write STUDY/curves.npz for "
        "simulate",
    )
    verb.add_argument(
        "--warm-start",
        nargs="+",
        action="extend",
        default=[],
        metavar="LEADERBOARD",
        help="leaderboards or study folders whose rows steer what is proposed; never ranked with "
        "it",
    )
    verb = _verb(
        verbs, "manifests", "a RayJob for KubeRay that searches the study, as YAML on stdout"
    )
    _study_arguments(verb)
    verb.add_argument(
        "--out",
        metavar="STUDY",
        help="study folder in the cluster: below /raybone, or s3://BUCKET/FOLDER",
    )
    verb.add_argument(
        "--image", metavar="IMAGE:TAG", help="default: what k8s/image/Dockerfile is tagged with"
    )
    verb = _verb(verbs, "submit", "run or resume a study as a job of a Ray cluster elsewhere")
    _study_arguments(verb)
    verb.add_argument(
        "--address",
        required=True,
        metavar="URL",
        help="of the cluster's dashboard: http://head:8265",
    )
    verb.add_argument(
        "--out",
        metavar="STUDY",
        help="study folder or URL that all nodes reach (default: runs/<name> beside the dataset)",
    )
    verb.add_argument("--wait", **WAIT)
    verb.add_argument(
        "--follow", action="store_true", help="show the job's lines; its exit code becomes this one"
    )
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be sent, as JSON, and ask no cluster",
    )
    verb = _verb(verbs, "simulate", "replay schedulers on recorded curves: cost and regret")
    verb.add_argument(
        "--curves",
        nargs="+",
        required=True,
        metavar="FILE.npz",
        help="of `raybone search --record`",
    )
    verb.add_argument("--folds", type=int, default=5, metavar="K")
    verb.add_argument(
        "--repeats",
        type=int,
        default=100,
        help="other orders, folds and seeds (default %(default)s)",
    )
    verb.add_argument(
        "--trials", type=int, default=200, help="configurations a search (default: up to 200)"
    )
    verb.add_argument(
        "--workers", type=int, default=8, metavar="W", help="runs at once (default %(default)s)"
    )
    verb.add_argument(
        "--startup", type=float, default=0, metavar="SECONDS", help="cost of starting a run"
    )
    verb.add_argument(
        "--schedulers", nargs="+", default=[], metavar="NAME", help="default: all that are known"
    )
    verb.add_argument("--plot", metavar="FILE.png", help="draw regret against cost")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)


def _following_parsers(verbs: Any) -> None:
    verb = _verb(verbs, "watch", "what a study is doing, wherever it runs")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument("--once", action="store_true", help="show it once and leave")
    verb = _verb(verbs, "logs", "what happened in a study, in words")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="one configuration, with its epochs and traceback",
    )
    verb.add_argument("--follow", action="store_true", help="go on until the search ends")
    verb = _verb(verbs, "stop", "ask a study to stop after the epoch at work; `search` resumes it")
    verb.add_argument("study", metavar="STUDY")
    verb = _verb(
        verbs,
        "leaderboard",
        "rebuild leaderboard.csv from the journal and show it; several studies make one table",
    )
    verb.add_argument("studies", nargs="+", metavar="STUDY")
    verb.add_argument("--csv", metavar="FILE", help="write the table here as well")
    verb.add_argument(
        "--brief", action="store_true", help="only the ten columns that a reviewer reads first"
    )
    verb = _verb(
        verbs,
        "compare",
        "the winner beside what papers published of its system; a classifier's subgroups",
    )
    verb.add_argument("studies", nargs="+", metavar="STUDY")
    verb.add_argument("--dataset", **MOVED)
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb = _verb(verbs, "report", "one self-contained HTML file on a study, finished or not")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument("--dataset", **MOVED)
    verb.add_argument("--html", metavar="FILE", help="default: STUDY/report.html")
    verb.add_argument(
        "--no-scans", action="store_true", help="leave out pictures of patients' scans"
    )


def _result_parsers(verbs: Any) -> None:
    verb = _verb(verbs, "refit", "the winner, or another rank, as a model bundle")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument("--out", required=True, metavar="BUNDLE", help="folder to make")
    verb.add_argument("--dataset", **MOVED)
    verb.add_argument(
        "--rank", type=int, default=1, metavar="N", help="of the leaderboard (default %(default)s)"
    )
    verb.add_argument(
        "--all-patients",
        action="store_true",
        help="train one model on all patients but the test group, instead of the fold models "
        "together",
    )
    verb.add_argument(
        "--address", help="for --all-patients: a Ray cluster (default: RAY_ADDRESS, else its own)"
    )
    verb.add_argument(
        "--local", action="store_true", help="for --all-patients: in this process, without Ray"
    )
    verb.add_argument(
        "--onnx", action="store_true", help="write ONNX files as well, checked against torch"
    )
    verb = _verb(
        verbs, "predict", "findings of a bundle on scans: JSON, CSV, overlays, DICOM Segmentation"
    )
    verb.add_argument("bundle", metavar="BUNDLE")
    verb.add_argument(
        "scans",
        nargs="+",
        metavar="SCANS",
        help="files, folders or archives, as `prepare` reads them",
    )
    verb.add_argument(
        "--out", required=True, metavar="DIR", help="folder to make; it names the scans' files"
    )
    verb.add_argument(
        "--modality", default="NM", help="DICOM Modality to take, or 'any' (default %(default)s)"
    )
    verb.add_argument(
        "--least",
        type=float,
        default=0.1,
        metavar="SCORE",
        help="lowest score of a detector's boxes (default %(default)s)",
    )
    verb = _verb(
        verbs, "forget", "delete patients from a dataset, and name what was trained on them"
    )
    verb.add_argument("dataset", metavar="DATASET")
    verb.add_argument(
        "patients",
        nargs="+",
        metavar="PATIENT",
        help="a patient_id of folds.csv, or the source's own id",
    )
    verb.add_argument(
        "--key", metavar="FILE", help="key of the pseudonyms (default: in your config folder)"
    )
    verb.add_argument(
        "--among",
        nargs="+",
        default=["."],
        metavar="FOLDER",
        help="folders below which bundles and studies are looked for (default: the current one)",
    )
    verb.add_argument("--json", action="store_true", help=JSON_HELP)


def _verb(verbs: Any, name: str, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(verb=name)
    return verb


def _study_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("study", metavar="STUDY.yaml")
    verb.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        dest="overrides",
        help="override a key of the study, dotted, such as search.trials=8",
    )


class _OneLine(argparse.ArgumentParser):
    """Wrong arguments are wrong input: one line, exit code 2."""

    def error(self, message: str) -> Any:
        """Instead of argparse's usage text."""
        raise WrongInput(f"{self.prog}: {message}; see `{self.prog} --help`")
