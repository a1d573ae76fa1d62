"""Several linear maps of one input: one product each, and the input's gradient added up inside the products."""

import pytest
import torch
from torch import Tensor

from golf.kernels.jit import HAS_TRITON
from golf.kernels.project import (
    APART,
    STACKED,
    Ways,
    _with_whole_columns,
    fused_project,
    plain_project,
    project_by,
)
from golf.kernels.project_gemm import TILES, can_sum, sum_products

WIDTHS = ((8, 23), (4, 23), (5, 7), (3, 11))  # outputs and channels read; the widest need not come first


def case(dtype: torch.dtype = torch.float64, order: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 13, 23, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weights = [torch.randn(WIDTHS[i], generator=generator, dtype=torch.float64) for i in order]
    return x, [weight.to(dtype).requires_grad_() for weight in weights]


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    return list(torch.autograd.grad(outputs, inputs, incoming))


def test_every_map_reads_its_first_channels() -> None:
    x, weights = case()
    for y, weight in zip(plain_project(x, weights), weights, strict=True):
        assert torch.equal(y, torch.einsum("btc,oc->bto", x[..., : weight.shape[1]], weight))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2)])
def test_values_and_gradients_are_those_of_the_maps_alone(order: tuple[int, ...]) -> None:
    x, weights = case(order=order)
    found, expected = fused_project(x, weights), plain_project(x, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, [x, *weights]), gradients(expected, [x, *weights]))


def test_bfloat16_gradients_are_at_most_twice_as_far_from_float64_as_the_plain_ones() -> None:
    x, weights = case(torch.bfloat16)
    exact_x, *exact_weights = (tensor.detach().double().requires_grad_() for tensor in (x, *weights))
    exact = gradients(plain_project(exact_x, exact_weights), [exact_x, *exact_weights])
    fused, plain = (gradients(form(x, weights), [x, *weights]) for form in (fused_project, plain_project))
    for a, b, true in zip(fused, plain, exact, strict=True):
        assert float((a.double() - true).norm()) <= 2 * float((b.double() - true).norm())


def test_what_needs_no_gradient_gets_none() -> None:
    x, weights = case()
    weights[1] = weights[1].detach()
    torch.autograd.backward([y.sum() for y in fused_project(x, weights)])
    assert weights[1].grad is None
    assert weights[0].grad is not None
    frozen = x.detach()
    torch.autograd.backward([y.sum() for y in fused_project(frozen, weights)])
    assert frozen.grad is None


def test_the_second_derivative_is_refused() -> None:
    x, weights = case()
    (gradient,) = torch.autograd.grad(fused_project(x, weights)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


WAYS = [Ways(forward, backward) for forward in (APART, STACKED) for backward in (APART, *TILES)]
SIZES = [((64, 72), (40, 72), (8, 12)), ((136, 264), (72, 264), (72, 264), (8, 16)), ((8, 8),), ((16, 9), (24, 200))]


def maps(sizes: tuple[tuple[int, int], ...], tokens: int = 150) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    width = max(columns for _, columns in sizes)
    x = torch.randn(2, tokens, width, generator=generator).bfloat16().requires_grad_()
    return x, [torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in sizes]


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("ways", WAYS, ids="-".join)
def test_every_way_is_at_most_twice_as_far_from_float64_as_the_plain_form(
    ways: Ways, sizes: tuple[tuple[int, int], ...]
) -> None:
    x, weights = maps(sizes)
    exact_x, *exact_weights = (tensor.detach().double().requires_grad_() for tensor in (x, *weights))
    outputs = plain_project(exact_x, exact_weights)
    exact = [*outputs, *gradients(outputs, [exact_x, *exact_weights])]
    found, plain = (
        [*outputs, *gradients(outputs, [x, *weights])]
        for outputs in (project_by(ways, x, weights), plain_project(x, weights))
    )
    for a, b, true in zip(found, plain, exact, strict=True):
        a, b, true = a.detach().double(), b.detach().double(), true.detach()
        assert float((a - true).norm()) <= 2 * float((b - true).norm()) + 1e-12


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
@pytest.mark.parametrize("tiles", list(TILES))
def test_the_sum_over_maps_passes_the_operators_own_check(tiles: str) -> None:
    x, weights = maps(((16, 24), (8, 24)), tokens=9)
    incoming = [torch.randn(18, len(weight)).bfloat16() for weight in weights]
    with torch.no_grad():
        torch.library.opcheck(torch.ops.golf.sum_products.default, (incoming, weights, x.shape[-1], tiles))


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
def test_no_tokens_give_an_empty_gradient() -> None:
    weights = [torch.randn(8, 16).bfloat16()]
    assert sum_products([torch.empty(0, 8).bfloat16()], weights, width=16, tiles=TILES["pair"]).shape == (0, 16)


def test_what_tiles_cannot_do_is_computed_apart() -> None:
    assert can_sum([torch.empty(3, 8).bfloat16()], 16)
    assert not can_sum([torch.empty(3, 8)], 16)
    assert not can_sum([torch.empty(3, 12).bfloat16()], 16)
    assert not can_sum([torch.empty(3, 8).bfloat16()], 12)
    assert not can_sum([torch.empty(3, 8).bfloat16()] * 5, 16)
    x, weights = case()
    found = gradients(project_by(Ways(STACKED, "pair"), x, weights), [x, *weights])
    torch.testing.assert_close(found, gradients(plain_project(x, weights), [x, *weights]))


@pytest.mark.parametrize(("columns", "width", "read"), [(12, 64, 16), (16, 64, 16), (5, 7, 7), (1, 64, 8)])
def test_a_narrow_map_reads_whole_columns(columns: int, width: int, read: int) -> None:
    weight = torch.randn(3, columns)
    found = _with_whole_columns(weight, width)
    assert found.shape == (3, read)
    assert torch.equal(found[:, :columns], weight)
    assert not found[:, columns:].any()
