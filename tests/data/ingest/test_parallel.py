"""Work in other processes: in order, and one that kills its process costs no other its result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raybone.data.ingest.parallel import Died, cores, spread


def double(number: int) -> int:
    """Twice the number; 13 and 40 end their process, as a crashing decoder does."""
    if number in (13, 40):
        os._exit(3)
    return 2 * number


def fail(number: int) -> int:
    """Stands for a full disk."""
    raise OSError(28, f"No space left on device for {number}")


def test_results_come_in_order_and_only_the_killers_have_none() -> None:
    results = list(spread(double, range(60), 2))
    assert results == [Died() if n in (13, 40) else 2 * n for n in range(60)]
    assert list(spread(double, [], 2)) == []


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
