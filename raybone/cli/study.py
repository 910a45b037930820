"""Verbs of a study: what it will cost, its search here or on a cluster, and how it goes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from raybone.cli.arguments import OutFile
from raybone.errors import WrongInput
from raybone.results.terminal import bar, progress, say, show, tell_end

if TYPE_CHECKING:
    from raybone.hpo.brain import Brain
    from raybone.simulation.simulate import Plan
    from raybone.study.spec import Study


@dataclasses.dataclass(frozen=True)
class StudyFile:
    """A study, as its YAML and the command line have it.

    Args:
        study STUDY.yaml:
        set key=value: override a key of the study, dotted, such as search.trials=8
    """

    study: str
    _: dataclasses.KW_ONLY
    set: Sequence[str] = ()

    def read(self, *more: str) -> Study:
        """Returns the study, with more overrides behind those of ``--set``."""
        from raybone.run.defaults import complete
        from raybone.study.files import read_study

        return read_study(self.study, [*self.set, *more], complete)


def demo(*, out: str = "runs/demo") -> None:
    """phantom -> prepare -> search on a local Ray -> leaderboard

    Args:
        out DIR: study folder (default %(default)s)
    """
    from raybone.phantom.demo import prepare_demo
    from raybone.run.ray.tuner import search

    study = prepare_demo(Path(out), bar("phantom"), bar("prepare"))
    with _following(study) as tell:
        reason = search(study, out, tell=tell)
    tell_end(reason, out)


def example(name: str | None = None) -> None:
    """the studies that come with raybone, or the YAML of one

    Args:
        name: whose YAML to print
    """
    from raybone.study.examples import example, example_lines

    say(example(name) if name else "\n".join([*example_lines(), ""]), end="")


def preview(
    study: StudyFile,
    *,
    epochs_from: Sequence[str] = (),
    epoch_seconds: float | None = None,
    slots: int = 1,
    png: OutFile | None = None,
    json: bool = False,
) -> None:
    """trials x rungs, expected fold epochs and hours, before spending them

    Args:
        epochs_from STUDY: take what an epoch takes from earlier studies of the same model
        epoch_seconds S: or from here; without both it is timed
        slots W: training runs at once (default %(default)s)
        png FILE: draw a training batch here, as the network sees it
        json: one JSON document on stdout
    """
    from raybone.run.preview import preview

    studied = study.read()
    seen = preview(studied, epoch_seconds, epochs_from, slots, png)
    if json:
        say(dumps(dataclasses.asdict(seen), indent=1))
        return
    for name, configurations, epochs in seen.rungs:
        say(f"{name:<24} {configurations:6.1f} configurations {epochs:8.0f} fold epochs")
    say(
        f"{seen.fold_epochs:.0f} fold epochs expected, {seen.exhaustive / seen.fold_epochs:.1f} "
        f"times fewer than the {seen.exhaustive:.0f} of exhaustive cross-validation"
    )
    if len(seen.by_model) > 1:
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in seen.by_model.items())
        say(f"a fold epoch of each model: {each}")
    gpus = f", {seen.gpu_hours:.2f} GPU-hours" if seen.gpu_hours else ""
    for warning in seen.warnings:
        say(f"warning: {warning}")
    say(
        f"about {seen.wall_hours:.2f} hours with {seen.slots} run(s) at once{gpus}, at "
        f"{seen.epoch_seconds:.1f} s a fold epoch ({seen.timed}); starting the runs is included in "
        "the hours"
    )
    if seen.wall_hours > studied.limits.hours or seen.gpu_hours > studied.limits.gpu_hours:
        say("that is more than the limits of the study, which end it earlier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where a search runs, and where its dataset is.

    Args:
        address: a Ray cluster (default: RAY_ADDRESS, else a local one for the run)
        wait MINUTES: wait so long for nodes that an autoscaler adds, while not one run fits
            (default 0)
        dataset DATASET: where the dataset is now, if it was moved
        local: in this process, without Ray
    """

    address: str | None = None
    wait: float = 0
    dataset: str = ""
    local: bool = False


def search(
    study: StudyFile,
    *,
    out: str,
    where: Where,
    record: bool = False,
    warm_start: Sequence[str] = (),
) -> None:
    """start or resume a study: the same command

    Args:
        out STUDY: study folder, or an fsspec URL
        record: train every fold of every configuration in full, and write STUDY/curves.npz for
            simulate
        warm_start LEADERBOARD: leaderboards or study folders whose rows steer what is proposed;
            never ranked with it
    """
    moved = [f"dataset={dumps(where.dataset, ensure_ascii=False)}"] if where.dataset else []
    full = ["search.scheduler=full"] if record else []
    read = study.read(*moved, *full)
    if where.local:
        from raybone.run.local import search as local

        if where.address:
            raise WrongInput("search: --local has no Ray to give --address to; leave one out")
        with _following(read) as tell:
            reason = local(read, out, tell, warm_start)
    else:
        from raybone.run.ray.cluster import Cluster
        from raybone.run.ray.tuner import search

        cluster = Cluster(where.address, where.wait)
        with _following(read) as tell:
            reason = search(read, out, cluster, tell, warm_start)
    tell_end(reason, out)
    if record:
        from raybone.results.study_folder import StudyFolder

        taken, tried = StudyFolder(out).write_curves()
        say(
            f"{out.rstrip('/')}/curves.npz: {taken} of {tried} configurations; replay them with "
            "`raybone simulate --curves`"
        )


def _following(study: Study) -> contextlib.AbstractContextManager[Callable[[Brain], None]]:
    """What a search reports to: a picture on a terminal, lines elsewhere."""
    if not _drawable():
        return contextlib.nullcontext(progress())
    say(f"{study.name}: checks its dataset and starts")
    from raybone.results.live import following

    return following()


def _drawable() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What is replayed on recorded curves.

    Args:
        curves FILE.npz: of `raybone search --record`
        folds K: default: 5, or as many as a table has
        repeats: other orders, folds and seeds (default %(default)s)
        trials: configurations a search (default: up to 200)
        workers W: runs at once (default %(default)s)
        startup SECONDS: cost of starting a run
        schedulers NAME: default: all that are known
    """

    curves: Sequence[str]
    folds: int | None = None
    repeats: int = 100
    trials: int = 200
    workers: int = 8
    startup: float = 0
    schedulers: Sequence[str] = ()


def simulate(
    *, replay: Replay, plot: OutFile | None = None, limit: float | None = None, json: bool = False
) -> None:
    """replay schedulers on recorded curves: cost and regret

    Args:
        plot FILE.png: draw regret against cost
        limit PERCENT: find the cheapest ladder of that regret as well, with the answers known
        json: one JSON document on stdout
    """
    from raybone.hpo.fold_race import SMOOTH
    from raybone.simulation import simulate as simulator

    if plot and Path(plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise WrongInput(f"--plot {plot}: must end in .png, .pdf or .svg; choose one")
    if limit is not None and not 0 <= limit < math.inf:
        raise WrongInput(
            f"--limit: must be at least 0, in percent of the best score, got {limit:g}; give 0.3 "
            "or 1"
        )
    if limit is not None and json:
        raise WrongInput("--limit: is told in words, got --json as well; leave one of them out")
    plan = simulator.Plan(
        replay.folds, replay.repeats, replay.trials, replay.workers, replay.startup
    )
    rows = simulator.simulate(replay.curves, plan, replay.schedulers, bar("simulate"))
    if plot:
        simulator.plot(rows, plot)
    if json:
        finite = {
            name: {key: value if math.isfinite(value) else None for key, value in row.items()}
            for name, row in rows.items()
        }
        say(dumps(finite, indent=1))
        return
    say(
        f"{'scheduler':<20} {'fold epochs':>11} {'x full':>7} {'excess regret %':>15} "
        f"{'in sample %':>15} {'in SE':>6} {'top 5 %':>8} {'hours':>9}  x lockstep ASHA (95 %)"
    )
    for name, row in rows.items():
        say(
            f"{name:<20} {row['fold_epochs']:11.0f} {row['speedup_vs_full']:7.1f} "
            f"{row['excess_regret_pct']:7.2f} +- {row['excess_regret_se']:4.2f} "
            f"{row['in_sample_regret_pct']:7.2f} +- {row['in_sample_regret_se']:4.2f} "
            f"{row['in_sample_regret_ses']:6.2f} "
            f"{row['top5_rate']:8.2f} {row['seconds'] / 3600:9.2f}  "
            f"{row['speedup_vs_lockstep']:.1f} "
            f"({row['speedup_vs_lockstep_low']:.1f}-{row['speedup_vs_lockstep_high']:.1f})"
        )
    say(
        "SE: standard errors of a configuration's mean over the folds; a score is the mean of the "
        f"last {SMOOTH} epochs"
    )
    if any(row["out_of_sample"] < 1 for row in rows.values()):
        say(
            "a table of one seed is judged by the folds that were searched: its excess is in sample"
        )
    for path in replay.curves if limit is not None else ():
        _tell_limit(path, plan, limit or 0.0)


def _tell_limit(path: str, plan: Plan, regret_pct: float) -> None:
    from raybone.simulation.curves import read_curves
    from raybone.simulation.limit import limit
    from raybone.simulation.simulate import draws_of

    curves = read_curves(path)
    found = limit(curves, draws_of(curves, plan), regret_pct, bar("limit"))
    first = found.ladder[0].count * curves.T_CSKE.shape[3] * plan.folds_of(curves)
    rungs = ", ".join(f"{s.count} at {s.folds}x{s.epochs}" for s in found.ladder)
    say(
        f"{curves.name}: with the answers known, x {first / found.fold_epochs:.1f} full at "
        f"{found.regret_pct:.2f} % in sample: {rungs}"
    )


def watch(
    study: str,
    *,
    once: bool = False,
    json: bool = False,
    serve: str = "",
    webhook: str = "",
    dataset: str = "",
) -> None:
    """what a study is doing, wherever it runs: here, in a browser, or told to another program

    Args:
        once: show it once and leave
        json: for --once: one JSON document on stdout
        serve HOST:PORT: its report and its errors as a page, drawn again as it goes on
        webhook URL: post a new best, failures and the end there
        dataset DATASET: for --serve: where the dataset is now, if it was moved
    """
    from raybone.results.watch import status_json, status_lines, watch

    if once + bool(serve) + bool(webhook) > 1:
        raise WrongInput("watch: --once, --serve and --webhook are three ways; choose one")
    if json and not once:
        raise WrongInput("watch: --json is of --once, which is not asked for; add it")
    if serve:
        from raybone.results.serve.server import serve as page

        page(study, serve, say, dataset)
        return
    if webhook:
        from raybone.results.serve.webhook import tell

        with contextlib.suppress(KeyboardInterrupt):
            say(f"{tell(study, webhook, say)} posts were taken")
        return
    with contextlib.suppress(KeyboardInterrupt):  # leaving stops no study
        if json:
            watch(study, lambda status, _: say(status_json(status)), False)
        elif _drawable():
            from raybone.results.live import live

            live(study, not once)
        else:
            watch(
                study,
                lambda status, news: show("\n".join(status_lines(status) * news), end="\n" * news),
                not once,
            )


def logs(study: str, config: str | None = None, *, follow: bool = False) -> None:
    """what happened in a study, in words

    Args:
        config: one configuration, with its epochs and traceback
        follow: go on until the search ends
    """
    from raybone.results.logs import logs

    for line in logs(study, config, follow):
        show(line)


def add(study: str, values: Sequence[str]) -> None:
    """a configuration more for a study, which begins it next; at work or resumed

    Args:
        values key=value: a value of each hyper-parameter that is searched, such as lr0=0.003
    """
    from raybone.hpo.lease import Lease
    from raybone.results.study_folder import StudyFolder

    folder = StudyFolder(study)
    params = folder.ask_for(values)
    words = ", ".join(f"{name} {value}" for name, value in params.items())
    how = "begins next" if Lease(folder.files).holder() else "`raybone search` begins it"
    say(f"{study}: {words}: {how}")


def stop(study: str, *, config: str | None = None) -> None:
    """ask a study to stop after the epoch at work; `search` resumes it

    Args:
        config: only this configuration, for good, after the epoch at work; the others go on
    """
    from raybone.hpo.lease import EXPIRES, Lease
    from raybone.results.study_folder import StudyFolder

    folder = StudyFolder(study)
    folder.ask_to_stop(config)
    if config:
        say(f"{study}: {config} goes no further than to the end of its epoch")
        return
    if Lease(folder.files).holder(EXPIRES) is None:
        say(f"{study}: no search is at work on it; one that waits for nodes will not begin")
        return
    say(f"{study}: will stop when the epochs at work have ended; `raybone search` resumes it")
