"""Muon against the formulas, one matrix at a time, and against itself on other numbers of ranks."""

import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from golf.distributed import World
from golf.optim.forms import Form
from golf.optim.muon import Muon
from golf.optim.polar import coefficients
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
SHAPES = {"a": (5, 9), "b": (5, 9), "c": (5, 9), "d": (9, 4), "e": (6, 6)}  # three of one shape: padded on 2 ranks
LRS, MOMENTA = (0.02, 0.016, 0.012), (0.85, 0.9, 0.95)
DECAY = 0.04


class Variant(NamedTuple):
    """What a user can choose about Muon."""

    form: Form = "plain"
    row_normalize: bool = False
    nesterov: bool = True
    kind: Literal["classic", "polar_express"] = "polar_express"
    steps: int = 5


VARIANTS = {
    "plain": Variant(),
    "row_normalize": Variant(row_normalize=True),
    "no_nesterov": Variant(nesterov=False),
    "normuon": Variant("normuon"),
    "normuon_row_normalize": Variant("normuon", row_normalize=True),
    "mousse": Variant("mousse"),
    "mousse_no_nesterov": Variant("mousse", nesterov=False),
    "neomuon": Variant(row_normalize=True, kind="classic", steps=3),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def initial() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int) -> list[dict[str, Tensor]]:
    """Four ranks' worth of gradients; fewer ranks take means of them."""
    generator = torch.Generator().manual_seed(step + 1)
    return [{name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(4)]


def muon(
    parameters: dict[str, nn.Parameter], world: World, variant: Variant, dtype: torch.dtype = torch.float32
) -> Muon:
    return Muon(
        parameters,
        form=variant.form,
        nesterov=variant.nesterov,
        iterations=coefficients(variant.kind, variant.steps),
        row_normalize=variant.row_normalize,
        weight_decay=DECAY,
        dtype=dtype,
        world=world,
    )


def take_step(optimizer: Muon, parameters: dict[str, nn.Parameter], world: World, step: int) -> None:
    own = gradients(step)[world.rank :: world.size]
    for name, parameter in parameters.items():
        parameter.grad = torch.stack([gradient[name] for gradient in own]).mean(0)
    optimizer.step(optimizer.reduced_gradients(), lr=LRS[step], momentum=MOMENTA[step])


def trained(world: World, name: str, steps: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and gathered state of a variant after `steps` steps, as arrays."""
    parameters = initial()
    optimizer = muon(parameters, world, VARIANTS[name])
    for step in range(steps):
        take_step(optimizer, parameters, world, step)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in parameters.items()}
    return weights, {name: tensor.numpy().copy() for name, tensor in optimizer.state().items()}


def all_trained(world: World) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return {name: trained(world, name) for name in VARIANTS}


def orthogonal(x: Tensor, variant: Variant) -> Tensor:
    """Newton-Schulz of one matrix."""
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / x.norm()
    for p, q, r in coefficients(variant.kind, variant.steps):
        s = x @ x.T
        x = p * x + (q * s + r * s @ s) @ x
    return x.T if tall else x


def formulas(variant: Variant) -> dict[str, Tensor]:
    """One matrix at a time in float64: momentum, Nesterov, rows and columns, Newton-Schulz, rows, decay, step."""
    found = {}
    for name, parameter in initial().items():
        w, b = parameter.detach().double(), torch.zeros(SHAPES[name], dtype=torch.float64)
        row_mean, column_mean = (torch.ones(size, dtype=torch.float64) for size in SHAPES[name])
        neuron_mean = torch.zeros(SHAPES[name][0], dtype=torch.float64)
        for step, (lr, m) in enumerate(zip(LRS, MOMENTA, strict=True)):
            g = torch.stack([gradient[name] for gradient in gradients(step)]).double().mean(0)
            b = m * b + g
            x = g + m * b if variant.nesterov else b
            if variant.row_normalize:
                x = x / x.norm(dim=1, keepdim=True)
            if variant.form == "mousse":
                row_mean = 0.99 * row_mean + 0.01 * x.pow(2).mean(1)
                column_mean = 0.99 * column_mean + 0.01 * x.pow(2).mean(0)
                x = torch.diag(row_mean**-0.5) @ x @ torch.diag(column_mean**-0.5)
            x = orthogonal(x, variant)
            if variant.form == "normuon":
                neuron_mean = 0.95 * neuron_mean + 0.05 * x.pow(2).mean(1)
                divided = x / neuron_mean.sqrt()[:, None]
                x = divided * x.norm() / divided.norm()
            w = w * (1 - lr * DECAY) - lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * x
        found[name] = w
    return found


@variants
def test_three_steps_are_the_formulas_matrix_by_matrix(name: str) -> None:
    weights, _ = trained(ALONE, name)
    for matrix, expected in formulas(VARIANTS[name]).items():
        torch.testing.assert_close(torch.from_numpy(weights[matrix]).double(), expected, rtol=1e-5, atol=1e-5)


def test_every_variant_goes_its_own_way() -> None:
    ends = {
        name: np.concatenate([w.ravel() for w in weights.values()]) for name, (weights, _) in all_trained(ALONE).items()
    }
    for one, other in itertools.combinations(ends, 2):
        assert np.abs(ends[one] - ends[other]).max() > 1e-3, (one, other)


def test_neomuon_is_row_normalization_and_three_classic_iterations() -> None:
    """It divides rows by their root mean square, their length up to sqrt(C): Newton-Schulz sees no difference."""
    parameters = initial()
    optimizer = muon(parameters, ALONE, VARIANTS["neomuon"])
    take_step(optimizer, parameters, ALONE, 0)
    for name, parameter in parameters.items():
        g = torch.stack([gradient[name] for gradient in gradients(0)]).double().mean(0)
        x = (1 + MOMENTA[0]) * g
        x = orthogonal(x / x.pow(2).mean(1, keepdim=True).sqrt(), VARIANTS["neomuon"])
        before, scale = initial()[name].detach().double(), max(1.0, x.shape[0] / x.shape[1]) ** 0.5
        expected = before * (1 - LRS[0] * DECAY) - LRS[0] * scale * x
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_gives_the_same_weights_and_state(size: int, tmp_path: Path) -> None:
    for found in run_ranks(size, tmp_path, all_trained):
        for name, (weights, state) in all_trained(ALONE).items():
            found_weights, found_state = found[name]
            assert found_state.keys() == state.keys()
            for ours, expected in ((found_weights, weights), (found_state, state)):
                for key, values in expected.items():
                    assert ours[key].shape == values.shape
                    np.testing.assert_allclose(ours[key], values, rtol=0, atol=1e-6, err_msg=f"{name} {key}")


def continued(world: World, saved: dict[str, dict[str, Any]], weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A third step of each variant from a state saved after two, by whatever number of ranks."""
    ends = {}
    for name, variant in VARIANTS.items():
        parameters = {key: nn.Parameter(torch.from_numpy(values.copy())) for key, values in weights[name].items()}
        optimizer = muon(parameters, world, variant)
        optimizer.load_state({key: torch.from_numpy(values) for key, values in saved[name].items()})
        take_step(optimizer, parameters, world, 2)
        ends[name] = {key: parameter.detach().numpy() for key, parameter in parameters.items()}
    return ends


def half_way() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The state and the weights of each variant after two steps."""
    found = {name: trained(ALONE, name, 2) for name in VARIANTS}
    return {name: state for name, (_, state) in found.items()}, {name: weights for name, (weights, _) in found.items()}


def test_a_loaded_state_continues_bit_for_bit() -> None:
    found = continued(ALONE, *half_way())
    for name in VARIANTS:
        expected, _ = trained(ALONE, name)
        assert [key for key in SHAPES if not np.array_equal(found[name][key], expected[key])] == [], name


def test_a_state_saved_by_one_process_is_continued_by_two(tmp_path: Path) -> None:
    for found in run_ranks(2, tmp_path, continued, *half_way()):
        for name in VARIANTS:
            expected, _ = trained(ALONE, name)
            for key in SHAPES:
                np.testing.assert_allclose(found[name][key], expected[key], rtol=0, atol=1e-6, err_msg=f"{name} {key}")


@variants
def test_a_saved_state_does_not_change_with_later_steps(name: str) -> None:
    parameters = initial()
    optimizer = muon(parameters, ALONE, VARIANTS[name])
    take_step(optimizer, parameters, ALONE, 0)
    saved = optimizer.state()
    kept = {key: tensor.clone() for key, tensor in saved.items()}
    take_step(optimizer, parameters, ALONE, 1)
    assert all(torch.equal(saved[key], kept[key]) for key in saved)
    assert not any(torch.equal(tensor, kept[key]) for key, tensor in optimizer.state().items())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("plain", ("momentum",)),
        ("row_normalize", ("momentum",)),
        ("normuon", ("momentum", "row_squares")),
        ("mousse", ("momentum", "row_squares", "column_squares")),
    ],
)
def test_the_state_holds_each_matrix_under_its_own_name(name: str, kept: tuple[str, ...]) -> None:
    state = muon(initial(), ALONE, VARIANTS[name]).state()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        f"{matrix}/{key}": {"momentum": shape, "row_squares": shape[:1], "column_squares": shape[1:]}[key]
        for matrix, shape in SHAPES.items()
        for key in kept
    }


@variants
def test_a_matrix_without_gradient_is_only_decayed(name: str) -> None:
    parameters = initial()
    before = parameters["e"].detach().clone()
    optimizer = muon(parameters, ALONE, VARIANTS[name])
    take_step(optimizer, {key: p for key, p in parameters.items() if key != "e"}, ALONE, 0)
    torch.testing.assert_close(parameters["e"].detach(), before * (1 - LRS[0] * DECAY))


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_gradient_is_only_decayed(name: str, dtype: torch.dtype) -> None:
    parameters = initial()
    optimizer = muon(parameters, ALONE, VARIANTS[name], dtype)
    for step in range(3):
        for key, parameter in parameters.items():
            parameter.grad = gradients(step)[0][key]
            parameter.grad[1] = 0.0
        optimizer.step(optimizer.reduced_gradients(), lr=0.1, momentum=0.9)
    for key, parameter in parameters.items():
        assert parameter.isfinite().all()
        torch.testing.assert_close(parameter[1].detach(), initial()[key][1].detach() * (1 - 0.1 * DECAY) ** 3)


def test_a_state_that_lacks_a_matrix_is_refused() -> None:
    with pytest.raises(KeyError, match="a/momentum"):
        muon(initial(), ALONE, VARIANTS["plain"]).load_state({})


def test_a_state_that_lacks_what_the_form_remembers_is_refused() -> None:
    plain = muon(initial(), ALONE, VARIANTS["plain"]).state()
    with pytest.raises(KeyError, match="a/row_squares"):
        muon(initial(), ALONE, VARIANTS["mousse"]).load_state(plain)
