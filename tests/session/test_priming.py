"""Priming: real steps before the clock starts, of which nothing is left; and what the published runs left."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.averaging import Averages
from golf.checkpoint import load_checkpoint
from golf.optim.optimizer import Optimizer
from golf.saver import Clock
from tests.session_tools import Place, cut_back, digests, watch_visits

PRIMED = "run.priming_steps=2"
STALE = "compat.stale_muon_momentum=true"


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return watch_visits(monkeypatch)


def test_a_primed_run_has_the_bits_of_one_without(place: Place) -> None:
    place.start("primed", PRIMED)
    assert digests(place.run("primed")) == digests(place.run("done"))


def test_priming_runs_with_the_loop_off_and_then_on_before_the_training(place: Place, visits: list[int]) -> None:
    place.start("primed", PRIMED)
    assert visits[3:] == 2 * [4] + 3 * [6] + 7 * [4] + 13 * [6]  # three are the rehearsal's, the third [6] late QAT's


def test_without_a_loop_priming_has_one_part(place: Place, visits: list[int]) -> None:
    short = ("schedule.iterations=2", "average.shadow_snapshots=0")
    place.start("primed", PRIMED, "model.loop=false", "schedule.loop_at=false", *short)
    assert visits[3:] == 2 * [4] + [4] + 2 * [4]  # late QAT's between


def test_priming_steps_are_optimizer_steps_at_the_full_rate_with_the_first_momenta(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[dict[str, float]] = []
    step = Optimizer.step

    def watched(optimizer: Optimizer, **values: float) -> Tensor:
        taken.append(values)
        return step(optimizer, **values)

    monkeypatch.setattr(Optimizer, "step", watched)
    place.start("primed", PRIMED)
    momenta = [0.85, 0.85 + 0.1 / 3]
    assert [values["lr_multiplier"] for values in taken[:4]] == 4 * [1.0]
    assert [values["momentum"] for values in taken[:4]] == pytest.approx(2 * momenta)


def test_a_resumed_run_is_primed_and_goes_on_with_the_same_bits(place: Place, visits: list[int]) -> None:
    place.start("primed", PRIMED)
    cut_back(place, "primed", "pre_qat")
    visits.clear()
    place.resume("primed")
    assert visits == 2 * [4] + 3 * [6] + 4 * [6]
    assert digests(place.run("primed")) == digests(place.run("done"))


def test_priming_is_over_before_the_clock_starts_and_no_average_sees_it(
    place: Place, visits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    updates: list[int] = []
    begin, update = Clock.__init__, Averages.update

    def started(clock: Clock, elapsed_seconds: float, **values: Any) -> None:
        starts.append(len(visits))
        begin(clock, elapsed_seconds, **values)

    def updated(averages: Averages, **values: Any) -> None:
        updates.append(len(visits))
        update(averages, **values)

    monkeypatch.setattr(Clock, "__init__", started)
    monkeypatch.setattr(Averages, "update", updated)
    place.start("primed", PRIMED)
    assert starts == [3 + 5]
    assert updates == list(range(3 + 5 + 1, 3 + 5 + 20 + 1))


def test_stale_momentum_is_all_that_differs_at_the_start_and_it_changes_the_steps(place: Place) -> None:
    place.start("stale", PRIMED, STALE)
    fresh, stale = (load_checkpoint(place.run(name) / "init.json").all_tensors() for name in ("done", "stale"))
    differing = {name for name in fresh if not torch.equal(fresh[name], stale[name])}
    assert fresh.keys() == stale.keys()
    assert differing == {name for name in fresh if name.startswith("optim/muon/")}
    assert all(name.endswith("/momentum") for name in differing)
    assert digests(place.run("stale"))["momentum_full"] != digests(place.run("done"))["momentum_full"]


def test_a_run_resumed_from_its_stale_start_goes_on_as_if_not_interrupted(place: Place) -> None:
    place.start("stale", PRIMED, STALE)
    shutil.copytree(place.run("stale"), place.run("again"))
    cut_back(place, "again", "init")
    place.resume("again@init")
    assert digests(place.run("again")) == digests(place.run("stale"))
