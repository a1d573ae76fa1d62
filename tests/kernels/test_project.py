"""Several linear maps of one input: one product for those of the whole input, and two for their gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.kernels.project import _with_whole_columns, fused_project, join, plain_project

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


def slices(*, gap: int = 0, order: tuple[int, ...] = (0, 1, 2)) -> list[Tensor]:
    """Return slices of 5, 3 and 4 channels of one tensor (2, 7, 12 or more), in an order, with gaps between."""
    rows = torch.randn(2, 7, 12 + 2 * gap, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = rows.split([5, gap, 3, gap, 4], dim=-1)[::2]
    return [found[i] for i in order]


def test_slices_that_follow_each_other_are_joined_where_they_lie() -> None:
    given = slices()
    found = join([x.unflatten(0, (1, 2)).flatten(0, 1) for x in given])
    assert torch.equal(found, torch.cat(given, dim=-1))
    assert found.data_ptr() == given[0].data_ptr()


def elsewhere() -> list[Tensor]:
    """Return slices of which one lies in a tensor of its own."""
    first, second, third = slices()
    return [first, second.clone(), third]


@pytest.mark.parametrize(
    "given",
    [slices(gap=1), slices(order=(1, 0, 2)), slices(order=(0, 2)), elsewhere(), [x.mT for x in slices()[:1] * 2]],
    ids=["gaps", "order", "one is missing", "elsewhere", "columns"],
)
def test_other_slices_are_copied_together(given: list[Tensor]) -> None:
    found = join(given)
    assert torch.equal(found, torch.cat(given, dim=-1))
    assert found.data_ptr() != given[0].data_ptr()


@pytest.mark.parametrize("lie", ["joined", "apart"])
def test_gradients_do_not_depend_on_where_those_of_the_outputs_lie(lie: str) -> None:
    x, weights = case(order=(0, 1))
    incoming = torch.randn(2, 13, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    parts = [part if lie == "joined" else part.clone() for part in incoming.split([8, 4], dim=-1)]
    found = torch.autograd.grad(fused_project(x, weights), [x, *weights], parts)
    expected = torch.autograd.grad(plain_project(x, weights), [x, *weights], parts)
    torch.testing.assert_close(found, expected)


def test_outputs_of_the_whole_input_are_slices_of_one_tensor() -> None:
    x, weights = case(order=(0, 3, 1))
    first, narrow, second = fused_project(x, weights)
    assert first.stride() == second.stride() == (13 * 12, 12, 1)
    assert second.data_ptr() == first.data_ptr() + 8 * first.itemsize
    assert narrow.is_contiguous()


def test_an_output_that_nothing_reads_has_no_part_in_the_gradients() -> None:
    x, weights = case()
    for used in range(4):
        found = torch.autograd.grad(fused_project(x, weights)[used].sum(), [x, *weights])
        expected = torch.autograd.grad(plain_project(x, weights)[used].sum(), [x, *weights], materialize_grads=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", [plain_project, fused_project])
def test_weights_are_cast_to_the_dtype_of_what_they_multiply(form: Callable[..., tuple[Tensor, ...]]) -> None:
    x, weights = case(torch.bfloat16)
    high = [weight.detach().double().requires_grad_() for weight in weights]
    found, expected = form(x, high), form(x, weights)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    by_high, by_low = gradients(found, high), gradients(expected, weights)
    for one, other in zip(by_high, by_low, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other.double())


@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)])
def test_the_operator_passes_its_own_check(wants: tuple[bool, bool]) -> None:
    x, stacked = torch.randn(2, 9, 6), torch.randn(5, 6)
    incoming = [torch.randn(2, 9, 2), torch.randn(2, 9, 3)]
    torch.library.opcheck(torch.ops.golf.project_backward.default, (incoming, x, stacked, *wants))


def test_no_tokens_give_an_empty_gradient() -> None:
    x, weights = case()
    x = x[:, :0].detach().requires_grad_()
    by_x, *by_weight = torch.autograd.grad([y.sum() for y in fused_project(x, weights)], [x, *weights])
    assert by_x.shape == (2, 0, 23)
    assert all(torch.equal(found, torch.zeros_like(weight)) for found, weight in zip(by_weight, weights, strict=True))


@pytest.mark.parametrize(("columns", "width", "read"), [(12, 64, 16), (16, 64, 16), (5, 7, 7), (1, 64, 8)])
def test_a_narrow_map_reads_whole_columns(columns: int, width: int, read: int) -> None:
    weight = torch.randn(3, columns)
    found = _with_whole_columns(weight, width)
    assert found.shape == (3, read)
    assert torch.equal(found[:, :columns], weight)
    assert not found[:, columns:].any()
