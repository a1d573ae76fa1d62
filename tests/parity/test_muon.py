"""Newton-Schulz and Muon steps of the reference; its `train::` is in test_train_steps."""

import re
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
from tests.parity.fixture_set import read_fixture
from tests.ranks import CPU, run_ranks

Array = npt.NDArray[np.float32]
Recording = tuple[dict[str, Any], dict[str, Tensor]]
ALONE = World(0, 1, 0, CPU)
VARIANTS: dict[str, dict[str, Any]] = {
    "no_rownorm": {"row_normalize": False},
    "no_nesterov": {"nesterov": False},
    "no_wd": {"weight_decay": 0.0},
}


@pytest.fixture
def recorded(fixtures: Path) -> Recording:
    return read_fixture(fixtures, "muon")


def assert_near(found: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """Compare by the Frobenius norm of the difference, relative to that of `expected`."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    assert float(difference) <= relative, f"{what}: {float(difference):.2e}"


def bank_muon(bank: Tensor, world: World, settings: dict[str, Any]) -> Muon:
    """Muon in bfloat16 over the matrices of a bank, which share its memory."""
    return Muon(
        {f"{i:02d}": nn.Parameter(matrix) for i, matrix in enumerate(bank)},
        form="plain",
        nesterov=settings["nesterov"],
        iterations=coefficients("polar_express", settings["backend_steps"]),
        row_normalize=settings["row_normalize"],
        weight_decay=settings["weight_decay"],
        dtype=torch.bfloat16,
        world=world,
    )


def names_after(prefix: str, tensors: dict[str, Tensor]) -> list[str]:
    """The names K of all keys `prefix`::K.rest."""
    names = sorted({key.removeprefix(f"{prefix}::").split(".")[0] for key in tensors if key.startswith(f"{prefix}::")})
    assert names
    return names


def take_step(optimizer: Muon, gradient: Tensor, *, lr: float, momentum: float) -> None:
    (stack,) = optimizer.stacks
    for parameter, own in zip(stack.parameters, gradient, strict=True):
        parameter.grad = own
    optimizer.step(optimizer.reduced_gradients(), lr=lr, momentum=momentum)


def test_the_coefficients_are_the_recorded_ones(recorded: Recording) -> None:
    rows = recorded[0]["coefficients"]
    assert [list(row) for row in coefficients("polar_express", len(rows))] == rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_gives_the_recorded_matrices(recorded: Recording, dtype: torch.dtype) -> None:
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
    recorded: Recording,
) -> None:
    values, tensors = recorded
    keys = [key for key in tensors if key.startswith("ns_classic::")]
    assert keys
    for key in keys:
        stem, steps, _ = key.removeprefix("ns_classic::").rsplit(".", 2)
        found = orthogonalize(tensors[f"ns::{stem}.input"][None].bfloat16(), coefficients("classic", int(steps[5:])))
        assert_near(found[0], tensors[key], values["tolerances"]["ns_bf16"]["relative_frobenius"], key)


def test_steps_follow_the_recorded_ones(recorded: Recording) -> None:
    values, tensors = recorded
    tolerances = values["tolerances"]
    for bank in names_after("muon", tensors):
        bank_weights = tensors[f"muon::{bank}.param.step0"].clone()
        optimizer = bank_muon(bank_weights, ALONE, values["hyperparameters"])
        for at in values["steps"]:
            step = at["step"]
            before, after = (tensors[f"muon::{bank}.param.step{count}"] for count in (step, step + 1))
            take_step(optimizer, tensors[f"muon::{bank}.grad.step{step}"], lr=at["lr"], momentum=at["momentum"])
            (stack,) = optimizer.stacks
            expected = tensors[f"muon::{bank}.momentum.step{step + 1}"]
            ulps = (stack.momentum.view(torch.int16).int() - expected.view(torch.int16).int()).abs().max()
            assert ulps <= tolerances["momentum"]["bf16 ulps"]
            moved, relative = bank_weights - before, tolerances["muon_param_delta"]["relative_frobenius"]
            assert_near(moved, after - before, relative, f"{bank} step {step}")
            bank_weights.copy_(after)


def test_one_step_of_each_variant_is_the_recorded_one(recorded: Recording) -> None:
    values, tensors = recorded
    given, relative = values["one_step_variants"], values["tolerances"]["muon_param_delta"]["relative_frobenius"]
    variants = {key.split("::")[0].removeprefix("muon_"): key for key in tensors if key.startswith("muon_no_")}
    assert variants.keys() == VARIANTS.keys()
    before = tensors[given["param"]]
    for variant, key in variants.items():
        bank = before.clone()
        optimizer = bank_muon(bank, ALONE, {**values["hyperparameters"], **VARIANTS[variant]})
        take_step(optimizer, tensors[given["grad"]], lr=given["lr"], momentum=given["momentum"])
        assert_near(bank - before, tensors[key] - before, relative, variant)


def bank_after(world: World, bank: Array, gradients: list[list[Array]], settings: dict[str, Any]) -> Array:
    """The bank after a step from each of this rank's gradients."""
    weights = torch.from_numpy(bank.copy())
    optimizer = bank_muon(weights, world, settings)
    for gradient in gradients[world.rank]:
        take_step(optimizer, torch.from_numpy(gradient), lr=settings["lr"], momentum=settings["momentum"])
    return weights.numpy()


def test_steps_over_two_processes_are_the_recorded_ones(recorded: Recording, tmp_path: Path) -> None:
    values, tensors = recorded
    relative = values["tolerances"]["muon_param_delta"]["relative_frobenius"]
    settings = {**values["hyperparameters"], **rates_in_words(values["keys"]["muon_world2::K.*"])}
    for bank in names_after("muon_world2", tensors):
        ranks, steps = (count_of(word, f"muon_world2::{bank}.grad.", tensors) for word in ("rank", "step"))
        before, after = (tensors[f"muon_world2::{bank}.param.step{step}"] for step in (0, steps))
        gradients = [
            [tensors[f"muon_world2::{bank}.grad.rank{rank}.step{step}"].numpy() for step in range(steps)]
            for rank in range(ranks)
        ]
        for found in run_ranks(ranks, tmp_path, bank_after, before.numpy(), gradients, settings):
            assert_near(torch.from_numpy(found) - before, after - before, relative, bank)


def count_of(word: str, prefix: str, tensors: dict[str, Tensor]) -> int:
    """How many numbers follow `word`, from 0, in the keys that begin with `prefix`."""
    numbers = {int(found) for key in tensors if key.startswith(prefix) for found in re.findall(rf"{word}(\d+)", key)}
    assert numbers == set(range(len(numbers)))
    return len(numbers)


def rates_in_words(sentence: str) -> dict[str, float]:
    """The JSON says the rates of the two processes in a sentence only."""
    pattern = r"lr (?P<lr>[\d.]+), momentum (?P<momentum>[\d.]+), weight decay (?P<weight_decay>[\d.]+)"
    found = re.search(pattern, sentence)
    assert found
    return {name: float(number) for name, number in found.groupdict().items()}
