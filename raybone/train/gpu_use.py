"""How much of the time a GPU was at work."""

from __future__ import annotations

import math
import threading
from types import TracebackType

import torch
from pynvml import NVMLError

SECONDS = 1.0  # between two looks: NVML tells of the last second at most


class GpuUse:
    """Looks at a GPU once a second for as long as its block runs.

    ``share`` is then the part of the time in which a kernel ran on it, of whatever process, in
    [0, 1] (NVML's utilization); NaN without a GPU, and where its driver does not tell (a slice of
    one, MIG).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.share = math.nan
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> GpuUse:
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _look(self) -> None:
        percents = list[int]()
        ended = False
        while not ended:
            ended = self._ended.wait(SECONDS)
            try:
                percents.append(torch.cuda.utilization(self.device))
            except (NVMLError, RuntimeError, ImportError):  # AMD has a library of its own
                return
            self.share = sum(percents) / len(percents) / 100
