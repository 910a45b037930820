"""What the hub hands to slots, and what becomes of a work whose slots die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raybone.hpo.brain import Work
from raybone.run.ray import hub as hubs
from raybone.run.ray.hub import RETRIES, Ended, Hub, Task
from raybone.types import Epoch, Pooled, Segment

LONG = (Segment(0, 0, 4), Segment(1, 2, 4))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot without work learns so at once, and goes."""
    monkeypatch.setattr(hubs, "CLAIM_SECONDS", 0.01)
    monkeypatch.setattr(hubs, "IDLE_SECONDS", 0.0)


def run(case: Callable[[Hub], Awaitable[Any]]) -> Any:
    """A case on a hub in an event loop, as in its actor."""

    async def all_of_it() -> Any:
        return await case(Hub())

    return asyncio.run(all_of_it())


def work(config_id: str = "c000", runs: int = 1, segments: tuple[Segment, ...] = LONG) -> Work:
    return Work(config_id, {"lr0": 0.01}, 0, segments, runs=runs)


def epoch(fold: int, number: int, dice: float = 0.5) -> Epoch:
    return Epoch(fold, number, {"dice": dice, "val_loss": 1.0}, 0.1)


async def claim(hub: Hub, slot: str, ended: Ended | None = None, leaves: bool = False) -> Any:
    return await hub.claim(slot, ended, leaves)


def test_folds_go_out_longest_first_then_all_are_pooled_and_the_trial_hears_their_means() -> None:
    async def case(hub: Hub) -> Any:
        await hub.assign(work(), {1: (2, {"dice": 0.1, "val_loss": 3.0})})
        await hub.here("a", None)
        first = await claim(hub, "a")
        assert first.segment == Segment(0, 0, 4)
        for number in range(1, 5):
            assert not await hub.put("c000", epoch(0, number, 0.4))
        second = await claim(hub, "a", Ended())
        assert second.segment == Segment(1, 2, 4)
        for number in (3, 4):
            await hub.put("c000", epoch(1, number, 0.6))
        assert (await claim(hub, "a", Ended())).segment is None
        pooled = Pooled({"dice": 0.45}, (), 0.0)
        assert await claim(hub, "a", Ended(pooled=pooled)) is False
        said = await hub.drain(False)
        assert said.messages[-1] == {"config_id": "c000", "pooled": pooled}
        return await hub.rung("c000")

    assert run(case) == {
        "dice": 0.5,
        "val_loss": 1.0,
        "rung": 0,
        "folds": 2,
        "epochs": 8,
        "outcome": "done",
        "reason": "",
    }


def test_a_work_has_one_slot_until_it_is_widened() -> None:
    async def case(hub: Hub) -> None:
        await hub.assign(work(), {})
        for slot in "ab":
            await hub.here(slot, None)
        assert (await hub.drain(False)).tasks == 1
        assert isinstance(await claim(hub, "a"), Task)
        assert (await hub.drain(False)).tasks == 0
        assert await claim(hub, "b") is False
        await hub.here("b", None)
        await hub.widen("c000", 2)
        assert (await claim(hub, "b")).segment == Segment(1, 2, 4)

    run(case)


def test_a_slot_that_waits_is_woken_by_new_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "CLAIM_SECONDS", 60)

    async def case(hub: Hub) -> Any:
        await hub.here("a", None)
        waiting = asyncio.ensure_future(claim(hub, "a"))
        await asyncio.sleep(0)
        await hub.assign(work(), {})
        return await asyncio.wait_for(waiting, 5)

    assert run(case).segment == Segment(0, 0, 4)


def test_a_segment_of_a_dead_slot_goes_to_another_and_fails_only_when_no_epoch_comes_between() -> (
    None
):
    async def case(hub: Hub) -> Any:
        await hub.assign(work(segments=LONG[:1]), {})

        async def die(slot: str) -> None:
            await hub.here(slot, None)
            assert (await claim(hub, slot)).segment == LONG[0]
            await hub.died(slot, "RuntimeError: boom", "failed", True)

        for number in range(RETRIES):
            await die(f"early{number}")
        await hub.here("good", None)
        await claim(hub, "good")
        await hub.put("c000", epoch(0, 1))
        await hub.died("good", "RuntimeError: boom", "failed", True)
        for number in range(RETRIES - 1):
            await die(f"late{number}")
        said = await hub.drain(False)
        assert sum("again" in message for message in said.messages) == 2 * RETRIES
        await die("last")
        return await hub.rung("c000")

    result = run(case)
    assert (result["outcome"], result["reason"]) == ("failed", "RuntimeError: boom")


def test_an_epoch_that_comes_again_after_a_death_is_no_progress() -> None:
    async def case(hub: Hub) -> Any:
        await hub.assign(work(segments=LONG[:1]), {0: (1, {"dice": 0.5})})
        for number in range(RETRIES + 1):
            await hub.here(f"s{number}", None)
            await claim(hub, f"s{number}")
            await hub.put("c000", epoch(0, 1))
            await hub.died(f"s{number}", "boom", "failed", True)
        return await hub.rung("c000")

    assert run(case)["outcome"] == "failed"


def test_the_loss_of_a_node_counts_against_nobody() -> None:
    async def case(hub: Hub) -> int:
        await hub.assign(work(), {})
        for number in range(3 * RETRIES):
            await hub.here(f"s{number}", None)
            await claim(hub, f"s{number}")
            await hub.died(f"s{number}", "its node was taken back", "failed", False)
        return (await hub.drain(False)).tasks

    assert run(case) == 1


def test_slots_that_die_before_their_first_task_halt_the_search() -> None:
    async def case(hub: Hub) -> Any:
        await hub.assign(work(), {})
        for number in range(RETRIES + 1):
            await hub.died(f"s{number}", "OSError: no GPU", "halt", True)
        return await hub.rung("c000")

    result = run(case)
    assert (result["outcome"], result["reason"]) == ("halt", "OSError: no GPU")


def test_slots_that_die_on_a_new_node_do_not_halt_those_that_train() -> None:
    async def case(hub: Hub) -> int:
        await hub.assign(work(), {})
        await hub.here("good", None)
        await claim(hub, "good")
        for number in range(3 * RETRIES):
            await hub.died(f"s{number}", "OSError: no GPU", "halt", True)
        for number in range(1, 5):
            assert not await hub.put("c000", epoch(0, number))
        return (await claim(hub, "good", Ended())).segment.fold

    assert run(case) == 1


def test_workers_that_come_after_the_death_of_their_slot_get_nothing() -> None:
    async def case(hub: Hub) -> Any:
        await hub.assign(work(), {})
        await hub.died("a", "its controller was killed", "halt", True)
        await hub.here("a", None)
        said = await hub.drain(False)
        assert (said.here, said.idle) == (set(), 0)
        return await claim(hub, "a")

    assert run(case) is False


@pytest.mark.parametrize("reason", ["asked", "died"])
def test_a_stop_ends_at_once_what_no_slot_has_and_the_rest_after_its_epoch(reason: str) -> None:
    async def case(hub: Hub) -> list[str]:
        await hub.assign(work("c000"), {})
        await hub.assign(work("c001"), {})
        await hub.here("a", None)
        await claim(hub, "a")
        await hub.drain(True)
        waits = asyncio.ensure_future(hub.rung("c000"))
        free = await hub.rung("c001")
        assert not waits.done()
        assert await hub.put("c000", epoch(0, 1))
        if reason == "asked":
            await claim(hub, "a", Ended("interrupted"))
        else:
            await hub.died("a", "killed", "failed", True)
        return [(await waits)["outcome"], free["outcome"]]

    assert run(case) == ["interrupted", "interrupted"]


def test_a_failed_fold_ends_its_configuration_and_stops_its_other_folds() -> None:
    async def case(hub: Hub) -> Any:
        await hub.assign(work(runs=2), {})
        for slot in "ab":
            await hub.here(slot, None)
            await claim(hub, slot)
        await claim(hub, "a", Ended("failed", "loss must be finite"))
        await hub.drain(False)
        waits = asyncio.ensure_future(hub.rung("c000"))
        await asyncio.sleep(0)
        assert not waits.done()  # what another slot writes could be written after the end
        assert await hub.put("c000", epoch(1, 3))
        assert (await hub.drain(False)).messages == []
        await claim(hub, "b", Ended("interrupted"))
        return await waits

    result = run(case)
    assert (result["outcome"], result["reason"]) == ("failed", "loss must be finite")


def test_a_slot_that_has_grown_leaves_and_one_that_nobody_counts_on_is_sent_away() -> None:
    async def case(hub: Hub) -> None:
        await hub.assign(work(), {})
        await hub.here("a", None)
        await claim(hub, "a")
        assert await claim(hub, "a", Ended(), leaves=True) is False
        assert (await hub.drain(False)).here == set()
        assert await claim(hub, "late") is False

    run(case)


def test_a_slot_that_dies_while_it_waits_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "CLAIM_SECONDS", 60)

    async def case(hub: Hub) -> Any:
        await hub.here("a", None)
        waiting = asyncio.ensure_future(claim(hub, "a"))
        await asyncio.sleep(0)
        await hub.died("a", "killed", "failed", True)
        await hub.assign(work(), {})
        await asyncio.wait_for(waiting, 5)
        return (await hub.drain(False)).open

    assert run(case) == {"c000": 2}


def test_a_restarted_trial_hears_the_same_again() -> None:
    async def case(hub: Hub) -> list[Any]:
        await hub.assign(work(segments=()), {})
        await hub.here("a", None)
        await claim(hub, "a")
        await claim(hub, "a", Ended())
        return [await hub.rung("c000"), await hub.rung("c000")]

    first, second = run(case)
    assert first == second
    assert first["outcome"] == "done"
