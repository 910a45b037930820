"""Train one fold: a generator of Epoch, with no Ray in it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from raybone.data.loader import Batch, training_loader, validation_loader
from raybone.environment import environment, in_short
from raybone.errors import DamagedFile, FitFailed, TooLarge
from raybone.models._weights import copy_into, start_from, weights_file
from raybone.storage import Folder
from raybone.study.metric import METRICS
from raybone.tasks.base import Masks
from raybone.train.apply import applied, device_of, mined_masks, ranks
from raybone.train.checkpoint import (
    BEST,
    LAST,
    earlier_fold,
    fill,
    finite,
    read_checkpoint,
    write_checkpoint,
)
from raybone.train.evaluate import evaluate
from raybone.train.findings import write_findings
from raybone.train.gpu_use import GpuUse
from raybone.train.memory import free, refuse_too_large, resident
from raybone.train.optimizer import decay, optimizer_of
from raybone.train.samples import FoldJob, scored_samples, training_samples
from raybone.train.teacher import Teacher, taught
from raybone.types import Epoch, Finding


def fit(
    job: FoldJob, folder: Folder, metric: str, stop: int, known: int = 0, gpu: bool = False
) -> Iterator[Epoch]:
    """Train a fold up to epoch ``stop``, from where ``last.pt`` in the folder ends.

    A fold is a pure function of (configuration, fold, seed, dataset): randomness comes from (seed,
    epoch, sample), so that stopping, resuming and loader processes change nothing. Under an
    initialised process group every rank calls this alike, takes its share of each batch, and yields
    the same epochs; rank 0 writes.

    Args:
        folder: where ``last.pt``, ``best.pt`` and ``predictions.json`` of this fold live.
        metric: by which ``best.pt`` is chosen.
        known: epochs that the caller has already; those after it that ``last.pt`` holds are yielded
            again first.
        gpu: train on this process's current CUDA device.
    Raises:
        FitFailed: the gradient is not finite, or a step of one image, or of several workers, needs
            more memory than there is. Else batches go through the network in halves, quarters, ...
            whose gradients are summed; batch norms see the smaller ones.
    """
    place = _Place(folder, metric, device_of(gpu))
    run = _begun(job, place)
    yield from run.history[known:stop]
    while len(run.history) < stop:
        try:
            epoch = run.epoch(last=len(run.history) + 1 == stop)
        except (torch.OutOfMemoryError, TooLarge) as error:
            if run.parts >= run.config.batch or run.world > 1:
                # Of a step that is too large every rank says the same; a GPU may be full alone
                alone = run.world > 1 and not isinstance(error, TooLarge)
                raise FitFailed(" ".join(str(error).split()), alone) from None
            parts = 2 * run.parts
            # Others hold memory as well: what takes over half of it would end the process
            while parts < run.config.batch and getattr(error, "times", 0) > parts / run.parts / 2:
                parts *= 2
        else:
            yield epoch
            continue
        # Out of the handler, whose traceback holds what is to be given back
        del run
        free()
        run = _begun(job, place, parts)


def _begun(job: FoldJob, place: _Place, parts: int = 1) -> _Run:
    """A fold from where it stands; what has no room at all is its own fault, and no machine's."""
    try:
        return _Run(job, place, parts)
    except torch.OutOfMemoryError as error:
        raise FitFailed(" ".join(str(error).split()), alone=ranks()[1] > 1) from None


@dataclass(frozen=True)
class _Place:
    """Where a fold is kept, the metric of its best epoch, and what it is trained on."""

    folder: Folder
    metric: str
    device: torch.device


class _Run:
    """A fold in training: network, average, optimiser, loaders and history.

    Args:
        parts: in which each batch goes through the network, as memory is short; a checkpoint that
            was trained in more counts.
    """

    def __init__(self, job: FoldJob, place: _Place, parts: int = 1) -> None:
        config, self.config = job.config, job.config
        self.job, self.folder, self.metric = job, place.folder, place.metric
        self.device, folder = place.device, place.folder
        self.rank, self.world = ranks()
        self.memory = torch.channels_last if config.channels_last else torch.contiguous_format
        torch.manual_seed(_mix(job.seed, job.fold, 0))
        self.net = job.model.build(config)
        state = read_checkpoint(folder, self.device)
        self.parts = max(parts, state.get("parts", 1) if state else 1)
        if state is None:
            if config.weights:
                start_from(self.net, weights_file(config.weights, job.model))
            if start := config.init_from:
                earlier = earlier_fold(start, job.fold)
                copy_into(self.net, earlier["average"], f"init_from {start}")
        self.net.to(self.device).to(memory_format=self.memory)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.wrapped = (
            nn.parallel.DistributedDataParallel(self.net, broadcast_buffers=False)
            if self.world > 1
            else self.net
        )
        # Listed once: a step would spend a twentieth of its time on that.
        pairs = list(zip(self.average.state_dict().values(), self.net.state_dict().values()))
        self.means, self.values = (
            [p[k] for p in pairs if p[0].is_floating_point()] for k in (0, 1)
        )
        self.counters = [p for p in pairs if not p[0].is_floating_point()]
        self._load_data()
        self.steps = len(self.loader)
        self.teacher = Teacher.of(job, self.steps, self.rank, self.world)
        self.accumulate = max(round(config.nbs / config.batch), 1)
        self.optimizer = optimizer_of(self.net, config, self.accumulate)
        self.updates = 0
        self.history: list[Epoch] = []
        if state:
            self._resume(state)

    def _load_data(self) -> None:
        job, config, dataset, fold = self.job, self.config, self.job.dataset, self.job.fold
        self.mined: Masks | None = None
        scored, reported = dataset.validation(fold), dataset.reported(fold)
        if config.mined_from:
            known = [*dataset.training(fold), *scored, *reported]
            self.mined = mined_masks(dataset, config.mined_from, fold, known, self.device)
        training = training_samples(job, _mix(job.seed, fold, 1), self.mined)
        self.validation = None
        if scored:  # a refit on all patients has no validation
            self.validation = scored_samples(dataset, scored, job.model, config, self.mined)
            # Without gradients four times the images fit.
            count = max(4 * config.batch // self.parts, 1)
            self.valid_loader = validation_loader(
                self.validation, count, self.rank, self.world, config.loader_workers
            )
        self.loader, self.sampler = training_loader(
            training, config.batch, self.rank, self.world, config.loader_workers
        )

    def _resume(self, state: dict[str, Any]) -> None:
        own, where = self._own(), f"{self.folder.url}/{LAST}"
        if other := [name for name in own if state.get(name) != own[name]]:
            raise DamagedFile(
                f"{where}: must be of this configuration and fold, but was trained with another "
                f"{', '.join(other)}; put the right file there, or remove it and the fold starts "
                "again"
            )
        try:
            fill(self.net, state["net"], where)
            fill(self.average, state["average"], where)
            if state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
            self.updates = int(state["updates"])
            self.history = [Epoch(**e) for e in state["history"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFile(
                f"{where}: must be what a training left there, but {type(error).__name__}: "
                f"{str(error)[:100]}; remove it and the fold starts again"
            ) from None

    def epoch(self, last: bool) -> Epoch:
        """Train and evaluate one epoch, save, and return its record."""
        started, number = time.monotonic(), len(self.history) + 1
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with GpuUse(self.device) as use:
            train_loss = self._train(number)
        trained = time.monotonic() - started
        if self.world > 1:
            # A rank that resumes has those of rank 0 as well, also where the average teaches.
            for buffer in (*self.average.buffers(), *self.net.buffers()):
                dist.broadcast(buffer, 0)
        if not finite(self.average.state_dict()):  # such as the running variance of a norm
            where = f"fold {self.job.fold} epoch {number}"
            raise FitFailed(f"{where}: weights must be finite; lower lr0")
        metrics, findings = dict[str, float](), list[dict[str, Any]]()
        if self.validation is not None:
            metrics, findings = evaluate(
                self.average, self.validation, self.valid_loader, self.job.model, self.device
            )
        if number == self.job.epochs:
            metrics |= self._tested()
        metrics["train_loss"] = train_loss
        seconds, cost = round(time.monotonic() - started, 3), self._cost(trained, use)
        machine = in_short(environment())
        record = Epoch(self.job.fold, number, metrics, seconds, cost, machine)
        self.history.append(record)
        if self.rank == 0:
            self._save(findings if last and self.validation is not None else None)
        if self.world > 1:
            dist.barrier()
        return record

    def _cost(self, seconds: float, use: GpuUse) -> dict[str, float]:
        """What a training of so many seconds took, see ``Epoch``."""
        held = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == "cuda"
            else resident()
        )
        images = self.steps * self.config.batch
        return {
            "images_per_s": round(images / max(seconds, 1e-9), 1),
            "memory_gb": round(held / 1e9, 2),
            "parts": self.parts,
            **({"gpu_use": round(use.share, 3)} if math.isfinite(use.share) else {}),
        }

    def _tested(self) -> dict[str, float]:
        """Metrics on the fold that neither trains nor validates, where there is one."""
        job = self.job
        if not (scans := job.dataset.reported(job.fold)):
            return {}
        samples = scored_samples(job.dataset, scans, job.model, job.config, self.mined)
        state = {"average": self.average.state_dict(), "parts": self.parts}
        metrics, _ = applied(job.model, job.config, state, samples, self.device)
        return {f"test_{name}": value for name, value in metrics.items()}

    def _train(self, number: int) -> float:
        self.sampler.epoch = number
        batches = iter(
            self.loader
        )  # draws a number of its own, unless its processes are there already
        unlabelled = self.teacher.batches(number) if self.teacher else iter(())
        torch.manual_seed(_mix(self.job.seed, self.job.fold, number + 1))
        self.wrapped.train()
        self.optimizer.zero_grad()
        total, waiting = torch.zeros((), device=self.device), 0
        summed = self.job.model.reduction == "sum"
        for step, batch in enumerate(batches):
            if (
                self.updates == step == 0 and self.device.type == "cpu"
            ):  # CUDA says itself what it has no room for
                refuse_too_large(self.net, batch, self.parts)
            accumulate = self._schedule(number, step)
            scale = self.world if summed else 1 / accumulate
            if unknown := next(unlabelled, None):
                weight, several = unknown
                for part in several.split(self.parts):
                    share = 1 if summed else len(part.index_N) / len(several.index_N)
                    self._teach(weight, part, scale * share)
            for part in batch.split(self.parts):
                share = 1 if summed else len(part.index_N) / len(batch.index_N)
                loss = self._loss(part.to(self.device, self.memory)) * share
                (loss * scale).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / (len(batch.index_N) if summed else 1)
            waiting += 1
            if waiting >= accumulate or step + 1 == self.steps:
                self._step(number, step)
                waiting = 0
        return float(total) / self.steps

    def _teach(self, weight: float, batch: Batch, scale: float) -> None:
        """Add the gradients of scans without annotation, by what the average is sure of."""
        batch = batch.to(self.device, self.memory)
        with torch.no_grad(), self._autocast():
            predictions = self.average.eval()(batch.image_NCHW)
        known = taught(batch, predictions, self.job.task.judged)
        if known is None:
            return
        if self.job.model.reduction == "mean":
            scale *= len(known.index_N) / len(batch.index_N)
        # Ranks may differ in whether they are sure of anything; the step's own batch comes after it
        # and sums over them.
        net, parallel = self.wrapped, nn.parallel.DistributedDataParallel
        with net.no_sync() if isinstance(net, parallel) else nullcontext():
            (self._loss(known) * weight * scale).backward()  # type: ignore[no-untyped-call]

    def _loss(self, batch: Batch) -> Tensor:
        with self._autocast():
            losses: dict[str, Tensor] = self.wrapped(batch)
        return torch.stack(list(losses.values())).sum()

    def _autocast(self) -> torch.autocast:
        # Older GPUs only emulate bfloat16, slower than they are in float32
        cuda = self.device.type == "cuda"
        enabled = self.config.amp and cuda and torch.cuda.is_bf16_supported(False)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _step(self, number: int, step: int) -> None:
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip or math.inf)
        if not torch.isfinite(norm):
            # The norm is the same on every rank, so that all of them leave together.
            raise FitFailed(
                f"fold {self.job.fold} epoch {number} step {step + 1}: the gradient must be "
                f"finite, got norm {float(norm)}; lower lr0"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        decay = self.config.ema * (1 - math.exp(-self.updates / self.config.ema_tau))
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.values, 1 - decay)
            for mean, value in self.counters:
                mean.copy_(value)

    def _schedule(self, number: int, step: int) -> int:
        """Set learning rate and momentum for a step (Ultralytics' warm-up and decay); returns the
        accumulation.
        """
        config, epochs = self.config, self.job.epochs
        share = (number - 1) / epochs
        peak = config.lr0 * decay(config, share)
        warm = round(min(config.warmup_epochs, epochs - 1) * self.steps)
        done = step + self.steps * (number - 1)
        for group in self.optimizer.param_groups:
            start = config.warmup_bias_lr if group["kind"] == "bias" else 0.0
            group["lr"] = (
                float(np.interp(done, [0, warm], [start, peak])) if done <= warm and warm else peak
            )
            momentum = (
                float(np.interp(done, [0, warm], [config.warmup_momentum, config.momentum]))
                if done <= warm and warm
                else config.momentum
            )
            if config.optimizer == "SGD":
                group["momentum"] = momentum
        if done <= warm and warm:
            return max(1, round(float(np.interp(done, [0, warm], [1, self.accumulate]))))
        return self.accumulate

    def _save(self, findings: list[Finding] | None) -> None:
        sign = METRICS[self.metric].sign
        worth = [sign * e.metrics[self.metric] for e in self.history if self.metric in e.metrics]
        if worth and worth[-1] >= max((w for w in worth if not math.isnan(w)), default=-math.inf):
            best = {"average": self.average.state_dict(), "epoch": len(self.history)}
            write_checkpoint(self.folder, best, BEST)
        if findings is not None:
            write_findings(self.folder, self.job.fold, len(self.history), findings)
        write_checkpoint(
            self.folder,
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "updates": self.updates,
                "optimizer": self.optimizer.state_dict()
                if len(self.history) < self.job.epochs
                else None,
                "history": [vars(e) for e in self.history],
                "parts": self.parts,
                **self._own(),
            },
        )

    def _own(self) -> dict[str, Any]:
        """What makes weights those of this fold of this configuration, and no other's."""
        job = self.job
        return {
            "model": job.model.name,
            "config": job.config.model_dump(mode="json", exclude={"loader_workers"}),
            "fold": job.fold,
            "seed": job.seed,
            "epochs": job.epochs,
            "dataset": job.dataset.hash,
        }


def _mix(*parts: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
