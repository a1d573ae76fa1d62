"""Muon against the formulas, one matrix at a time, and against itself on other numbers of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from golf.distributed import World
from golf.optim.muon import Muon
from golf.optim.polar import coefficients
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
SHAPES = {"a": (5, 9), "b": (5, 9), "c": (5, 9), "d": (9, 4), "e": (6, 6)}  # three of one shape: padded on 2 ranks
LRS, MOMENTA = (0.02, 0.016, 0.012), (0.85, 0.9, 0.95)
DECAY = 0.04


def initial() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int) -> list[dict[str, Tensor]]:
    """Four ranks' worth of gradients; fewer ranks take means of them."""
    generator = torch.Generator().manual_seed(step + 1)
    return [{name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(4)]


def muon(parameters: dict[str, nn.Parameter], world: World, *, row_normalize: bool = True) -> Muon:
    return Muon(
        parameters,
        iterations=coefficients("polar_express", 5),
        row_normalize=row_normalize,
        weight_decay=DECAY,
        dtype=torch.float32,
        world=world,
    )


def take_step(optimizer: Muon, parameters: dict[str, nn.Parameter], world: World, step: int) -> None:
    own = gradients(step)[world.rank :: world.size]
    for name, parameter in parameters.items():
        parameter.grad = torch.stack([gradient[name] for gradient in own]).mean(0)
    optimizer.step(optimizer.reduced_gradients(), lr=LRS[step], momentum=MOMENTA[step])


def trained(world: World, steps: int = 3, *, row_normalize: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and gathered state after `steps` steps, as arrays."""
    parameters = initial()
    optimizer = muon(parameters, world, row_normalize=row_normalize)
    for step in range(steps):
        take_step(optimizer, parameters, world, step)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in parameters.items()}
    return weights, {name: tensor.numpy().copy() for name, tensor in optimizer.state().items()}


def formulas(*, row_normalize: bool) -> dict[str, Tensor]:
    """One matrix at a time in float64: momentum, Nesterov, rows, Newton-Schulz, decay, step."""
    found = {}
    for name, parameter in initial().items():
        w, b = parameter.detach().double(), torch.zeros(SHAPES[name], dtype=torch.float64)
        for step, (lr, m) in enumerate(zip(LRS, MOMENTA, strict=True)):
            g = torch.stack([gradient[name] for gradient in gradients(step)]).double().mean(0)
            b = m * b + g
            x = g + m * b
            if row_normalize:
                x = x / x.norm(dim=1, keepdim=True)
            tall = x.shape[0] > x.shape[1]
            x = (x.T if tall else x) / x.norm()
            for p, q, r in coefficients("polar_express", 5):
                s = x @ x.T
                x = p * x + (q * s + r * s @ s) @ x
            x = x.T if tall else x
            w = w * (1 - lr * DECAY) - lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * x
        found[name] = w
    return found


@pytest.mark.parametrize("row_normalize", [True, False])
def test_three_steps_are_the_formulas_matrix_by_matrix(row_normalize: bool) -> None:
    weights, _ = trained(ALONE, row_normalize=row_normalize)
    for name, expected in formulas(row_normalize=row_normalize).items():
        torch.testing.assert_close(torch.from_numpy(weights[name]).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_gives_the_same_weights_and_state(size: int, tmp_path: Path) -> None:
    weights, state = trained(ALONE)
    for found_weights, found_state in run_ranks(size, tmp_path, trained):
        assert found_state.keys() == state.keys()
        for found, expected in ((found_weights, weights), (found_state, state)):
            for name, values in expected.items():
                assert found[name].shape == values.shape
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def continued(world: World, saved: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """A third step from a state saved after two, by whatever number of ranks."""
    parameters = {name: nn.Parameter(torch.from_numpy(values.copy())) for name, values in weights.items()}
    optimizer = muon(parameters, world)
    optimizer.load_state({name: torch.from_numpy(values) for name, values in saved.items()})
    take_step(optimizer, parameters, world, 2)
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def test_a_loaded_state_continues_bit_for_bit() -> None:
    weights, saved = trained(ALONE, 2)
    expected, _ = trained(ALONE, 3)
    found = continued(ALONE, saved, weights)
    assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)


def test_a_state_saved_by_one_process_is_continued_by_two(tmp_path: Path) -> None:
    weights, saved = trained(ALONE, 2)
    expected, _ = trained(ALONE, 3)
    for found in run_ranks(2, tmp_path, continued, saved, weights):
        for name in SHAPES:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)


def test_a_saved_state_does_not_change_with_later_steps() -> None:
    parameters = initial()
    optimizer = muon(parameters, ALONE)
    take_step(optimizer, parameters, ALONE, 0)
    saved = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    take_step(optimizer, parameters, ALONE, 1)
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_the_state_holds_each_matrix_under_its_own_name() -> None:
    parameters = initial()
    state = muon(parameters, ALONE).state()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        f"{name}/momentum": shape for name, shape in SHAPES.items()
    }


def test_a_matrix_without_gradient_is_only_decayed() -> None:
    parameters = initial()
    before = parameters["e"].detach().clone()
    optimizer = muon(parameters, ALONE)
    take_step(optimizer, {name: p for name, p in parameters.items() if name != "e"}, ALONE, 0)
    torch.testing.assert_close(parameters["e"].detach(), before * (1 - LRS[0] * DECAY))


def test_a_state_that_lacks_a_matrix_is_refused() -> None:
    with pytest.raises(KeyError, match="a/momentum"):
        muon(initial(), ALONE).load_state({})
