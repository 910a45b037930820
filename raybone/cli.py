"""The command line: one subcommand a verb, no logic of its own.

Exit codes: 0 done, 1 failed while running, 2 wrong input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raybone import __version__
from raybone.records import RunFailed, WrongInput
from raybone.terminal import bar, progress, show_table, tell_end

JSON_HELP = "one JSON document on stdout"
WAIT: dict[str, Any] = {"type": float, "default": 0, "metavar": "MINUTES",
                        "help": "wait so long for nodes that an autoscaler adds, while not one run fits (default 0)"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        return options.run(options) or 0
    except WrongInput as error:
        for problem in error.problems:
            print(f"raybone: {problem}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"raybone: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"raybone: {place}{error.strerror or error}; free space or choose another place", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("raybone: interrupted; the same command resumes a study", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(prog="raybone", description="Cross-validated hyper-parameter search for bone-metastasis models.")
    parser.add_argument("--version", action="version", version=f"raybone {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=_OneLine)
    _demo_parser(verbs)
    _data_parsers(verbs)
    _study_parsers(verbs)
    return parser


def _demo_parser(verbs: Any) -> None:
    verb = _verb(verbs, "demo", _demo, "phantom -> prepare -> search on a local Ray -> leaderboard")
    verb.add_argument("--out", default="runs/demo", metavar="DIR", help="study folder (default %(default)s)")


def _data_parsers(verbs: Any) -> None:
    verb = _verb(verbs, "phantom", _phantom, "a synthetic cohort: DICOM and annotations with known truth")
    verb.add_argument("out", metavar="OUT")
    verb.add_argument("--patients", type=int, default=24)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--layout", default="dicom", help="dicom, coco, labelme, bs80k or masks (default %(default)s)")
    verb.add_argument("--height", type=int, default=1024, help="rows of a scan, columns are a quarter (default 1024)")
    verb = _verb(verbs, "prepare", _prepare, "raw scans and annotations -> dataset folder")
    verb.add_argument("source", metavar="SOURCE")
    verb.add_argument("dataset", metavar="DATASET")
    verb.add_argument("--layout", default="auto", help="auto, dicom, coco, labelme, bs80k or masks")
    verb.add_argument("--modality", default="NM", help="DICOM Modality to take, or 'any' (default %(default)s)")
    verb.add_argument("--folds", default="5", metavar="K", help="number of folds, or site: leave one site out")
    verb.add_argument("--seed", type=int, default=0, help="another order of patients of equal burden")
    verb.add_argument("--key", metavar="FILE", help="key of the pseudonyms (default: in your config folder)")
    verb.add_argument("--holdout", type=float, default=0, metavar="SHARE",
                      help="share or number of patients for a test group that no search sees")
    verb.add_argument("--split", metavar="FILE", help="CSV of patient_id and fold (or test) to take the folds from")
    verb.add_argument("--categories", nargs="+", default=[], metavar="NAME=CATEGORY",
                      help="further names of annotations, such as mets=malignant fracture=fracture")
    verb.add_argument("--steps", nargs="+", default=[], metavar="STEP",
                      help="preprocessing of the papers, in order: body_range, brightness, knee_cut, montage, ...")
    verb.add_argument("--show-paths", action="store_true", help="name source files on the terminal")
    verb = _verb(verbs, "inspect", _inspect, "integrity, leakage, near-duplicates and fingerprint of a dataset")
    verb.add_argument("dataset", metavar="DATASET")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb.add_argument("--png", metavar="FILE", help="write a contact sheet: scans to look at first, then a selection")
    verb = _verb(verbs, "models", _models, "the menu")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)


def _study_parsers(verbs: Any) -> None:
    verb = _verb(verbs, "preview", _preview, "trials x rungs, expected fold epochs and hours, before spending them")
    _study_arguments(verb)
    verb.add_argument("--epochs-from", nargs="+", default=[], metavar="STUDY",
                      help="take what an epoch takes from earlier studies of the same model")
    verb.add_argument("--epoch-seconds", type=float, metavar="S", help="or from here; without both it is timed")
    verb.add_argument("--slots", type=int, default=1, metavar="W", help="training runs at once (default %(default)s)")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb = _verb(verbs, "search", _search, "start or resume a study: the same command")
    _study_arguments(verb)
    verb.add_argument("--out", required=True, metavar="STUDY", help="study folder, or an fsspec URL")
    verb.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else a local one for the run)")
    verb.add_argument("--wait", **WAIT)
    verb.add_argument("--local", action="store_true", help="in this process, without Ray")
    verb.add_argument("--record", action="store_true",
                      help="train every fold of every configuration in full, and write STUDY/curves.npz for simulate")
    verb.add_argument("--warm-start", nargs="+", action="extend", default=[], metavar="LEADERBOARD",
                      help="leaderboards or study folders whose rows steer what is proposed; never ranked with it")
    verb = _verb(verbs, "manifests", _manifests, "a RayJob for KubeRay that searches the study, as YAML on stdout")
    _study_arguments(verb)
    verb.add_argument("--out", metavar="STUDY", help="study folder in the cluster: below /raybone, or s3://BUCKET/FOLDER")
    verb.add_argument("--image", metavar="IMAGE:TAG", help="default: what k8s/image/Dockerfile is tagged with")
    verb = _verb(verbs, "submit", _submit, "run or resume a study as a job of a Ray cluster elsewhere")
    _study_arguments(verb)
    verb.add_argument("--address", required=True, metavar="URL", help="of the cluster's dashboard: http://head:8265")
    verb.add_argument("--out", metavar="STUDY", help="study folder or URL that all nodes reach "
                                                     "(default: runs/<name> beside the dataset)")
    verb.add_argument("--wait", **WAIT)
    verb.add_argument("--follow", action="store_true", help="show the job's lines; its exit code becomes this one")
    verb.add_argument("--dry-run", action="store_true", help="show what would be sent, as JSON, and ask no cluster")
    verb = _verb(verbs, "simulate", _simulate, "replay schedulers on recorded curves: cost and regret")
    verb.add_argument("--curves", nargs="+", required=True, metavar="FILE.npz", help="of `raybone search --record`")
    verb.add_argument("--folds", type=int, default=5, metavar="K")
    verb.add_argument("--repeats", type=int, default=100, help="other orders, folds and seeds (default %(default)s)")
    verb.add_argument("--trials", type=int, default=200, help="configurations a search (default: up to 200)")
    verb.add_argument("--workers", type=int, default=8, metavar="W", help="runs at once (default %(default)s)")
    verb.add_argument("--startup", type=float, default=0, metavar="SECONDS", help="cost of starting a run")
    verb.add_argument("--schedulers", nargs="+", default=[], metavar="NAME", help="default: all that are known")
    verb.add_argument("--plot", metavar="FILE.png", help="draw regret against cost")
    verb.add_argument("--json", action="store_true", help=JSON_HELP)
    verb = _verb(verbs, "watch", _watch, "what a study is doing, wherever it runs")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument("--once", action="store_true", help="show it once and leave")
    verb = _verb(verbs, "logs", _logs, "what happened in a study, in words")
    verb.add_argument("study", metavar="STUDY")
    verb.add_argument("config", nargs="?", metavar="CONFIG", help="one configuration, with its epochs and traceback")
    verb.add_argument("--follow", action="store_true", help="go on until the search ends")
    verb = _verb(verbs, "stop", _stop, "ask a study to stop after the epoch at work; `search` resumes it")
    verb.add_argument("study", metavar="STUDY")
    verb = _verb(verbs, "leaderboard", _leaderboard,
                 "rebuild leaderboard.csv from the journal and show it; several studies make one table")
    verb.add_argument("studies", nargs="+", metavar="STUDY")
    verb.add_argument("--csv", metavar="FILE", help="write the table here as well")


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=run)
    return verb


def _study_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("study", metavar="STUDY.yaml")
    verb.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value", dest="overrides",
                      help="override a key of the study, dotted, such as search.trials=8")


class _OneLine(argparse.ArgumentParser):
    """Wrong arguments are wrong input: one line, exit code 2."""

    def error(self, message: str) -> Any:
        """Instead of argparse's usage text."""
        raise WrongInput(f"{self.prog}: {message}; see `{self.prog} --help`")


def _demo(options: argparse.Namespace) -> None:
    from raybone.cluster.tuner import search
    from raybone.demo import prepare_demo

    study = prepare_demo(Path(options.out), bar("phantom"), bar("prepare"))
    tell_end(search(study, options.out, None, progress()), options.out)


def _phantom(options: argparse.Namespace) -> None:
    from raybone.phantom import phantom

    out = phantom(options.out, options.patients, options.seed, options.layout, options.height, bar("phantom"))
    print(f"{out}: {options.patients} patients, two views each")


def _prepare(options: argparse.Namespace) -> None:
    from raybone.prepare import prepare

    modality = None if options.modality.lower() == "any" else options.modality
    folds = int(options.folds) if options.folds.lstrip("-").isdecimal() else options.folds
    made = prepare(options.source, options.dataset, options.layout, modality, folds, options.key, options.seed,
                   bar("prepare"), holdout=options.holdout, split=options.split, steps=options.steps,
                   categories=_pairs("--categories", options.categories))
    counts = made.meta["counts"]
    print(f"{made.path}: {counts['scans']} scans of {counts['patients']} patients with {counts['lesions']} lesions in "
          f"{counts['folds']} folds; {counts['rejected']} inputs not taken; hash {made.meta['hash']}")
    for warning in made.meta["warnings"]:
        print(f"warning: {warning}")
    if options.show_paths:
        path_of = {i: path for input_id, scan_id, path in made.sources for i in (input_id, scan_id)}
        reason_of = {i: reason for i, _, reason in made.rejected}
        lines = [f"{path_of.get(i, i)}: {rule}" for rule, ids in made.meta["remarks"].items() for i in ids]
        lines += [f"{path}: not taken: {reason_of[i]}" for i, scan_id, path in made.sources
                  if i in reason_of and not scan_id]
        print("\n".join(line.encode("utf-8", "backslashreplace").decode() for line in lines))
    elif made.rejected or made.meta["remarks"]:
        print(f"reasons and scans are in {made.path / ('rejected.csv' if made.rejected else 'dataset.json')}; "
              "--show-paths names the files")


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE arguments as a mapping."""
    pairs = [text.partition("=") for text in given]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise WrongInput(f"{option}: must be NAME=CATEGORY, got {' '.join(given)}")
    return {name: value.strip() for name, _, value in pairs}


def _inspect(options: argparse.Namespace) -> None:
    from raybone.inspect import inspect, inspection_lines

    found = inspect(options.dataset, bar("inspect"))
    print(json.dumps(found, indent=1) if options.json else "\n".join(inspection_lines(found)))
    if options.png:
        from raybone.contact import contact_sheet

        shown = contact_sheet(options.dataset, options.png, found)
        print(f"{options.png}: {shown} scans", file=sys.stderr)


def _models(options: argparse.Namespace) -> None:
    from raybone.models import MENU, load

    rows = []
    for name in MENU:
        model = load(name)
        weights = model.build(model.Config()).parameters()
        rows.append((name, model.task, sum(p.numel() for p in weights if p.requires_grad), model.SOURCE))
    if options.json:
        print(json.dumps([dict(zip(("name", "task", "parameters", "source"), row)) for row in rows], indent=1))
    else:
        for name, task, parameters, source in rows:
            print(f"{name:<17} {task:<14} {parameters / 1e6:6.1f} M  {source}")


def _preview(options: argparse.Namespace) -> None:
    from raybone.preview import preview
    from raybone.spec import read_study

    seen = preview(read_study(options.study, options.overrides), options.epoch_seconds, options.epochs_from,
                   options.slots)
    if options.json:
        print(json.dumps(dataclasses.asdict(seen), indent=1))
        return
    for name, configurations, epochs in seen.rungs:
        print(f"{name:<24} {configurations:6.1f} configurations {epochs:8.0f} fold epochs")
    print(f"{seen.fold_epochs:.0f} fold epochs expected, {seen.exhaustive / seen.fold_epochs:.1f} times fewer than the "
          f"{seen.exhaustive:.0f} of exhaustive cross-validation")
    gpus = f", {seen.gpu_hours:.2f} GPU-hours" if seen.gpu_hours else ""
    print(f"about {seen.wall_hours:.2f} hours with {seen.slots} run(s) at once{gpus}, at {seen.epoch_seconds:.1f} s a "
          f"fold epoch ({seen.timed}); starting the runs is included in the hours")


def _search(options: argparse.Namespace) -> None:
    from raybone.spec import read_study

    full = ["search.scheduler=full"] if options.record else []
    study = read_study(options.study, [*options.overrides, *full])
    if options.local:
        from raybone.search import search as local

        if options.address:
            raise WrongInput("search: --local has no Ray to give --address to; leave one out")
        reason = local(study, options.out, progress(), options.warm_start)
    else:
        from raybone.cluster.tuner import search

        reason = search(study, options.out, options.address, progress(), options.warm_start, options.wait)
    tell_end(reason, options.out)
    if options.record:
        from raybone.record import record

        taken, tried = record(options.out)
        print(f"{options.out.rstrip('/')}/curves.npz: {taken} of {tried} configurations; replay them with "
              "`raybone simulate --curves`")


def _manifests(options: argparse.Namespace) -> None:
    from raybone.cluster.manifests import manifests
    from raybone.spec import read_study

    print(manifests(read_study(options.study, options.overrides), options.out, options.image), end="")


def _submit(options: argparse.Namespace) -> int:
    from raybone.cluster.access import use_token
    from raybone.cluster.submit import follow, pack, submit
    from raybone.spec import read_study

    parcel = pack(read_study(options.study, options.overrides), options.out, options.wait)
    if options.dry_run:
        print(json.dumps({"address": options.address, "token from": use_token(), "entrypoint": parcel.entrypoint,
                          "environment": {}, "dataset": parcel.dataset, "out": parcel.out, "files": parcel.files,
                          "bytes": len(parcel.content)}, indent=1))
        return 0
    job = submit(parcel, options.address)
    print(f"{job}: submitted with study.yaml and raybone's code, {len(parcel.content) / 1e3:.0f} kB; every node must "
          f"reach {parcel.dataset} and {parcel.out}", flush=True)
    if options.follow:
        return follow(job, options.address, lambda text: print(text, end="", flush=True))
    print(f"where that folder is seen: raybone watch, logs or stop {shlex.quote(parcel.out)}")
    return 0


def _simulate(options: argparse.Namespace) -> None:
    from raybone.simulate import plot, simulate

    if options.plot and Path(options.plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise WrongInput(f"--plot {options.plot}: must end in .png, .pdf or .svg; choose one")
    rows = simulate(options.curves, options.folds, options.repeats, options.trials, options.workers, options.startup,
                    options.schedulers, bar("simulate"))
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps({n: {k: v if math.isfinite(v) else None for k, v in row.items()}
                          for n, row in rows.items()}, indent=1))
        return
    print(f"{'scheduler':<20} {'fold epochs':>11} {'x full':>7} {'regret %':>15} {'top 5 %':>8} {'hours':>9}  "
          "x lockstep ASHA (95 %)")
    for name, row in rows.items():
        print(f"{name:<20} {row['fold_epochs']:11.0f} {row['speedup_vs_full']:7.1f} "
              f"{row['excess_regret_pct']:7.2f} +- {row['excess_regret_se']:4.2f} {row['top5_rate']:8.2f} "
              f"{row['seconds'] / 3600:9.2f}  {row['speedup_vs_lockstep']:.1f} "
              f"({row['speedup_vs_lockstep_low']:.1f}-{row['speedup_vs_lockstep_high']:.1f})")


def _watch(options: argparse.Namespace) -> None:
    from raybone.watch import watch

    if sys.stdout.isatty() and not options.once:
        from rich.live import Live
        from rich.text import Text

        with Live(refresh_per_second=2) as live:  # Text: brackets in a reason are no markup
            watch(options.study, lambda lines: live.update(Text("\n".join(lines))))
    else:
        watch(options.study, lambda lines: print("\n".join(lines), flush=True), follow=not options.once)


def _logs(options: argparse.Namespace) -> None:
    from raybone.logs import logs

    for line in logs(options.study, options.config, options.follow):
        print("".join(c if c.isprintable() or c in "\n\t" else "?" for c in line), flush=True)


def _stop(options: argparse.Namespace) -> None:
    from raybone.folder import Folder
    from raybone.hpo.journal import read_resolved

    folder = Folder(options.study)
    read_resolved(folder)
    folder.write("stop", repr(time.time()).encode())
    print(f"{options.study}: will stop when the epochs at work have ended; `raybone search` resumes it")


def _leaderboard(options: argparse.Namespace) -> None:
    from raybone.folder import Folder
    from raybone.hpo.journal import Journal, read_resolved
    from raybone.hpo.state import State
    from raybone.leaderboard import merged_leaderboard, write_leaderboard

    folders = [Folder(study) for study in options.studies]
    if len(folders) == 1:
        table = write_leaderboard(folders[0], read_resolved(folders[0]))
    else:
        table = merged_leaderboard({place: (read_resolved(f), State(Journal(f).events()))
                                    for place, f in zip(options.studies, folders)})
    if options.csv:
        table.to_csv(options.csv, index=False)
    show_table(table)


if __name__ == "__main__":
    sys.exit(main())
