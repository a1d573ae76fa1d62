"""Hessians: the direct sum in float64, and the same bits whoever computes them in whatever order."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.data.shards import read_shard
from golf.data.windows import read_windows
from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.model.gpt import GPT
from golf.model.hooks import tap_of
from golf.model.plan import plan_layers
from golf.quant.calibration import CalibrationSet, GramObserver, collect_hessians
from golf.roles import Role, role_of
from tests.pico import pico_dataset, pico_model, pico_recipe
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
RECIPE = pico_recipe("quant.calibration_batches=5")
PLAN = plan_layers(RECIPE.model, looping=True)


def drawn(folder: Path) -> CalibrationSet:
    """Five units of four windows of 16 tokens."""
    shards = sorted(folder.glob("*_train_*.bin"))
    return CalibrationSet.draw(shards, [len(read_shard(path)) for path in shards], RECIPE.quant, 16)


@pytest.fixture
def calibration(tmp_path: Path) -> CalibrationSet:
    pico_dataset(tmp_path / "data")
    return drawn(tmp_path / "data")


class Rows:
    """Keeps every row that a tap was shown, in float64."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = {}

    def see(self, tap: str, x: Tensor) -> None:
        self.rows.setdefault(tap, []).append(x.detach().flatten(0, -2).double())


@torch.no_grad()
def direct(model: GPT, calibration: CalibrationSet) -> dict[str, Tensor]:
    """Sum of x x^T over all rows of all visits, per token of the windows, in float64."""
    seen = Rows()
    for unit in calibration.units:
        model(read_windows(calibration.shards, unit, 16), plan=PLAN, observer=seen)
    rows = {tap: torch.cat(parts) for tap, parts in seen.rows.items()}
    return {tap: (x.T @ x) / (5 * 4 * 16) for tap, x in rows.items()}


def test_the_hessian_is_the_direct_sum_per_token(calibration: CalibrationSet) -> None:
    model = pico_model(RECIPE)
    expected = direct(model, calibration)
    found = collect_hessians(model, calibration, plan=PLAN, world=ALONE)
    assert calibration.tokens == 320
    assert found.keys() == expected.keys()
    for tap, hessian in found.items():
        assert hessian.dtype == torch.float32
        largest = float(expected[tap].abs().max())
        torch.testing.assert_close(hessian.double(), expected[tap], rtol=0, atol=1e-6 * largest)


def test_every_matrix_has_a_hessian_of_its_width(calibration: CalibrationSet) -> None:
    model = pico_model(RECIPE)
    found = collect_hessians(model, calibration, plan=PLAN, world=ALONE)
    weights = {name: p for name, p in model.named_parameters() if role_of(name, p.ndim).is_matrix}
    weights |= {name: p for name, p in model.named_parameters() if role_of(name, p.ndim) is Role.EMBED}
    assert {tap_of(name): (p.shape[1], p.shape[1]) for name, p in weights.items()} == {
        tap: tuple(hessian.shape) for tap, hessian in found.items()
    }


def test_a_looped_layer_sums_its_visits(calibration: CalibrationSet) -> None:
    model = pico_model(RECIPE)
    grams = {}
    for looping in (False, True):
        plan = plan_layers(RECIPE.model, looping=looping)
        observer = GramObserver()
        with torch.no_grad():
            model(read_windows(calibration.shards, calibration.units[0], 16), plan=plan, observer=observer)
        grams[looping] = observer.grams
    normalized = 64 * 32  # an input of the MLP has mean square 1 but for the scale of its layer: tokens * channels
    for layer, visits in enumerate([1, 2, 2, 1]):
        trace = float(grams[True][f"blocks.{layer}.mlp"].trace())
        assert trace == pytest.approx(visits * normalized / (layer + 1), rel=1e-4)
        assert float(grams[False][f"blocks.{layer}.mlp"].trace()) == pytest.approx(normalized / (layer + 1), rel=1e-4)


def test_the_order_of_the_units_does_not_change_a_bit(calibration: CalibrationSet) -> None:
    """But for the first, which sets the fixed point."""
    model = pico_model(RECIPE)
    first, *others = calibration.units
    permuted = dataclasses.replace(calibration, units=[first, *reversed(others)])
    found = [collect_hessians(model, part, plan=PLAN, world=ALONE) for part in (calibration, permuted)]
    assert all(torch.equal(found[0][tap], found[1][tap]) for tap in found[0])


def hessians_of(world: World, folder: Path) -> dict[str, np.ndarray]:
    found = collect_hessians(pico_model(RECIPE), drawn(folder), plan=PLAN, world=world)
    return {tap: hessian.numpy() for tap, hessian in found.items()}


def test_one_two_and_four_ranks_have_the_same_hessians_bit_for_bit(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data")
    (alone,) = run_ranks(1, tmp_path, hessians_of, tmp_path / "data")
    for size in (2, 4):
        for found in run_ranks(size, tmp_path, hessians_of, tmp_path / "data"):
            assert found.keys() == alone.keys()
            assert all(np.array_equal(found[tap], alone[tap]) for tap in alone)


def test_progress_is_told_unit_by_unit(calibration: CalibrationSet) -> None:
    told: list[int] = []
    collect_hessians(pico_model(RECIPE), calibration, plan=PLAN, world=ALONE, advance=told.append)
    assert told == 5 * [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_a_fault_that_names_the_input(calibration: CalibrationSet, value: float) -> None:
    model = pico_model(RECIPE)
    with torch.no_grad():
        model.get_parameter("blocks.3.mlp.fc.weight")[0, 0] = value
    with pytest.raises(NumericalFaultError, match=r"the input of blocks\.3\.mlp\.proj holds NaN or infinity"):
        collect_hessians(model, calibration, plan=PLAN, world=ALONE)


def test_an_input_that_is_always_zero_is_a_fault_that_names_it(calibration: CalibrationSet) -> None:
    model = pico_model(RECIPE)
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.fc.weight").zero_()
    with pytest.raises(NumericalFaultError, match=r"the input of blocks\.1\.mlp\.proj is zero everywhere"):
        collect_hessians(model, calibration, plan=PLAN, world=ALONE)


def test_a_unit_far_larger_than_the_first_is_a_fault_not_an_overflow(calibration: CalibrationSet) -> None:
    model = pico_model(RECIPE)
    with torch.no_grad():  # a token that the first unit does not hold makes one row of a table enormous
        held = set(read_windows(calibration.shards, calibration.units[0], 16).tokens.flatten().tolist())
        others = [read_windows(calibration.shards, unit, 16).tokens.flatten().tolist() for unit in calibration.units]
        token = next(token for unit in others for token in unit if token not in held)
        assert model.value_embedding is not None
        model.value_embedding.table.weight[token] *= 1e4
    with pytest.raises(NumericalFaultError, match=r"value_embedding\.proj .* far larger than in the first"):
        collect_hessians(model, calibration, plan=PLAN, world=ALONE)


def test_the_windows_are_drawn_from_the_training_shards_alone(calibration: CalibrationSet) -> None:
    assert len(calibration.units) == 5
    assert {len(unit) for unit in calibration.units} == {4}
    assert all("train" in path.name for path in calibration.shards)
