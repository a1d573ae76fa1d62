"""The norm, plain and fused, against its formula in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.kernels import norm
from golf.kernels.jit import HAS_TRITON
from golf.kernels.norm import Tile, fused_norm, fused_stream_norm, plain_norm, plain_stream_norm, rms_norm, row_tile

EPS = 1.1920929e-07  # of float32, whatever the input
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SCALE = 3**-0.5
SHAPES = [(3,), (2, 423), (2, 3, 4, 5), (300, 7), (2, 2500)]  # a row, part of a tile, more than one tile, a longer row
Norm = Callable[..., Tensor]

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


def formula(x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    x = x.double()
    return scale * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def gradient(function: Norm, x: Tensor, incoming: Tensor) -> Tensor:
    """Return the gradient of x from the `incoming` of scale * norm(x), which is rounded to the norm's dtype."""
    x = x.detach().requires_grad_()
    out = function(x, scale=SCALE)
    (found,) = torch.autograd.grad(out, x, incoming.to(out.dtype))
    return found


def error(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm()).detach())


@pytest.mark.parametrize("shape", [(3,), (2, 423), (2, 3, 4, 5)])
def test_values_are_divided_by_their_root_mean_square(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms_norm(x).double(), formula(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_epsilon_is_that_of_float32_for_every_dtype(dtype: torch.dtype) -> None:
    x = torch.full((1, 8), 2.0**-11)  # mean square 2.4e-7, near the epsilon; bfloat16's own is 0.0078, float64's 2e-16
    torch.testing.assert_close(rms_norm(x.to(dtype)).double(), formula(x), rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert rms_norm(torch.ones(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="autocast to float32 happens on CUDA alone")
def test_the_dtype_is_kept_under_autocast() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert rms_norm(torch.ones(2, 3, dtype=torch.bfloat16, device="cuda")).dtype == torch.bfloat16


def test_bfloat16_is_normalized_in_float32_and_rounded_once() -> None:
    x = torch.randn(5, 423, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rms_norm(x), formula(x).bfloat16())


def test_a_zero_vector_stays_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_the_plain_norm_is_scaled() -> None:
    x = random((5, 423))
    torch.testing.assert_close(plain_norm(x, scale=SCALE).double(), formula(x, scale=SCALE), rtol=1e-6, atol=1e-7)
    assert torch.equal(plain_norm(x), rms_norm(x))


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_values_are_the_float64_formulas(shape: tuple[int, ...]) -> None:
    x = random(shape)
    torch.testing.assert_close(fused_norm(x, scale=SCALE).double(), formula(x, scale=SCALE), rtol=1e-6, atol=1e-7)


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_gradients_are_the_float64_formulas(shape: tuple[int, ...]) -> None:
    x, incoming = random(shape), random(shape, seed=1)
    expected = gradient(formula, x.double(), incoming.double())
    torch.testing.assert_close(gradient(fused_norm, x, incoming).double(), expected, rtol=2e-6, atol=1e-6)


@needs_triton
def test_without_a_scale_the_fused_norm_is_the_plain_one() -> None:
    x = random((5, 423))
    torch.testing.assert_close(fused_norm(x), rms_norm(x), rtol=1e-6, atol=1e-7)


@needs_triton
def test_the_fused_epsilon_is_that_of_float32() -> None:
    x = torch.full((1, 8), 2.0**-11, device=DEVICE)  # mean square 2.4e-7, near the epsilon
    torch.testing.assert_close(fused_norm(x).double(), formula(x), rtol=1e-6, atol=0)
    incoming = random((1, 8))
    expected = gradient(formula, x.double(), incoming.double())
    torch.testing.assert_close(gradient(fused_norm, x, incoming).double(), expected, rtol=1e-5, atol=1e-2)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_halves_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x, incoming = random((37, 423)).to(dtype), random((37, 423), seed=1).to(dtype)
    exact = formula(x, scale=SCALE)
    found = fused_norm(x, scale=SCALE)
    assert found.dtype == dtype
    assert error(found, exact) <= 1.01 * error(exact.to(dtype), exact)
    exact = gradient(formula, x.double(), incoming.double())
    assert error(gradient(fused_norm, x, incoming), exact) <= 1.01 * error(exact.to(dtype), exact)


@needs_triton
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_along_the_norm_is_at_most_twice_as_far_from_float64_as_the_plain_one(
    dtype: torch.dtype, share: float
) -> None:
    """What of it lies along the norm must vanish, but the norm that the backward reads is rounded."""
    x, other = random((37, 423)).to(dtype), random((37, 423), seed=1)
    incoming = (share * x.float() + (1 - share) * other).to(dtype)
    exact = gradient(formula, x.double(), incoming.double())
    assert error(gradient(fused_norm, x, incoming), exact) <= 2 * error(gradient(plain_norm, x, incoming), exact)


@needs_triton
@pytest.mark.parametrize("size", [2.0**-11, 2.0**-14, 2.0**-30, 2.0**12])
def test_a_gradient_is_exact_where_the_epsilon_counts(size: float) -> None:
    x, incoming = random((5, 423)) * size, random((5, 423), seed=1)
    exact = gradient(formula, x.double(), incoming.double())
    assert error(gradient(fused_norm, x, incoming), exact) < 1e-6


@needs_triton
def test_fused_errors_in_bfloat16_are_at_most_twice_the_plain_ones() -> None:
    x, incoming = random((37, 423)).bfloat16(), random((37, 423), seed=1).bfloat16()
    exact = formula(x, scale=SCALE)
    assert error(fused_norm(x, scale=SCALE), exact) <= 2 * error(plain_norm(x, scale=SCALE), exact)
    exact = gradient(formula, x.double(), incoming.double())
    assert error(gradient(fused_norm, x, incoming), exact) <= 2 * error(gradient(plain_norm, x, incoming), exact)


@needs_triton
@pytest.mark.parametrize(
    "incoming", [random((423, 5)).mT, random((423,)).expand(5, 423), random((1, 1)).expand(5, 423)]
)
def test_inputs_and_incoming_gradients_may_have_any_strides(incoming: Tensor) -> None:
    x = random((423, 5), seed=1).mT
    torch.testing.assert_close(fused_norm(x), rms_norm(x), rtol=1e-6, atol=1e-7)
    expected = gradient(plain_norm, x, incoming)
    torch.testing.assert_close(gradient(fused_norm, x, incoming), expected, rtol=2e-6, atol=1e-6)


Streams = Callable[..., tuple[Tensor, Tensor]]


@needs_triton
def test_both_gradients_of_a_stream_are_added_up_in_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    added = []
    compute = norm._norm_gradient

    def watch(*arguments: Any) -> Tensor:
        added.append(arguments[3] is not None)
        found: Tensor = compute(*arguments)
        return found

    monkeypatch.setattr(norm, "_norm_gradient", watch)

    def through(stream_norm: Streams) -> tuple[Tensor, Tensor]:
        u, n = stream_norm(leaf * 2, scale=SCALE)
        total = u.mT.contiguous().mT + n  # gradients of any strides
        return u, torch.autograd.grad(total, leaf, incoming)[0]

    leaf, incoming = random((5, 423)).requires_grad_(), random((5, 423), seed=1)
    found, expected = through(fused_stream_norm), through(plain_stream_norm)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=2e-6, atol=1e-6)
    assert added == [True]


@needs_triton
@pytest.mark.parametrize("kept", [0, 1])
def test_either_gradient_of_a_stream_may_be_missing(kept: int) -> None:
    x, incoming = random((5, 423)).requires_grad_(), random((5, 423), seed=1)
    found, expected = (
        torch.autograd.grad(stream_norm(x, scale=SCALE)[kept] * 1, x, incoming)[0]
        for stream_norm in (fused_stream_norm, plain_stream_norm)
    )
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


@needs_triton
@pytest.mark.parametrize("gradients", [True, False])
def test_a_stream_may_be_overwritten_once_its_norm_is_taken(gradients: bool) -> None:
    x, incoming = random((5, 423)).requires_grad_(), random((5, 423), seed=1)
    with torch.set_grad_enabled(gradients):
        before = x * 1
        u, n = fused_stream_norm(before, scale=SCALE)
        u += n
    assert u.data_ptr() == before.data_ptr()
    assert not u._is_view()
    torch.testing.assert_close(u, x + plain_norm(x, scale=SCALE), rtol=1e-6, atol=1e-6)
    if gradients:
        (found,) = torch.autograd.grad(u, x, incoming)
        torch.testing.assert_close(found, incoming + gradient(plain_norm, x, incoming), rtol=2e-6, atol=1e-6)


@needs_triton
def test_the_backward_keeps_the_norm_and_a_number_a_row() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, n = fused_stream_norm(random((5, 423)).requires_grad_() * 1, scale=SCALE)
    normalized, rstd = kept
    assert normalized.data_ptr() == n.data_ptr()
    assert rstd.shape == (5,)


@needs_triton
def test_the_one_gradient_of_a_stream_is_not_changed_by_what_is_added_to_it() -> None:
    def total(stream_norm: Streams, leaf: Tensor) -> Tensor:
        x = leaf * 2
        u, n = stream_norm(x, scale=SCALE)
        v, m = stream_norm(u + n, scale=SCALE)  # its gradients join others of x, of u and of n
        return (v * x).sum() + m.pow(3).sum() + (u * leaf).sum() + n.sum()

    leaf = random((3, 5)).requires_grad_()
    found, expected = (torch.autograd.grad(total(f, leaf), leaf) for f in (fused_stream_norm, plain_stream_norm))
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=6e-6)


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be scaled by 0"):
        fused_norm(torch.ones(2, 3), scale=0.0)


@needs_triton
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 7)])
def test_nothing_is_launched_for_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(shape)
    monkeypatch.setattr(norm, "_norm_forward", None)
    monkeypatch.setattr(norm, "_norm_backward", None)
    assert fused_norm(x).shape == gradient(fused_norm, x, x).shape == shape


@needs_triton
def test_a_zero_vector_has_the_plain_gradient() -> None:
    x, incoming = torch.zeros(2, 3, device=DEVICE), random((2, 3))
    torch.testing.assert_close(gradient(fused_norm, x, incoming), gradient(plain_norm, x, incoming))


@needs_triton
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_the_fused_norm_is_an_operator_that_compiles() -> None:
    x = random((5, 7)).bfloat16()
    torch.library.opcheck(norm._norm, (x, SCALE))
    for other in (None, x * 2):
        torch.library.opcheck(norm._norm_gradient, (x, random((5,)), x * 3, other, SCALE))
    compiled = torch.compile(fused_norm, fullgraph=True, backend="aot_eager")
    assert torch.equal(gradient(compiled, x, x), gradient(fused_norm, x, x))


def drop(x: Tensor) -> Tensor:
    """Pass a tensor on, but no gradient back, not even zeros."""
    passed: Tensor = _Drop.apply(x)  # type: ignore[no-untyped-call]  # torch's own
    return passed


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


@needs_triton
def test_where_no_gradient_arrives_none_is_given() -> None:
    x = random((2, 3)).requires_grad_()
    drop(fused_norm(x)).sum().backward()
    assert x.grad is None


@needs_triton
def test_second_derivatives_are_refused() -> None:
    x = random((2, 3)).requires_grad_()
    (first,) = torch.autograd.grad(fused_norm(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        fused_norm(torch.ones(2, 3, dtype=torch.float64))


def test_a_tile_is_a_power_of_two_of_rows_or_one_longer_row() -> None:
    assert row_tile(512, 2048) == Tile(4, 512, 4)
    assert row_tile(423, 2048) == Tile(4, 512, 4)
    assert row_tile(1, 2048) == Tile(2048, 1, 4)
    assert row_tile(4097, 2048) == Tile(1, 8192, 16)
    assert row_tile(2049, 1024) == Tile(1, 4096, 16)
    assert row_tile(100_000, 2048) == Tile(1, 131_072, 16)
