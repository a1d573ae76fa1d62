"""Learning rate, momentum, loop switch and averages of the reference."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golf.averaging import Averages
from golf.schedule import lr_multiplier, moment, muon_momentum
from golf.training_config import AverageConfig, ScheduleConfig
from tests.parity.fixture_set import read_fixture
from tests.pico import pico_recipe

Recorded = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture
def recorded(fixtures: Path) -> Recorded:
    return read_fixture(fixtures, "schedule")


def test_the_multiplier_follows_the_recorded_tables(recorded: Recorded) -> None:
    values = recorded[0]
    rtol = values["tolerances"]["schedule"]["rtol"]
    assert len(values["lr"]) >= 2
    for table in values["lr"]:
        decays = table["warmdown_frac"] > 0  # golf refuses a floor that nothing falls to
        floor = table["min_lr"] if decays else 0.0
        schedule = ScheduleConfig(iterations=1, warmdown_fraction=table["warmdown_frac"], min_lr=floor)
        found = [lr_multiplier(schedule, fraction) for fraction in table["frac"]]
        assert found == pytest.approx(table["lr_mul"], rel=rtol), table["name"]


def test_the_older_form_by_iterations_follows_the_recorded_table(recorded: Recorded) -> None:
    """At its end the recorded function returns 1 again; no step is taken there, and golf's stays at 0."""
    values = recorded[0]
    table, rtol = values["lr_old_by_iterations"], values["tolerances"]["schedule"]["rtol"]
    total = table["iterations"]
    schedule = ScheduleConfig(iterations=total, warmdown_steps=table["warmdown_iters"])
    pairs = [(step, mul) for step, mul in zip(table["step"], table["lr_mul"], strict=True) if step < total]
    assert len(pairs) > 5
    for step, expected in pairs:
        assert lr_multiplier(schedule, step / total, step=step) == pytest.approx(expected, rel=rtol), step
    assert lr_multiplier(schedule, 1.0, step=total) == 0.0


def test_the_older_form_by_wall_clock_follows_the_recorded_table(recorded: Recorded) -> None:
    values = recorded[0]
    table, rtol = values["lr_old_by_wallclock"], values["tolerances"]["schedule"]["rtol"]
    seconds = table["max_wallclock_ms"] / 1000
    recipe = pico_recipe(
        *("schedule.iterations=1000000", "schedule.warmdown_fraction=0", f"schedule.max_seconds={seconds}"),
        *(f"schedule.warmdown_steps={table['warmdown_iters']}", "schedule.late_qat_below=0"),
    )
    moments = [moment(recipe, step=step, elapsed_seconds=elapsed / 1000) for step, elapsed in table["step_elapsed_ms"]]
    assert len(moments) > 5
    assert [now.lr_multiplier for now in moments] == pytest.approx(table["lr_mul"], rel=rtol)


def test_the_momentum_follows_the_recorded_table(recorded: Recorded) -> None:
    values = recorded[0]
    table, rtol = values["momentum"], values["tolerances"]["schedule"]["rtol"]
    optim = pico_recipe(
        f"optim.momentum={table['end']}",
        f"optim.momentum_start={table['start']}",
        f"optim.momentum_warmup_steps={table['warmup_steps']}",
    ).optim
    assert [muon_momentum(optim, step) for step in table["step"]] == pytest.approx(table["momentum"], rel=rtol)


def test_the_loop_is_on_from_the_first_step_at_the_recorded_fraction(recorded: Recorded) -> None:
    at = recorded[0]["looping"]["enable_looping_at"]
    recipe = pico_recipe("schedule.iterations=2000", f"schedule.loop_at={at}")
    looping = [moment(recipe, step=step, elapsed_seconds=0.0).looping for step in range(2001)]
    first = next(step for step in range(2001) if step / 2000 >= at)
    assert looping == [False] * first + [True] * (2001 - first)


class TwoTensors(nn.Module):
    """Parameters x and y."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(values["x"].clone()), nn.Parameter(values["y"].clone())

    @torch.no_grad()
    def become(self, values: dict[str, Tensor]) -> None:
        self.x.copy_(values["x"])
        self.y.copy_(values["y"])


def stage(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensors[f"{name}.{key}"] for key in ("x", "y")}


def count_values(tensors: dict[str, Tensor]) -> int:
    return sum(key.startswith("ema::value") and key.endswith(".x") for key in tensors)


def test_the_exponential_averages_follow_the_recorded_ones(recorded: Recorded) -> None:
    decays = {match[1] for key in recorded[1] if (match := re.match(r"ema::decay([\d.]+)\.after", key))}
    assert len(decays) > 1
    for decay in decays:
        assert_follows(recorded, float(decay))


def assert_follows(recorded: Recorded, decay: float) -> None:
    values, tensors = recorded
    model = TwoTensors(stage(tensors, "ema::init"))
    averages = Averages(model, AverageConfig(ema_decay=decay, shadows=()))
    seen = 0
    for step in range(1, count_values(tensors) + 1):
        model.become(stage(tensors, f"ema::value{step}"))
        averages.update(step=step, lr_multiplier=1.0)
        if f"ema::decay{decay}.after{step}.x" in tensors:
            seen += 1
            for key, expected in stage(tensors, f"ema::decay{decay}.after{step}").items():
                torch.testing.assert_close(
                    averages.ema[key], expected, rtol=0, atol=values["tolerances"]["ema"]["atol"]
                )
    assert seen >= 3


def test_the_stochastic_average_is_the_recorded_mean(recorded: Recorded) -> None:
    values, tensors = recorded
    model = TwoTensors(stage(tensors, "ema::init"))
    config = AverageConfig(swa_every=1, swa_below=1.0, use="swa", shadows=())
    averages = Averages(model, config)
    (name,) = {key.rpartition(".")[0] for key in tensors if key.startswith("swa::mean_of_")}
    for step in range(1, int(name.rpartition("_")[2]) + 1):
        model.become(stage(tensors, f"ema::value{step}"))
        averages.update(step=step, lr_multiplier=0.1)
    for key, expected in stage(tensors, name).items():
        torch.testing.assert_close(averages.swa[key], expected, rtol=0, atol=values["tolerances"]["ema"]["atol"])
