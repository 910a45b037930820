"""The command line: one subcommand a verb, no logic of its own.

Exit codes: 0 done, 1 failed while running, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raybone.arguments import parser
from raybone.errors import MachineFault, RunFailed, WrongInput
from raybone.private import hear_signals
from raybone.results.terminal import bar, epoch_line, progress, say, show, show_table, tell_end
from raybone.types import safe_cell

if TYPE_CHECKING:
    from raybone.search.brain import Brain
    from raybone.study.spec import Study

# What to do about an error of the system.
MEND = {
    errno.ENOSPC: "free space or choose another place",
    errno.EDQUOT: "free space or choose another place",
    errno.EROFS: "it is read-only: choose another place",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "free memory, or use less at once",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    verb, heard = "", hear_signals()
    try:
        options = parser().parse_args(arguments)
        verb = options.verb
        return VERBS[verb](options) or 0
    except WrongInput as error:
        return _failed(2, *error.problems)
    except (RunFailed, MachineFault) as error:
        return _failed(1, str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and verb in ("logs", "watch"):
            return 0  # the reader of a pipe, such as head, has had enough
        place = f"{error.filename}: " if error.filename else ""
        mend = MEND.get(error.errno or 0, "look there, then try again")
        return _failed(1, f"{place}{error.strerror or error}; {mend}")
    except (KeyboardInterrupt, Exception) as error:
        if not heard and not isinstance(
            error, KeyboardInterrupt
        ):  # which libraries in C may make another error of
            raise
        goes_on = verb in ("search", "demo", "forget")
        return _failed(
            1,
            f"interrupted; {'the same command resumes it' if goes_on else 'nothing is left of it'}",
        )


def _failed(code: int, *problems: str) -> int:
    """Tell of each problem in a line of its own; returns the exit code."""
    for problem in problems:
        say(f"raybone: {' '.join(problem.splitlines())}", file=sys.stderr)
    return code


def _demo(options: argparse.Namespace) -> None:
    from raybone.phantom.demo import prepare_demo
    from raybone.run.ray.tuner import search

    study = prepare_demo(Path(options.out), bar("phantom"), bar("prepare"))
    with _following(study) as tell:
        reason = search(study, options.out, None, tell)
    tell_end(reason, options.out)


def _phantom(options: argparse.Namespace) -> None:
    from raybone.phantom.phantom import phantom

    out = phantom(
        options.out, options.patients, options.seed, options.layout, options.height, bar("phantom")
    )
    say(f"{out}: {options.patients} patients, two views each")


def _prepare(options: argparse.Namespace) -> None:
    from raybone.data.ingest.prepare import prepare
    from raybone.data.ingest.sources import told

    modality = None if options.modality.lower() == "any" else options.modality
    folds = int(options.folds) if options.folds.lstrip("-").isdecimal() else options.folds
    made = prepare(
        options.source,
        options.dataset,
        options.layout,
        modality,
        folds,
        options.key,
        options.seed,
        bar("prepare"),
        holdout=options.holdout,
        split=options.split,
        steps=options.steps,
        categories=_pairs("--categories", options.categories),
        negatives=options.negatives,
        unannotated=options.unannotated,
        allow_unmatched=options.allow_unmatched,
        show_paths=options.show_paths,
    )
    counts = made.meta["counts"]
    for line in told(made.accounts, counts, options.unannotated == "negative"):
        say(line)
    apart = (
        f", {counts['training_patients']} patients in training alone"
        if counts["training_patients"]
        else ""
    )
    say(
        f"{made.path}: {counts['scans']} scans of {counts['patients']} patients with "
        f"{counts['lesions']} lesions in "
        f"{counts['folds']} folds{apart}; {counts['rejected']} inputs not taken; hash "
        f"{made.meta['hash']}"
    )
    if small := [f"{n} at imgsz {size}" for size, n in counts["too_small"].items() if n]:
        say(
            f"lesions that get under 2 pixels a side, which detectors are not trained on: "
            f"{', '.join(small)}"
        )
    for warning in made.meta["warnings"]:
        say(f"warning: {warning}")
    if options.show_paths:
        path_of = {i: path for input_id, scan_id, path in made.sources for i in (input_id, scan_id)}
        reason_of = {i: reason for i, _, reason in made.rejected}
        lines = [
            f"{path_of.get(i, i)}: {rule}"
            for rule, ids in made.meta["remarks"].items()
            for i in ids
        ]
        lines += [
            f"{path}: not taken: {reason_of[i]}"
            for i, scan_id, path in made.sources
            if i in reason_of and not scan_id
        ]
        for line in lines:
            say(" ".join(line.encode("utf-8", "backslashreplace").decode().splitlines()))
    elif made.rejected or made.meta["remarks"]:
        say(
            f"reasons and scans are in "
            f"{made.path / ('rejected.csv' if made.rejected else 'dataset.json')}; "
            "--show-paths names the files"
        )


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE arguments as a mapping."""
    pairs = [text.partition("=") for text in given]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise WrongInput(f"{option}: must be NAME=CATEGORY, got {' '.join(given)}")
    return {name: value.strip() for name, _, value in pairs}


def _inspect(options: argparse.Namespace) -> None:
    from raybone.data.inspect import inspect, inspection_lines

    found = inspect(options.dataset, bar("inspect"))
    say(json.dumps(found, indent=1) if options.json else "\n".join(inspection_lines(found)))
    if options.png:
        from raybone.data.contact_sheet import contact_sheet

        shown = contact_sheet(options.dataset, options.png, found)
        say(f"{options.png}: {shown} scans", file=sys.stderr)


def _models(options: argparse.Namespace) -> None:
    from raybone.models import menu

    if options.name:
        from raybone.run.reference import hyper_parameter_lines, hyper_parameters

        found = hyper_parameters(options.name)
        say(
            json.dumps(found, indent=1) if options.json else "\n".join(hyper_parameter_lines(found))
        )
    elif options.json:
        say(
            json.dumps(
                [dict(zip(("name", "task", "parameters", "source"), row)) for row in menu()],
                indent=1,
            )
        )
    else:
        for name, task, parameters, source in menu():
            say(f"{name:<19} {task:<14} {parameters / 1e6:6.1f} M  {source}")


def _example(options: argparse.Namespace) -> None:
    from raybone.study.examples import example, example_lines

    say(example(options.name) if options.name else "\n".join([*example_lines(), ""]), end="")


def _schema(_: argparse.Namespace) -> None:
    from raybone.run.reference import schema

    say(json.dumps(schema(), indent=1))


def _study(options: argparse.Namespace, *more: str) -> Study:
    from raybone.run.defaults import complete
    from raybone.study.spec import read_study

    return read_study(options.study, [*options.overrides, *more], complete)


def _preview(options: argparse.Namespace) -> None:
    from raybone.run.preview import preview

    seen = preview(
        _study(options), options.epoch_seconds, options.epochs_from, options.slots, options.png
    )
    if options.json:
        say(json.dumps(dataclasses.asdict(seen), indent=1))
        return
    for name, configurations, epochs in seen.rungs:
        say(f"{name:<24} {configurations:6.1f} configurations {epochs:8.0f} fold epochs")
    say(
        f"{seen.fold_epochs:.0f} fold epochs expected, {seen.exhaustive / seen.fold_epochs:.1f} "
        f"times fewer than the "
        f"{seen.exhaustive:.0f} of exhaustive cross-validation"
    )
    gpus = f", {seen.gpu_hours:.2f} GPU-hours" if seen.gpu_hours else ""
    for warning in seen.warnings:
        say(f"warning: {warning}")
    say(
        f"about {seen.wall_hours:.2f} hours with {seen.slots} run(s) at once{gpus}, at "
        f"{seen.epoch_seconds:.1f} s a "
        f"fold epoch ({seen.timed}); starting the runs is included in the hours"
    )


def _search(options: argparse.Namespace) -> None:
    more = [f"dataset={options.dataset}"] * bool(options.dataset) + [
        "search.scheduler=full"
    ] * options.record
    study = _study(options, *more)
    if options.local:
        from raybone.run.local import search as local

        if options.address:
            raise WrongInput("search: --local has no Ray to give --address to; leave one out")
        with _following(study) as tell:
            reason = local(study, options.out, tell, options.warm_start)
    else:
        from raybone.run.ray.tuner import search

        with _following(study) as tell:
            reason = search(
                study, options.out, options.address, tell, options.warm_start, options.wait
            )
    tell_end(reason, options.out)
    if options.record:
        from raybone.search.curves import record

        taken, tried = record(options.out)
        say(
            f"{options.out.rstrip('/')}/curves.npz: {taken} of {tried} configurations; replay them "
            f"with "
            "`raybone simulate --curves`"
        )


def _following(study: Study) -> contextlib.AbstractContextManager[Callable[[Brain], None]]:
    """What a search is given to tell of itself: a picture on a terminal, lines elsewhere."""
    if not _drawable():
        return contextlib.nullcontext(progress())
    say(f"{study.name}: checks its dataset and starts")
    from raybone.results.live import following

    return following()


def _drawable() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _manifests(options: argparse.Namespace) -> None:
    from raybone.run.kubernetes import manifests

    say(manifests(_study(options), options.out, options.image), end="")


def _submit(options: argparse.Namespace) -> int:
    from raybone.run.checks import check_alone
    from raybone.run.ray.access import use_token
    from raybone.run.ray.jobs import follow, pack, submit

    check_alone(study := _study(options))
    parcel = pack(study, options.out, options.wait)
    if options.dry_run:
        say(
            json.dumps(
                {
                    "address": options.address,
                    "token from": use_token(),
                    "entrypoint": parcel.entrypoint,
                    "environment": {},
                    "dataset": parcel.dataset,
                    "out": parcel.out,
                    "files": parcel.files,
                    "bytes": len(parcel.content),
                },
                indent=1,
            )
        )
        return 0
    job = submit(parcel, options.address)
    say(
        f"{job}: submitted with study.yaml and raybone's code, {len(parcel.content) / 1e3:.0f} kB; "
        f"every node must "
        f"reach {parcel.dataset} and {parcel.out}"
    )
    if options.follow:
        return follow(job, options.address, lambda text: say(text, end=""))
    say(f"where that folder is seen: raybone watch, logs or stop {shlex.quote(parcel.out)}")
    return 0


def _simulate(options: argparse.Namespace) -> None:
    from raybone.search.simulate import plot, simulate

    if options.plot and Path(options.plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise WrongInput(f"--plot {options.plot}: must end in .png, .pdf or .svg; choose one")
    rows = simulate(
        options.curves,
        options.folds,
        options.repeats,
        options.trials,
        options.workers,
        options.startup,
        options.schedulers,
        bar("simulate"),
    )
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        say(
            json.dumps(
                {
                    n: {k: v if math.isfinite(v) else None for k, v in row.items()}
                    for n, row in rows.items()
                },
                indent=1,
            )
        )
        return
    say(
        f"{'scheduler':<20} {'fold epochs':>11} {'x full':>7} {'regret %':>15} {'top 5 %':>8} "
        f"{'hours':>9}  "
        "x lockstep ASHA (95 %)"
    )
    for name, row in rows.items():
        say(
            f"{name:<20} {row['fold_epochs']:11.0f} {row['speedup_vs_full']:7.1f} "
            f"{row['excess_regret_pct']:7.2f} +- {row['excess_regret_se']:4.2f} "
            f"{row['top5_rate']:8.2f} "
            f"{row['seconds'] / 3600:9.2f}  {row['speedup_vs_lockstep']:.1f} "
            f"({row['speedup_vs_lockstep_low']:.1f}-{row['speedup_vs_lockstep_high']:.1f})"
        )


def _watch(options: argparse.Namespace) -> None:
    from raybone.results.watch import status_lines, watch

    with contextlib.suppress(KeyboardInterrupt):  # leaving stops no study
        if _drawable():
            from raybone.results.live import live

            live(options.study, not options.once)
        else:
            watch(
                options.study,
                lambda status, news: show("\n".join(status_lines(status) * news), end="\n" * news),
                not options.once,
            )


def _logs(options: argparse.Namespace) -> None:
    from raybone.results.logs import logs

    for line in logs(options.study, options.config, options.follow):
        show(line)


def _stop(options: argparse.Namespace) -> None:
    from raybone.search.journal import read_resolved
    from raybone.storage import Folder

    folder = Folder(options.study)
    read_resolved(folder)
    folder.write("stop", repr(time.time()).encode())
    say(
        f"{options.study}: will stop when the epochs at work have ended; `raybone search` resumes "
        f"it"
    )


def _leaderboard(options: argparse.Namespace) -> None:
    from raybone.results.leaderboard import brief_of, merged_leaderboard, write_leaderboard
    from raybone.search.journal import Journal, read_resolved
    from raybone.search.state import State
    from raybone.storage import Folder

    folders = [Folder(study) for study in options.studies]
    if len(folders) == 1:
        table = write_leaderboard(folders[0], read_resolved(folders[0]))
    else:
        table = merged_leaderboard(
            {
                place: (read_resolved(f), State(Journal(f).events()))
                for place, f in zip(options.studies, folders)
            }
        )
    if options.csv:
        (table[brief_of(table)] if options.brief else table).map(safe_cell).to_csv(
            options.csv, index=False
        )
    show_table(table, options.brief)


def _compare(options: argparse.Namespace) -> None:
    import orjson  # writes NaN as null

    from raybone.results.compare import compare, comparison_lines

    found = [compare(study, options.dataset) for study in options.studies]
    say(
        orjson.dumps(found, option=orjson.OPT_INDENT_2).decode()
        if options.json
        else "\n\n".join("\n".join(comparison_lines(f)) for f in found)
    )


def _refit(options: argparse.Namespace) -> None:
    from functools import partial

    from raybone.deploy.refit import refit, train_here

    if (options.address or options.local) and not options.all_patients:
        raise WrongInput(
            "refit: --address and --local say where to train, but fold models are trained already; "
            "leave "
            "them out, or add --all-patients"
        )
    train = None
    if options.all_patients and options.local:
        train = partial(train_here, tell=epoch_line)
    elif options.all_patients:
        from raybone.run.ray.refit import train_on_ray

        train = partial(train_on_ray, address=options.address, tell=epoch_line)
    made = refit(
        options.study, options.out, options.rank, train, options.onnx, bar("refit"), options.dataset
    )
    say(
        f"{options.out}: {made.meta['kind']} of {made.model.name}, "
        f"{made.meta['study']['config_id']} of study "
        f"{made.meta['study']['name']}, trained on {len(made.meta['patients'])} patients; read its "
        f"README.md"
    )


def _predict(options: argparse.Namespace) -> None:
    from raybone.deploy.predict import predict

    modality = None if options.modality.lower() == "any" else options.modality
    done = predict(
        options.bundle, options.scans, options.out, modality, options.least, bar("predict")
    )
    found, odd = sum(len(f.findings) for f in done.frames), [f for f in done.frames if f.oddities]
    rate = len(done.frames) / max(done.predicting, 1e-9)
    say(
        f"{options.out}: {len(done.frames)} scans, {found} findings; read in {done.reading:.1f} s, "
        f"predicted in "
        f"{done.predicting:.1f} s, {rate:.1f} scans a second, drawn in {done.drawing:.1f} s"
    )
    lines = [
        f"{frame.source}: unlike the training scans: {'; '.join(frame.oddities)}" for frame in odd
    ]
    lines += [f"{source}: not taken: {reason}" for source, reason in done.rejected] + list(
        done.remarks
    )
    if done.without:
        lines.append(
            f"{done.without} scans have no DICOM Segmentation, for reasons that predictions.json "
            f"tells"
        )
    for line in lines:
        say(" ".join(f"warning: {line}".splitlines()))


def _forget(options: argparse.Namespace) -> None:
    from raybone.results.forget import forget, forgotten_lines

    forget(
        options.dataset,
        options.patients,
        options.key,
        options.among,
        lambda done: say(
            json.dumps(dataclasses.asdict(done), indent=1)
            if options.json
            else "\n".join(forgotten_lines(options.dataset, done))
        ),
    )


def _report(options: argparse.Namespace) -> None:
    from raybone.results.report import report

    written, size = report(options.study, options.html, not options.no_scans, bar, options.dataset)
    say(f"{written}: {size / 1e6:.1f} MB")


VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": _demo,
    "phantom": _phantom,
    "prepare": _prepare,
    "inspect": _inspect,
    "models": _models,
    "example": _example,
    "schema": _schema,
    "preview": _preview,
    "search": _search,
    "manifests": _manifests,
    "submit": _submit,
    "simulate": _simulate,
    "watch": _watch,
    "logs": _logs,
    "stop": _stop,
    "leaderboard": _leaderboard,
    "compare": _compare,
    "report": _report,
    "refit": _refit,
    "predict": _predict,
    "forget": _forget,
}


if __name__ == "__main__":
    sys.exit(main())
