"""The schedule by its published values, and each boundary named once however the clock moves."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from torch import nn

from golf.averaging import Averages
from golf.config import Recipe
from golf.schedule import Moment, boundaries, lr_multiplier, moment, muon_momentum, progress_of, shadow_index
from golf.training_config import AverageConfig, ScheduleConfig
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


def test_a_warmdown_of_steps_without_a_clock_is_that_many_of_the_iterations() -> None:
    schedule = ScheduleConfig(iterations=50, warmdown_steps=20)
    found = [lr_multiplier(schedule, step / 50, step=step) for step in range(51)]
    assert found == pytest.approx([min((50 - step) / 20, 1.0) for step in range(51)], rel=1e-12)


def test_a_warmdown_of_steps_on_a_clock_lasts_their_mean_time_so_far() -> None:
    """R = cap - elapsed; W = steps elapsed / step; R / W once R <= W."""
    schedule = ScheduleConfig(iterations=1, warmdown_steps=30, max_seconds=110, reserve_seconds=10)
    for step, elapsed in ((1, 0.5), (40, 60.0), (40, 56.0), (90, 75.0), (90, 70.0), (99, 99.5), (100, 100.5)):
        left, lasts = 100 - elapsed, 30 * elapsed / step
        expected = max(left, 0) / lasts if left <= lasts else 1.0
        assert lr_multiplier(schedule, elapsed / 100, step=step) == pytest.approx(expected, rel=1e-12)


def test_a_warmdown_of_steps_has_the_floor_too() -> None:
    schedule = ScheduleConfig(iterations=10, warmdown_steps=5, min_lr=0.3)
    assert [lr_multiplier(schedule, step / 10, step=step) for step in (5, 7, 9, 10)] == [
        1.0,
        pytest.approx(0.6),
        0.3,
        0.3,
    ]


@pytest.mark.parametrize(("step", "elapsed"), [(1, 0.1), (1, 5.0), (100, 50.0), (10, 50.0), (50, 79.0), (9, 90.0)])
def test_of_two_warmdowns_the_shorter_holds(step: int, elapsed: float) -> None:
    by_steps, by_fraction, both = (
        ScheduleConfig(iterations=1, max_seconds=100, **given)
        for given in (
            {"warmdown_steps": 30},
            {"warmdown_fraction": 0.5},
            {"warmdown_steps": 30, "warmdown_fraction": 0.5},
        )
    )
    found = [lr_multiplier(schedule, elapsed / 100, step=step) for schedule in (by_steps, by_fraction, both)]
    assert found[2] == max(found[:2])


def test_without_a_step_a_clocked_warmdown_is_foretold_by_its_fraction_or_else_its_iterations() -> None:
    schedule = ScheduleConfig(iterations=100, max_seconds=9, warmdown_steps=30, warmdown_fraction=0.5)
    assert lr_multiplier(schedule, 0.75) == pytest.approx(0.5)
    schedule = ScheduleConfig(iterations=100, max_seconds=9, warmdown_steps=50)
    assert lr_multiplier(schedule, 0.75) == pytest.approx(0.5)


def published(step_seconds: float, *overrides: str, warmdown: int = 3500) -> tuple[list[Moment], list[int]]:
    """The moment of every step of a 600 s run of even steps, and the steps after which a snapshot was averaged."""
    recipe = pico_recipe(
        *("schedule.iterations=20000", "schedule.max_seconds=600", "schedule.warmdown_fraction=0"),
        *(f"schedule.warmdown_steps={warmdown}", "average.swa_every=50", "average.swa_below=0.2", *overrides),
    )
    averages = Averages(nn.Linear(1, 1), AverageConfig(swa_every=50, swa_below=0.2, use="swa", shadows=()))
    moments: list[Moment] = []
    snapshots: list[int] = []
    while not (now := _next(recipe, moments, step_seconds)).done:
        moments.append(now)
        averages.update(step=len(moments), lr_multiplier=now.lr_multiplier)
        if averages.swa_count > len(snapshots):
            snapshots.append(len(moments))
    return moments, snapshots


def _next(recipe: Recipe, moments: list[Moment], step_seconds: float) -> Moment:
    step, began = len(moments), bool(moments) and moments[-1].late_qat
    return moment(recipe, step=step, elapsed_seconds=step * step_seconds, qat_began=began)


def first(moments: list[Moment], holds: Callable[[Moment], bool]) -> int:
    return next(now.step for now in moments if holds(now))


def test_the_published_401_run_has_its_steps_warmdown_snapshots_and_late_qat() -> None:
    moments, snapshots = published(0.08565, "schedule.late_qat_below=0.15")
    assert len(moments) == 7006
    assert first(moments, lambda now: now.lr_multiplier < 1) == 3506
    assert snapshots == list(range(6350, 7001, 50))
    assert len(snapshots) == 14
    assert first(moments, lambda now: now.late_qat) == 6481


def test_the_published_374_run_has_its_snapshots_and_late_qat() -> None:
    moments, snapshots = published(0.0864, "schedule.late_qat_below=0.1", warmdown=3000)
    assert snapshots == list(range(6350, 6901, 50))
    assert len(snapshots) == 12
    assert first(moments, lambda now: now.late_qat) == 6645


def test_on_one_gpu_the_warmdown_of_steps_starts_already_decayed() -> None:
    moments, snapshots = published(0.685, "schedule.late_qat_below=0.15")
    assert [round(now.lr_multiplier, 3) for now in moments[:2]] == [1.0, 0.25]
    assert len(moments) == 876
    assert snapshots[0] == 200
    assert first(moments, lambda now: now.late_qat) == 351


def test_with_the_fraction_too_one_gpu_decays_over_the_second_half_and_the_published_run_is_as_it_was() -> None:
    both = ("schedule.warmdown_fraction=0.5", "schedule.late_qat_below=0.15")
    moments, _ = published(0.685, *both)
    assert first(moments, lambda now: now.lr_multiplier < 1) == 438  # 300.03 s
    moments, snapshots = published(0.08565, *both)
    assert (moments, snapshots) == published(0.08565, "schedule.late_qat_below=0.15")


def test_late_qat_stays_on_where_the_multiplier_of_a_warmdown_of_steps_rises_again() -> None:
    recipe = pico_recipe(
        *("schedule.max_seconds=100", "schedule.warmdown_fraction=0", "schedule.warmdown_steps=30"),
        "schedule.late_qat_below=0.5",
    )
    slow = moment(recipe, step=20, elapsed_seconds=60.0)
    assert (round(slow.lr_multiplier, 3), slow.late_qat) == (0.444, True)
    assert moment(recipe, step=30, elapsed_seconds=61.0).lr_multiplier > 0.5
    assert moment(recipe, step=30, elapsed_seconds=61.0, qat_began=True).late_qat


@pytest.mark.parametrize(("step", "expected"), [(0, 0.92), (375, 0.9325), (750, 0.945), (1500, 0.97), (9000, 0.97)])
def test_momentum_rises_linearly_and_stays(step: int, expected: float) -> None:
    optim = pico_recipe("optim.momentum=0.97", "optim.momentum_start=0.92", "optim.momentum_warmup_steps=1500").optim
    assert muon_momentum(optim, step) == pytest.approx(expected)


def test_momentum_without_a_warm_up_is_full_at_once() -> None:
    assert muon_momentum(pico_recipe("optim.momentum_warmup_steps=0", "optim.momentum_start=0.95").optim, 0) == 0.95


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
