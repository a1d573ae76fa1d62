"""Newton-Schulz and Muon steps of the reference.

Not covered: `muon_no_nesterov::` (golf has Nesterov momentum only). `train::` is in test_train_steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from golf.distributed import World
from golf.optim.muon import Muon
from golf.optim.polar import coefficients, orthogonalize
from tests.parity.unbank import read_fixture
from tests.ranks import CPU, run_ranks

Array = npt.NDArray[np.float32]
ALONE = World(0, 1, 0, CPU)


@pytest.fixture
def recorded(fixtures: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return read_fixture(fixtures, "muon")


def assert_near(found: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """Compare by the Frobenius norm of the difference, relative to that of `expected`."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    assert float(difference) <= relative, f"{what}: {float(difference):.2e}"


def bank_muon(bank: Tensor, world: World, *, row_normalize: bool, weight_decay: float, steps: int) -> Muon:
    """Muon in bfloat16 over the matrices of a bank, which share its memory."""
    return Muon(
        {f"{i:02d}": nn.Parameter(matrix) for i, matrix in enumerate(bank)},
        iterations=coefficients("polar_express", steps),
        row_normalize=row_normalize,
        weight_decay=weight_decay,
        dtype=torch.bfloat16,
        world=world,
    )


def take_step(optimizer: Muon, gradient: Tensor, *, lr: float, momentum: float) -> None:
    (stack,) = optimizer.stacks
    for parameter, own in zip(stack.parameters, gradient, strict=True):
        parameter.grad = own
    optimizer.step(optimizer.reduced_gradients(), lr=lr, momentum=momentum)


def test_the_coefficients_are_the_recorded_ones(recorded: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    rows = recorded[0]["coefficients"]
    assert [list(row) for row in coefficients("polar_express", len(rows))] == rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_gives_the_recorded_matrices(
    recorded: tuple[dict[str, Any], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    values, tensors = recorded
    suffix = "f32" if dtype == torch.float32 else "bf16"
    keys = [key for key in tensors if key.startswith("ns::") and key.endswith(suffix)]
    assert keys
    for key in keys:
        stem, steps, _ = key.rsplit(".", 2)
        given = tensors[f"{stem}.input"].to(dtype)
        found = orthogonalize(given.view(-1, *given.shape[-2:]), coefficients("polar_express", int(steps[5:])))
        assert_near(found.view_as(given), tensors[key], values["tolerances"][f"ns_{suffix}"]["relative_frobenius"], key)


def test_the_classic_iteration_gives_the_recorded_matrices(
    recorded: tuple[dict[str, Any], dict[str, Tensor]],
) -> None:
    values, tensors = recorded
    keys = [key for key in tensors if key.startswith("ns_classic::")]
    assert keys
    for key in keys:
        stem, steps, _ = key.removeprefix("ns_classic::").rsplit(".", 2)
        found = orthogonalize(tensors[f"ns::{stem}.input"][None].bfloat16(), coefficients("classic", int(steps[5:])))
        assert_near(found[0], tensors[key], values["tolerances"]["ns_bf16"]["relative_frobenius"], key)


@pytest.mark.parametrize("bank", ["a", "b", "c"])
def test_three_steps_follow_the_recorded_ones(recorded: tuple[dict[str, Any], dict[str, Tensor]], bank: str) -> None:
    values, tensors = recorded
    settings, tolerances = values["hyperparameters"], values["tolerances"]
    bank_weights = tensors[f"muon::{bank}.param.step0"].clone()
    optimizer = bank_muon(
        bank_weights,
        ALONE,
        row_normalize=settings["row_normalize"],
        weight_decay=settings["weight_decay"],
        steps=settings["backend_steps"],
    )
    for at in values["steps"]:
        step = at["step"]
        before = tensors[f"muon::{bank}.param.step{step}"]
        take_step(optimizer, tensors[f"muon::{bank}.grad.step{step}"], lr=at["lr"], momentum=at["momentum"])
        (stack,) = optimizer.stacks
        expected = tensors[f"muon::{bank}.momentum.step{step + 1}"]
        ulps = (stack.momentum.view(torch.int16).int() - expected.view(torch.int16).int()).abs().max()
        assert ulps <= tolerances["momentum"]["bf16 ulps"]
        change = tensors[f"muon::{bank}.param.step{step + 1}"] - before
        relative = tolerances["muon_param_delta"]["relative_frobenius"]
        assert_near(torch.stack(list(stack.parameters)).detach() - before, change, relative, f"{bank} step {step}")
        bank_weights.copy_(tensors[f"muon::{bank}.param.step{step + 1}"])


@pytest.mark.parametrize(
    ("variant", "changes"), [("no_rownorm", {"row_normalize": False}), ("no_wd", {"weight_decay": 0.0})]
)
def test_one_step_of_each_variant_is_the_recorded_one(
    recorded: tuple[dict[str, Any], dict[str, Tensor]], variant: str, changes: dict[str, Any]
) -> None:
    values, tensors = recorded
    settings, given = values["hyperparameters"], values["one_step_variants"]
    before = tensors[given["param"]]
    bank = before.clone()
    options = {"row_normalize": settings["row_normalize"], "weight_decay": settings["weight_decay"], **changes}
    optimizer = bank_muon(bank, ALONE, steps=settings["backend_steps"], **options)
    take_step(optimizer, tensors[given["grad"]], lr=given["lr"], momentum=given["momentum"])
    expected = tensors[f"muon_{variant}::a.param.step1"] - before
    assert_near(bank - before, expected, values["tolerances"]["muon_param_delta"]["relative_frobenius"], variant)


def bank_after(world: World, bank: Array, gradients: list[list[Array]], settings: dict[str, Any]) -> Array:
    """The bank after a step from each of this rank's gradients."""
    weights = torch.from_numpy(bank.copy())
    optimizer = bank_muon(
        weights,
        world,
        row_normalize=settings["row_normalize"],
        weight_decay=settings["weight_decay"],
        steps=settings["backend_steps"],
    )
    for gradient in gradients[world.rank]:
        take_step(optimizer, torch.from_numpy(gradient), lr=settings["lr"], momentum=settings["momentum"])
    return weights.numpy()


@pytest.mark.parametrize("bank", ["even", "odd"])
def test_two_steps_over_two_processes_are_the_recorded_ones(
    recorded: tuple[dict[str, Any], dict[str, Tensor]], bank: str, tmp_path: Path
) -> None:
    values, tensors = recorded
    before, after = (tensors[f"muon_world2::{bank}.param.step{step}"] for step in (0, 2))
    gradients = [
        [tensors[f"muon_world2::{bank}.grad.rank{rank}.step{step}"].numpy() for step in (0, 1)] for rank in (0, 1)
    ]
    rates = {key: values["one_step_variants"][key] for key in ("lr", "momentum")}  # the same, says the JSON in words
    settings = {**values["hyperparameters"], **rates}
    relative = values["tolerances"]["muon_param_delta"]["relative_frobenius"]
    for found in run_ranks(2, tmp_path, bank_after, before.numpy(), gradients, settings):
        assert_near(torch.from_numpy(found) - before, after - before, relative, bank)
