"""What a study will cost, before it is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from raybone.data.loader import Batch, ScanSamples, training_loader
from raybone.hpo.race import expected, ladder_of, name_of
from raybone.hpo.sampler import propose
from raybone.hpo.state import State
from raybone.resolve import configure, resolve
from raybone.spec import Study

STEPS = 3  # timed training steps, after one that warms up


@dataclass(frozen=True)
class Preview:
    """Rungs as (name, configurations, fold epochs), what an exhaustive search takes, and seconds a fold epoch."""

    rungs: tuple[tuple[str, float, float], ...]
    fold_epochs: float
    exhaustive: float
    epoch_seconds: float
    device: str

    @property
    def hours(self) -> float:
        """Hours of training on this machine's kind of device, one run at a time, without evaluation and start-up."""
        return self.fold_epochs * self.epoch_seconds / 3600


def preview(study: Study) -> Preview:
    """Count trials by rungs and time a few training steps of the first configuration here.

    Raises:
        WrongInput: the study is wrong.
    """
    study, dataset, model = resolve(study)
    rows = expected(study)
    config = configure(study, model, propose(study, State(), 0) or {})
    device = torch.device("cuda" if study.resources.gpus and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(study.resources.cpus)
    samples = ScanSamples(dataset, dataset.training(0), list(config.categories), config.imgsz,
                          model.task == "segmentation", config)
    loader, _ = training_loader(samples, config.batch, 0, 1, 0)
    net = model.build(config).to(device).train()
    seconds = []
    for step, batch in enumerate(loader):
        started = time.monotonic()
        assert isinstance(batch, Batch)
        torch.stack(list(net(batch.to(device)).values())).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
        if step == STEPS:
            break
    timed = sorted(seconds[1:] or seconds)
    return Preview(tuple((name_of(ladder_of(study), r), n, e) for r, n, e in rows), sum(e for _, _, e in rows),
                   float(study.search.trials * dataset.folds * study.epochs), timed[len(timed) // 2] * len(loader),
                   device.type)
