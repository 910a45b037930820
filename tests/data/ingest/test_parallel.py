"""Work in other processes: in order, and one that kills its process costs no other its result."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from raybone.data.ingest import parallel
from raybone.data.ingest.parallel import Ended, cores, spread

CRASHED = "ended the process that read it: a decoder crashed"


def double(number: int) -> int:
    """Twice the number; 13 and 40 end their process, as a crashing decoder does."""
    if number in (13, 40):
        os._exit(3)
    return 2 * number


def hang(number: int) -> int:
    """Twice the number; 3 never ends, 5 neither and is deaf, as a decoder in C may be."""
    if number == 5:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if number in (3, 5):
        time.sleep(3600)
    return 2 * number


def fail(number: int) -> int:
    """Stands for a full disk."""
    raise OSError(28, f"No space left on device for {number}")


def away(number: int) -> int:
    """Stands for a network file system that is away."""
    raise OSError(110, f"Connection timed out for {number}")


def test_results_come_in_order_and_only_the_killers_have_none() -> None:
    results = list(spread(double, range(60), 2))
    assert results == [Ended(CRASHED) if n in (13, 40) else 2 * n for n in range(60)]
    assert list(spread(double, [], 2)) == []


def test_what_hangs_is_ended_after_the_limit_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "SECONDS", 0.5)
    late = Ended("took over 0.5 s to read")
    assert list(spread(hang, range(9), 2)) == [late if n in (3, 5) else 2 * n for n in range(9)]


def test_an_error_of_the_system_that_the_work_raises_is_not_taken_for_the_limit() -> None:
    with pytest.raises(TimeoutError, match="timed out"):
        list(spread(away, [1], 1))


def test_what_work_raises_is_raised_here() -> None:
    with pytest.raises(OSError, match="No space left"):
        list(spread(fail, [1], 1))


@pytest.mark.parametrize(
    ("groups", "files", "share"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 99),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/job\n", {"job/cpu.max": "max 100000", "cpu.max": "100000 100000"}, 1),
        ("0::/pod/job\n", {"pod/cpu.max": "150000 100000", "pod/job/cpu.max": "900000 100000"}, 1),
        ("0::/../else\n", {"cpu.max": "100000 100000"}, 1),
        (
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            99,
        ),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        (
            "5:memory:/\n4:cpu:/\n",
            {"memory/cpu.cfs_quota_us": "1", "memory/cpu.cfs_period_us": "1"},
            99,
        ),
        ("nonsense", {"cpu.max": "1 2 3"}, 99),
        (None, {}, 99),
    ],
)
def test_a_quota_of_cpus_counts_as_the_cores_that_there_are(
    groups: str | None, files: dict[str, str], share: int, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert cores(tmp_path / "groups", tmp_path) == min(share, len(os.sched_getaffinity(0)))
