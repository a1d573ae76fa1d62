"""What thirty steps say of a whole run."""

from pathlib import Path

import pytest
import torch

from golf.bench import preflight
from golf.bench.preflight import foresee_run
from golf.bench.training import Laps
from golf.distributed import World, single_world
from golf.model.plan import LayerPlan, plan_layers
from golf.train_state import TrainState
from tests.bench.test_training import pico_state

CLOCKED = ("schedule.iterations=1000", "schedule.max_seconds=40.0", "schedule.reserve_seconds=2.0")


def foreseen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, steps: int = 30
) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """The figures and times found with steps of a half second, of two with the loop on; visits and number of each."""
    taken: list[tuple[int, int]] = []

    def slowly(state: TrainState, plan: LayerPlan, world: World, count: int) -> Laps:
        taken.append((len(plan.visits), count))
        share = 0.25 if len(plan.visits) == 4 else 1.0
        return {"forward + backward": count * [share], "optimizer": count * [share]}

    monkeypatch.setattr(preflight, "take_steps", slowly)
    world = single_world(torch.device("cpu"))
    with pico_state(folder, world, *overrides) as state:
        plans = {looping: plan_layers(state.recipe.model, looping=looping) for looping in (False, True)}
        found = foresee_run(state, plans, world, steps=steps)
    times = {one.name: one.seconds for one in found.measurements}
    return times | {figure.name: figure.value for figure in found.figures}, taken


def test_half_of_the_steps_have_the_loop_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, taken = foreseen(tmp_path, monkeypatch, *CLOCKED)
    assert taken == [(4, 15), (6, 15)]
    assert (values["preflight/loop off"], values["preflight/loop on"]) == (0.5, 2.0)


def test_the_clock_of_the_recipe_says_how_many_steps_there_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, _ = foreseen(tmp_path, monkeypatch, *CLOCKED)
    # 38 s: the loop begins at 0.35 of them, after 27 steps of half a second; 13 of two seconds reach the end
    assert values["preflight/steps of a run"] == 27 + 13
    assert values["preflight/seconds of a run"] == 27 * 0.5 + 13 * 2.0
    assert values["preflight/tokens of a run"] == 40 * 256
    assert values["preflight/throughput"] == pytest.approx(40 * 256 / 39.5)


def test_without_a_loop_all_steps_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, taken = foreseen(tmp_path, monkeypatch, *CLOCKED, "model.loop=false", "schedule.loop_at=false")
    assert taken == [(4, 30)]
    assert values["preflight/steps of a run"] == 76


def test_one_step_is_enough_for_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, taken = foreseen(tmp_path, monkeypatch, *CLOCKED, steps=1)
    assert taken == [(4, 1), (6, 1)]
