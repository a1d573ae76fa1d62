"""Several linear maps of one input: one product each, and the input's gradient added up inside the products."""

import pytest
import torch
from torch import Tensor

from golf.kernels.project import fused_project, plain_project

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
