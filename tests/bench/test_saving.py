"""What checkpoints and averages cost a whole run: a walk through the schedule, and saves as training makes them."""

from pathlib import Path

import pytest
import torch

from golf.bench.findings import Findings
from golf.bench.saving import Forecast, forecast_run, time_saving
from golf.checkpoint import boundaries, load_checkpoint
from golf.config import Recipe
from golf.distributed import single_world
from golf.log import Log
from golf.recipe import load_recipe
from tests.bench.test_training import pico_state
from tests.pico import pico_recipe

CPU = torch.device("cpu")
STEP_SECONDS = {False: 0.5, True: 2.0}


def clocked(*overrides: str) -> Recipe:
    return pico_recipe("schedule.max_seconds=100", "schedule.iterations=1000", *overrides)


def test_a_run_of_iterations_takes_all_of_them_longer_ones_once_the_loop_is_on() -> None:
    run = forecast_run(pico_recipe(), STEP_SECONDS)
    assert (run.steps, run.seconds) == (20, 7 * 0.5 + 13 * 2.0)  # the loop goes on at 35 % of 20 steps


def test_a_run_on_the_clock_ends_when_its_time_is_over() -> None:
    run = forecast_run(clocked(), STEP_SECONDS)
    assert (run.steps, run.seconds) == (70 + 33, 35 + 66)  # the loop goes on after 35 of 100 seconds


def test_every_boundary_is_a_save_two_on_one_step_are_one_and_the_finished_state_is_one_more() -> None:
    # init, momentum_full, pre_loop, warmdown_start, pre_qat, frac_50 with the latter but one, and final_raw
    recipe = pico_recipe('run.checkpoints=["frac_50","step_6"]')
    plain = forecast_run(pico_recipe(), STEP_SECONDS).saves
    assert plain == len({"init", "momentum_full", "pre_loop", "warmdown_start", "pre_qat", "final_raw"})
    assert forecast_run(recipe, STEP_SECONDS).saves == plain + 2


def test_shadow_snapshots_within_the_run_are_counted_apart() -> None:
    assert forecast_run(pico_recipe(), STEP_SECONDS).shadows == 3
    assert forecast_run(pico_recipe("average.shadow_snapshots=0"), STEP_SECONDS).shadows == 0


def test_the_record_takes_as_many_steps_as_were_published_at_their_speed() -> None:
    run = forecast_run(load_recipe("pr1787"), {False: 0.0960, True: 0.1405})
    assert run.steps == pytest.approx(4961, rel=0.02)
    assert run.seconds == pytest.approx(599.5, abs=0.2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    folder, world = tmp_path_factory.mktemp("saving"), single_world(CPU)
    with pico_state(folder / "data", world) as state, Log() as log:
        return folder / "run", time_saving(state, world, log, folder / "run", step_seconds=STEP_SECONDS)


def test_whole_checkpoints_are_written_as_training_writes_them(saved: tuple[Path, Findings]) -> None:
    folder, found = saved
    made = boundaries(folder)
    assert sorted(one.boundary for one in made) == ["bench_0", "bench_1", "bench_2"]
    tensors = load_checkpoint(folder / "bench_2.json").all_tensors()
    assert {name.split("/")[0] for name in tensors} == {"model", "ema", "swa", "shadow", "optim"}
    (size,) = [one.value for one in found.figures if one.name == "checkpoint/size"]
    assert size == made[0].data_bytes


def test_gathering_writing_shadows_and_averages_are_timed(saved: tuple[Path, Findings]) -> None:
    times = {one.name: one for one in saved[1].measurements}
    names = ["gather", "write", "gather shadows", "update averages"]
    assert list(times) == [f"checkpoint/{name}" for name in names]
    assert all(one.seconds > 0 for one in times.values())
    assert times["checkpoint/gather"].count == times["checkpoint/write"].count == 3


def test_shares_are_costs_times_their_number_over_the_run(saved: tuple[Path, Findings]) -> None:
    times = {one.name.removeprefix("checkpoint/"): one.seconds for one in saved[1].measurements}
    figures = {one.name.removeprefix("checkpoint/"): one.value for one in saved[1].figures}
    run = forecast_run(pico_recipe(), STEP_SECONDS)
    assert run == Forecast(steps=20, seconds=29.5, saves=6, shadows=3)
    gathering = (6 * times["gather"] + 3 * times["gather shadows"]) / 29.5
    assert figures["share of a run, gathering"] == pytest.approx(100 * gathering, rel=1e-12)
    assert figures["share of a run, averages"] == pytest.approx(100 * 20 * times["update averages"] / 29.5, rel=1e-12)
    assert (figures["steps of a run"], figures["saves of a run"]) == (20, 9)
