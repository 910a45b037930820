"""Work in other processes: in order, and one that kills its process costs no other its result."""

from __future__ import annotations

import os

import pytest

from raybone.data.parallel import Died, spread


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
