"""The training clock: it counts training alone, stops a run that has a time limit, and goes on in a resumed one."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from golf.averaging import Averages
from golf.checkpoint import CheckpointWriter, boundaries
from golf.distributed import World
from golf.log import read_events
from golf.saver import Clock
from golf.train_state import TrainState
from tests.session_tools import CPU, SHADOW_STEPS, STEPS, Place


class Time:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Time:
    hands = Time()
    monkeypatch.setattr("golf.saver.time", hands)
    return hands


@pytest.fixture
def step_seconds(hands: Time, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every optimizer step takes the seconds in this list's one place."""
    update, seconds = Averages.update, [1.0]

    def timed(averages: Averages, **values: object) -> None:
        hands.now += seconds[0]
        update(averages, **values)  # type: ignore[arg-type]  # passes on what it was given

    monkeypatch.setattr(Averages, "update", timed)
    return seconds


def test_the_clock_goes_on_from_where_it_is_set(hands: Time) -> None:
    clock = Clock(5.0)
    hands.now += 2.0
    assert clock.elapsed_seconds == 7.0


def test_a_paused_clock_stands_still_and_goes_on(hands: Time) -> None:
    clock = Clock(0.0)
    hands.now += 3.0
    with clock.paused():
        assert clock.elapsed_seconds == 3.0
        hands.now += 50.0
        assert clock.elapsed_seconds == 3.0
    hands.now += 1.0
    assert clock.elapsed_seconds == 4.0


def test_a_clock_goes_on_after_an_error_in_the_pause(hands: Time) -> None:
    clock = Clock(0.0)
    with contextlib.suppress(ZeroDivisionError), clock.paused():
        hands.now += 9.0
        raise ZeroDivisionError
    hands.now += 1.0
    assert clock.elapsed_seconds == 1.0


def test_the_seconds_of_a_boundary_lie_between_those_of_the_steps_around_it(finished: Place) -> None:
    events = [event for event in read_events(finished.run("done") / "events.jsonl") if event["event"] == "train"]
    steps = {event["step"]: event["elapsed_seconds"] for event in events}
    for manifest in boundaries(finished.run("done")):
        before = [seconds for step, seconds in steps.items() if step <= manifest.step]
        after = [seconds for step, seconds in steps.items() if step > manifest.step]
        assert max(before, default=0.0) <= manifest.elapsed_seconds + 0.001  # events are rounded to a millisecond
        assert manifest.elapsed_seconds <= min(after, default=manifest.elapsed_seconds) + 0.001


def test_gathering_and_handing_over_checkpoints_is_not_training_time(
    place: Place, hands: Time, step_seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (
        (TrainState, "tensors"),
        (Averages, "shadow_state"),
        (CheckpointWriter, "submit"),
        (CheckpointWriter, "settle"),
    )
    for owner, name in slow:
        monkeypatch.setattr(owner, name, taking(50.0, getattr(owner, name), hands))
    assert place.start("slow")["train_seconds"] == 20.0  # a second a step
    assert hands.now > 100 + 50 * (len(STEPS) + len(SHADOW_STEPS))
    for manifest in boundaries(place.run("slow")):
        assert manifest.elapsed_seconds == manifest.step


def taking(seconds: float, work: Callable[..., Any], hands: Time) -> Callable[..., Any]:
    def slow(*args: Any, **values: Any) -> Any:
        hands.now += seconds
        return work(*args, **values)

    return slow


def test_a_run_with_a_time_limit_is_stopped_by_the_clock(place: Place, step_seconds: list[float]) -> None:
    limits = ("schedule.iterations=1000", "schedule.max_seconds=12", "schedule.reserve_seconds=2")
    summary = place.start("timed", *limits)
    assert summary["steps"] == 10  # one second each, and two of twelve are kept in reserve
    assert summary["train_seconds"] == 10.0
    found = {manifest.boundary: manifest for manifest in boundaries(place.run("timed"))}
    assert found["pre_loop"].step == 4  # the first at or over 35 % of ten seconds
    assert found["pre_loop"].progress == 0.4
    assert {name: manifest.elapsed_seconds for name, manifest in found.items()} == {
        name: float(manifest.step) for name, manifest in found.items()
    }


def test_a_resumed_run_goes_on_with_the_elapsed_time(place: Place, step_seconds: list[float]) -> None:
    place.start("timed", "schedule.iterations=1000", "schedule.max_seconds=10")
    step_seconds[0] = 2.0
    summary = place.resume("timed@pre_loop", force=True)
    assert (summary["steps"], summary["train_seconds"]) == (4 + 3, 10.0)


def test_where_the_clock_jumps_no_boundary_is_missed(place: Place, step_seconds: list[float]) -> None:
    step_seconds[0] = 6.0
    place.start("jump", "schedule.iterations=1000", "schedule.max_seconds=10", 'run.checkpoints=["frac_30"]')
    assert {manifest.boundary: manifest.step for manifest in boundaries(place.run("jump"))} == {
        "init": 0,
        "warmdown_start": 1,
        "pre_loop": 1,
        "frac_30": 1,
        "pre_qat": 2,
        "lr_floor": 2,
        "final_raw": 2,
        "final_ema": 2,
    }


class Behind(World):
    """A rank whose clock shows half of what rank 0's shows."""

    def agree(self, values: Sequence[float], *, limit_seconds: float = 0.0) -> list[float]:
        """Answer for rank 0 when asked for the clock and the stop."""
        return [2 * values[0], values[1]] if len(values) == 2 else list(values)


@pytest.mark.parametrize(("clock", "share"), [("rank0", 1.0), ("rank", 0.5)])
def test_the_clock_of_each_rank_sets_its_rates_and_loop_only_if_asked_and_never_the_stop(
    place: Place, step_seconds: list[float], clock: str, share: float
) -> None:
    limits = ("schedule.iterations=1000", "schedule.max_seconds=40", "run.log_every=1", "schedule.late_qat_below=0.7")
    summary = place.start("two", f"compat.clock={clock}", *limits, world=Behind(0, 1, 0, CPU))
    assert summary["steps"] == 20  # rank 0's 40 seconds
    events = [event for event in read_events(place.run("two") / "events.jsonl") if event["event"] == "train"]
    assert len(events) == 20
    for taken, event in enumerate(events):  # the step after `taken` ones
        progress = share * taken / 20
        multiplier = max(min((1 - progress) / 0.5, 1.0), 0.25)
        assert event["lr_multiplier"] == pytest.approx(multiplier)
        assert event["looping"] == (progress >= 0.35)
    assert {manifest.boundary: manifest.step for manifest in boundaries(place.run("two"))}["pre_loop"] == 7


def test_what_is_queued_is_done_before_the_clock_stops(hands: Time) -> None:
    def settle() -> None:
        hands.now += 2.0

    clock = Clock(0.0, settle=settle)
    hands.now += 1.0
    with clock.paused():
        assert clock.elapsed_seconds == 3.0


def test_all_ranks_wait_while_rank_0_saves(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    standing: list[Clock] = []
    begin = Clock.__init__

    def started(clock: Clock, elapsed_seconds: float, **values: Any) -> None:
        standing.append(clock)
        begin(clock, elapsed_seconds, **values)

    monkeypatch.setattr(Clock, "__init__", started)
    monkeypatch.setattr(World, "barrier", lambda world: waits.append(bool(standing) and standing[0]._stands))
    place.start("waiting")
    saves = len(set(STEPS.values()))
    assert waits.count(True) == saves + len(SHADOW_STEPS)
