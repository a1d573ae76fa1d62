"""The schedule by its published values, and each boundary named once however the clock moves."""

import random
from itertools import pairwise

import pytest

from golf.config import Recipe, ScheduleConfig
from golf.schedule import Moment, boundaries, lr_multiplier, moment, muon_momentum, progress_of, shadow_index
from tests.pico import pico_recipe


@pytest.mark.parametrize(
    ("warmdown", "progress", "expected"),
    [
        (0.75, 0.0, 1.0),
        (0.75, 0.25, 1.0),
        (0.75, 0.3, 0.933333),
        (0.75, 0.5, 0.666667),
        (0.75, 0.9, 0.133333),
        (0.75, 0.925, 0.1),
        (0.75, 1.0, 0.1),
        (0.75, 1.3, 0.1),
        (0.85, 0.2, 0.941176),
        (0.85, 0.5, 0.588235),
        (0.85, 0.915, 0.1),
    ],
)
def test_the_multiplier_has_the_published_values(warmdown: float, progress: float, expected: float) -> None:
    schedule = ScheduleConfig(iterations=1, warmdown_fraction=warmdown, min_lr=0.1)
    assert lr_multiplier(schedule, progress) == pytest.approx(expected, abs=5e-7)


def test_without_a_warmdown_the_rate_stays() -> None:
    assert {lr_multiplier(ScheduleConfig(iterations=1), progress / 10) for progress in range(11)} == {1.0}


def test_a_warmdown_over_the_whole_run_starts_at_once() -> None:
    schedule = ScheduleConfig(iterations=1, warmdown_fraction=1.0)
    assert [lr_multiplier(schedule, progress) for progress in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("iterations", [10, 20, 60, 400, 423])
def test_the_multiplier_is_never_above_one(iterations: int) -> None:
    for percent in range(1, 101):
        schedule = ScheduleConfig(iterations=iterations, warmdown_fraction=percent / 100)
        assert max(lr_multiplier(schedule, step / iterations) for step in range(iterations + 1)) == 1.0


@pytest.mark.parametrize(("step", "expected"), [(0, 0.92), (375, 0.9325), (750, 0.945), (1500, 0.97), (9000, 0.97)])
def test_momentum_rises_linearly_and_stays(step: int, expected: float) -> None:
    optim = pico_recipe("optim.momentum=0.97", "optim.momentum_start=0.92", "optim.momentum_warmup_steps=1500").optim
    assert muon_momentum(optim, step) == pytest.approx(expected)


def test_momentum_without_a_warm_up_is_full_at_once() -> None:
    assert muon_momentum(pico_recipe("optim.momentum_warmup_steps=0").optim, 0) == 0.95


def test_progress_is_the_share_of_steps_without_a_clock() -> None:
    assert progress_of(ScheduleConfig(iterations=8), step=3, elapsed_seconds=99.0) == 0.375


def test_progress_is_the_share_of_the_clocks_budget_with_one() -> None:
    schedule = ScheduleConfig(iterations=8, max_seconds=600, reserve_seconds=100)
    assert progress_of(schedule, step=3, elapsed_seconds=125.0) == 0.25


CLOCKED = ("schedule.max_seconds=100", "schedule.iterations=1000", "average.shadow_snapshots=5")


def by_steps(recipe: Recipe) -> list[Moment]:
    """Every moment of a run that counts steps."""
    return [moment(recipe, step=step, elapsed_seconds=0) for step in range(recipe.schedule.iterations + 1)]


def by_clock(recipe: Recipe, seed: int) -> list[Moment]:
    """Every moment of a run whose steps last from nothing to a fifth of the budget."""
    choose, now, step = random.Random(seed), 0.0, 0
    moments = [moment(recipe, step=0, elapsed_seconds=0.0)]
    while not moments[-1].done:
        step, now = step + 1, now + choose.choice([0.01, 0.5, 3.0, 20.0])
        moments.append(moment(recipe, step=step, elapsed_seconds=now))
    return moments


def named(recipe: Recipe, moments: list[Moment]) -> list[tuple[str, Moment]]:
    """The boundaries that the run names, each with its moment."""
    steps = [(None, moments[0]), *pairwise(moments)]
    return [(name, now) for before, now in steps for name in boundaries(recipe, before, now)]


FULL = (
    "schedule.min_lr=0.15",
    "schedule.late_qat_below=0.3",
    "run.checkpoints=['step_3', 'frac_25', 'frac_90', 'frac_100']",
)
IN_ORDER = [
    ("init", 0),
    ("step_3", 3),
    ("momentum_full", 4),
    ("frac_25", 5),
    ("pre_loop", 7),  # 0.35 * 20
    ("warmdown_start", 11),  # the first step below 1
    ("pre_qat", 18),  # 4/20 over 0.5 is 0.4 at step 16 and 0.3 at step 17, which is not below
    ("frac_90", 18),
    ("lr_floor", 19),  # 0.1 is below the floor
    ("frac_100", 20),
]


def test_a_run_by_steps_names_each_boundary_at_its_step() -> None:
    recipe = pico_recipe(*FULL)
    assert [(name, now.step) for name, now in named(recipe, by_steps(recipe))] == IN_ORDER


@pytest.mark.parametrize("seed", range(8))
def test_a_jumping_clock_names_each_boundary_once_and_misses_none(seed: int) -> None:
    recipe = pico_recipe(*FULL, *CLOCKED, "optim.momentum_warmup_steps=2", "run.checkpoints=['frac_25', 'frac_90']")
    expected = {"init", "momentum_full", "warmdown_start", "pre_loop", "pre_qat", "lr_floor", "frac_25", "frac_90"}
    found = [name for name, _ in named(recipe, by_clock(recipe, seed))]
    assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_boundary_holds_the_state_before_its_phase_begins(seed: int) -> None:
    recipe = pico_recipe(*FULL, *CLOCKED, "run.checkpoints=['frac_25', 'frac_90']")
    moments = by_clock(recipe, seed)
    at = dict(named(recipe, moments))
    assert at["pre_loop"] == next(now for now in moments if now.looping)
    assert at["pre_qat"] == next(now for now in moments if now.late_qat)
    assert at["warmdown_start"] == next(now for now in moments if now.lr_multiplier < 1)
    assert at["lr_floor"] == next(now for now in moments if now.lr_multiplier == 0.15)
    assert at["frac_25"] == next(now for now in moments if now.progress >= 0.25)


@pytest.mark.parametrize("iterations", [10, 20, 60, 400])
@pytest.mark.parametrize("warmdown", [0.05, 0.3, 0.7, 0.9])
def test_the_warmdown_is_never_missed(iterations: int, warmdown: float) -> None:
    recipe = pico_recipe(f"schedule.iterations={iterations}", f"schedule.warmdown_fraction={warmdown}")
    assert [name for name, _ in named(recipe, by_steps(recipe))].count("warmdown_start") == 1


def test_late_qat_begins_below_its_threshold_not_at_it() -> None:
    recipe = pico_recipe("schedule.iterations=8", "schedule.late_qat_below=0.5")
    assert [(now.lr_multiplier, now.late_qat) for now in by_steps(recipe)[5:8]] == [
        (0.75, False),
        (0.5, False),
        (0.25, True),
    ]


def test_the_loop_and_late_qat_stay_on() -> None:
    recipe = pico_recipe(*FULL)
    moments = by_steps(recipe)
    assert [now.looping for now in moments] == 7 * [False] + 14 * [True]
    assert [now.late_qat for now in moments] == 18 * [False] + 3 * [True]


@pytest.mark.parametrize(("step", "elapsed", "done"), [(19, 0.0, False), (20, 0.0, True), (21, 0.0, True)])
def test_a_run_by_steps_ends_with_its_iterations(step: int, elapsed: float, done: bool) -> None:
    assert moment(pico_recipe(), step=step, elapsed_seconds=elapsed).done is done


@pytest.mark.parametrize(("step", "elapsed", "done"), [(5, 99.9, False), (5, 100.0, True), (1000, 1.0, True)])
def test_a_run_by_clock_ends_with_its_budget_or_its_iterations(step: int, elapsed: float, done: bool) -> None:
    assert moment(pico_recipe(*CLOCKED), step=step, elapsed_seconds=elapsed).done is done


def snapshots(recipe: Recipe, moments: list[Moment]) -> list[tuple[int, Moment]]:
    found = [(shadow_index(recipe, before, now), now) for before, now in pairwise(moments)]
    return [(index, now) for index, now in found if index is not None]


@pytest.mark.parametrize(("iterations", "count"), [(20, 4), (400, 8), (600, 16), (100, 100), (29, 7), (59, 58), (7, 9)])
def test_snapshots_by_steps_are_equally_spaced_and_counted_once(iterations: int, count: int) -> None:
    recipe = pico_recipe(f"schedule.iterations={iterations}", f"average.shadow_snapshots={count}")
    expected: dict[int, int] = {}  # step -> the last snapshot that has fallen due by it; the end is final_raw's
    for index in range(1, count):
        expected[-(-index * iterations // count)] = index
    expected.pop(iterations, None)
    assert [(now.step, index) for index, now in snapshots(recipe, by_steps(recipe))] == list(expected.items())


@pytest.mark.parametrize("seed", range(8))
def test_snapshots_by_clock_rise_and_lie_where_they_fell_due(seed: int) -> None:
    recipe = pico_recipe(*CLOCKED)
    found = snapshots(recipe, by_clock(recipe, seed))
    indices = [index for index, _ in found]
    assert indices == sorted(set(indices))
    assert indices
    assert all(index / 5 <= now.progress < (index + 1) / 5 for index, now in found)


def test_without_snapshots_none_falls_due() -> None:
    recipe = pico_recipe("average.shadow_snapshots=0")
    assert snapshots(recipe, by_steps(recipe)) == []
