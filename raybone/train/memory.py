"""What a training step takes of this machine's memory, before it takes it."""

from __future__ import annotations

import copy
import ctypes
import gc
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.nn import functional

from raybone.data.loader import Batch
from raybone.errors import TooLarge

LARGE = 2**24  # pixels of a batch; smaller ones are not worth the look
SMALL = 2**16  # pixels of the batch that is tried, about
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of control groups, version 2 and 1


def refuse_too_large(net: nn.Module, batch: Batch, parts: int = 1) -> None:
    """Nothing where this machine has the memory that a training step of this batch takes, as far as
    that is known.

    What others hold of it now does not count: that would be no fault of the configuration.

    Args:
        parts: in which the batch goes through the network.
    Raises:
        TooLarge: it has not; the system would end the process without a word.
    """
    most = memory_bytes()
    if batch.image_NCHW.numel() < LARGE or most is None:
        return
    images, _, height, width = batch.image_NCHW.shape
    parts = min(parts, images)
    if (need := step_bytes(net, batch) / parts) < most:
        return
    raise TooLarge(
        f"a training step of {-(-images // parts)} images of {height}x{width} pixels takes about "
        f"{need / 1e9:.0f} GB of memory, but there are {most / 1e9:.0f} GB; lower batch, imgsz or "
        "the width of the model",
        need / most,
    )


def step_bytes(net: nn.Module, batch: Batch) -> int:
    """Bytes that the backward pass of a training step keeps: those of two images made small, times
    their pixels.

    Parts whose memory grows faster than the pixels, as attention does, take more.
    """
    small = _small(batch)
    kept: dict[int, int] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
    ):
        losses = copy.deepcopy(net).train()(small)  # a copy, as norms learn from what they see
    weights = sum(p.untyped_storage().nbytes() for p in net.parameters())
    held = sum(kept.values()) - weights if losses else 0
    return int(held * batch.image_NCHW.numel() / small.image_NCHW.numel())


def memory_bytes(
    system: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Memory of the machine, or of this process's control group where that has less."""
    try:
        found = [
            int(line.split()[1]) * 1024
            for line in system.read_text().splitlines()
            if "MemTotal" in line
        ]
    except OSError:
        return None
    for limit in LIMITS:
        try:
            found.append(int((groups / limit).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(found, default=None)


def gpu_bytes() -> int | None:
    """Memory of this machine's first GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def free() -> None:
    """Give back what a training has left in memory: the next one may be larger."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps what was freed in small pieces, which grows by the segment.
    getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def _small(batch: Batch) -> Batch:
    """Two images of a batch, with fewer pixels; targets go with them."""
    image_NCHW, mask_NCHW = batch.image_NCHW[:2], batch.mask_NCHW[:2]
    share = (SMALL / image_NCHW.numel()) ** 0.5
    size = [max(64, round(side * share / 32) * 32) for side in image_NCHW.shape[2:]]
    if mask_NCHW.numel():
        mask_NCHW = functional.interpolate(mask_NCHW.float(), size).to(mask_NCHW.dtype)
    scale_4 = (
        torch.tensor([new / old for new, old in zip(size, image_NCHW.shape[2:])]).flip(0).repeat(2)
    )
    return Batch(
        functional.interpolate(image_NCHW, size),
        [b * scale_4 for b in batch.boxes[:2]],
        batch.labels[:2],
        mask_NCHW,
        batch.index_N[:2],
    )
