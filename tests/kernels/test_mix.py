"""Weighted sums of streams and their norms, plain and fused, against their formulas in float64."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from golf.kernels import mix_kernels
from golf.kernels.jit import HAS_TRITON
from golf.kernels.mix import fused_mix, fused_mix_norm, plain_mix, plain_mix_norm
from tests.kernels.test_norm import SCALE, error, formula, random

Function = Callable[[Sequence[Tensor], Tensor], Sequence[Tensor]]  # of streams and weights (O, J, C)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


class Form(NamedTuple):
    """A function in its plain and its fused form, and its formula in float64."""

    name: str
    plain: Function
    fused: Function
    exact: Function


def exact_mix(streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.einsum("j...c,ojc->o...c", torch.stack([x.double() for x in streams]), weights.double()).unbind(0)


def exact_mix_norm(streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    (u,) = exact_mix(streams, weights)
    return u, formula(u, scale=SCALE), *(x.double() for x in streams)


MIX = Form("mix", plain_mix, fused_mix, exact_mix)
MIX_NORM = Form(
    "mix_norm",
    lambda streams, weights: plain_mix_norm(streams, weights[0], scale=SCALE),
    lambda streams, weights: fused_mix_norm(streams, weights[0], scale=SCALE),
    exact_mix_norm,
)
COUNTS = {MIX: [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 3), (2, 4)], MIX_NORM: [(1, 1), (1, 2), (1, 4)]}
CASES = [(form, *count) for form, counts in COUNTS.items() for count in counts]
IDS = [f"{form.name}-{outputs}-{streams}" for form, outputs, streams in CASES]
cases = pytest.mark.parametrize(("form", "outputs", "count"), CASES, ids=IDS)
forms = pytest.mark.parametrize("form", [MIX, MIX_NORM], ids=lambda form: form.name)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three programs walk over tiles of two rows of up to 16 channels."""
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(mix_kernels, f"{name}_TILE", 32)
        monkeypatch.setattr(mix_kernels, f"{name}_PROGRAMS", 3)


def inputs(
    outputs: int, count: int, shape: tuple[int, ...] = (3, 5, 9), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Return random streams of a dtype, and float32 weights that the dtype can hold."""
    streams = [random(shape, seed=seed).to(dtype).requires_grad_() for seed in range(count)]
    return streams, random((outputs, count, shape[-1]), seed=99).to(dtype).float().requires_grad_()


def arriving(results: Sequence[Tensor]) -> list[Tensor]:
    """Return random gradients of the results, as bfloat16 can hold them."""
    shapes = [tuple(result.shape) for result in results]
    return [random(shape, seed=50 + index).bfloat16().to(results[index].dtype) for index, shape in enumerate(shapes)]


def gradients(
    function: Function, streams: Sequence[Tensor], weights: Tensor, incoming: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return the gradients of the streams and of the weights, if those are used."""
    results = function(streams, weights)
    incoming = arriving(results) if incoming is None else [g.to(results[0].dtype) for g in incoming]
    found = torch.autograd.grad(results, [*streams, weights], incoming, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def check(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare float32 with float64: sums of 15 rows and more, of numbers about one."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=3e-6, atol=6e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_sum_adds_weighted_streams_in_order_in_their_dtype(dtype: torch.dtype) -> None:
    (x, y, z), weights = inputs(2, 3, (5, 423), dtype)
    w = weights.mul(1.001).to(dtype)
    found = plain_mix((x, y, z), weights.mul(1.001))
    assert all(torch.equal(found[o], w[o, 0] * x + w[o, 1] * y + w[o, 2] * z) for o in range(2))


@cases
def test_plain_values_and_gradients_are_the_float64_formulas(form: Form, outputs: int, count: int) -> None:
    streams, weights = inputs(outputs, count)
    check(form.plain(streams, weights), form.exact(streams, weights))
    check(gradients(form.plain, streams, weights), gradients(form.exact, streams, weights))


@needs_triton
@cases
@pytest.mark.usefixtures("short_turns")
def test_fused_values_and_gradients_are_the_float64_formulas(form: Form, outputs: int, count: int) -> None:
    streams, weights = inputs(outputs, count)
    check(form.fused(streams, weights), form.exact(streams, weights))
    check(gradients(form.fused, streams, weights), gradients(form.exact, streams, weights))


@needs_triton
@forms
@pytest.mark.parametrize("shape", [(3,), (3, 423), (2, 1100)])
def test_rows_may_be_few_or_long(form: Form, shape: tuple[int, ...]) -> None:
    streams, weights = inputs(1, 2, shape)
    check(form.fused(streams, weights), form.plain(streams, weights))
    check(gradients(form.fused, streams, weights), gradients(form.plain, streams, weights))


@needs_triton
@forms
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_is_launched_for_nothing(form: Form, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    streams, weights = inputs(1, 2, shape)
    expected = gradients(form.plain, streams, weights)
    monkeypatch.setattr(mix_kernels, "_mix_forward", None)
    monkeypatch.setattr(mix_kernels, "_mix_backward", None)
    check(form.fused(streams, weights), form.plain(streams, weights))
    check(gradients(form.fused, streams, weights), expected)


@needs_triton
@forms
def test_streams_weights_and_incoming_gradients_may_have_any_strides(form: Form) -> None:
    streams = [random((9, 5), seed=seed).mT.requires_grad_() for seed in range(2)]
    weights = random((9, 2, 1), seed=99).mT.permute(1, 2, 0).requires_grad_()
    for incoming in ([random((9, 5), seed=seed).mT for seed in (7, 8, 9, 10)], [random((1, 1)).expand(5, 9)] * 4):
        check(form.fused(streams, weights), form.plain(streams, weights))
        given = incoming[: len(form.plain(streams, weights))]
        found = gradients(form.fused, streams, weights, given)
        check(found, gradients(form.plain, streams, weights, given))


@needs_triton
@pytest.mark.usefixtures("short_turns")
def test_weights_may_be_numbers_for_all_channels() -> None:
    streams, _ = inputs(2, 4)
    numbers = random((2, 4)).requires_grad_()

    def of_numbers(function: Function) -> Function:
        return lambda streams, weights: function(streams, weights[..., None].expand(-1, -1, 9))

    expected = gradients(of_numbers(exact_mix), streams, numbers)
    assert expected[-1].shape == (2, 4)
    check(gradients(of_numbers(fused_mix), streams, numbers), expected)


@needs_triton
@forms
@pytest.mark.parametrize("kept", [0, 1])
def test_an_output_without_a_gradient_counts_as_zeros(form: Form, kept: int) -> None:
    streams, weights = inputs(2 if form is MIX else 1, 2)

    def one(function: Function) -> Function:
        return lambda streams, weights: (function(streams, weights)[kept],)

    check(gradients(one(form.fused), streams, weights), gradients(one(form.plain), streams, weights))


@needs_triton
@forms
def test_fused_errors_in_bfloat16_are_at_most_twice_the_plain_ones(form: Form) -> None:
    streams, weights = inputs(*((2, 4) if form is MIX else (1, 2)), (9, 423), torch.bfloat16)
    values = [function(streams, weights) for function in (form.fused, form.plain, form.exact)]
    slopes = [gradients(function, streams, weights) for function in (form.fused, form.plain, form.exact)]
    for fused, plain, exact in (*zip(*values, strict=True), *zip(*slopes, strict=True)):
        assert fused.dtype == plain.dtype
        assert error(fused, exact) <= 2 * error(plain, exact)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_sums_of_halves_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    streams, weights = inputs(2, 3, (9, 423), dtype)
    exact = [*exact_mix(streams, weights), *gradients(exact_mix, streams, weights)[:3]]
    found = [*fused_mix(streams, weights), *gradients(fused_mix, streams, weights)[:3]]
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert error(one, other.double()) <= 1.01 * error(other.detach().to(dtype), other.double())


@needs_triton
def test_weights_are_rounded_to_the_streams_dtype_and_their_gradients_are_not() -> None:
    streams, weights = inputs(1, 2, (9, 423), torch.bfloat16)
    finer = weights.detach().mul(1.002).requires_grad_()
    assert torch.equal(fused_mix(streams, finer)[0], fused_mix(streams, finer.bfloat16().float())[0])
    found, exact = (gradients(function, streams, finer)[-1] for function in (fused_mix, exact_mix))
    torch.testing.assert_close(found, exact, rtol=3e-6, atol=1e-5)
    streams_gradient, rounded = (gradients(fused_mix, streams, w)[0] for w in (finer, finer.bfloat16().float()))
    assert torch.equal(streams_gradient, rounded)


@needs_triton
def test_the_norm_is_that_of_the_rounded_sum() -> None:
    streams, weights = inputs(1, 2, (9, 423), torch.bfloat16)
    u, n = MIX_NORM.fused(streams, weights)[:2]
    exact = formula(u, scale=SCALE)
    assert error(n, exact) <= 1.01 * error(exact.bfloat16(), exact)


@needs_triton
def test_gradients_of_the_norm_are_taken_at_the_rounded_sum() -> None:
    streams, weights = inputs(1, 2, (9, 423), torch.bfloat16)
    found = gradients(lambda *given: MIX_NORM.fused(*given)[1:], streams, weights)[-1]
    rounded = MIX_NORM.fused(streams, weights)[0].double()

    def exact(streams: Sequence[Tensor], weights: Tensor) -> Sequence[Tensor]:
        (u,) = exact_mix(streams, weights)
        return (formula(u + (rounded - u).detach(), scale=SCALE),)

    torch.testing.assert_close(found, gradients(exact, streams, weights)[-1], rtol=3e-6, atol=6e-6)
