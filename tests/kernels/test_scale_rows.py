"""Weights times the gain of their output: the plain form's bits, and its gradients."""

import pytest
import torch
from torch import Tensor

from golf.kernels import scale_rows
from golf.kernels.jit import HAS_TRITON
from golf.kernels.scale_rows import MAX_COLUMNS, fused_scale_rows, plain_scale_rows
from tests.kernels.interpreter import round_as_a_gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(5, 7), (1, 1), (16, 64), (3, 100), (259, 15), (3, 2500)]  # part of a tile, whole ones, and longer rows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


def given(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, gain = (torch.randn(size, generator=generator).to(DEVICE) for size in (shape, shape[:1]))
    return weight.requires_grad_(), gain.requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_plain_forms_and_so_are_gradients(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEVICE.type == "cpu":
        round_as_a_gpu(monkeypatch)
    weight, gain = given(shape)
    found, expected = (form(weight, gain, dtype) for form in (fused_scale_rows, plain_scale_rows))
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    incoming = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    by_weight, by_gain = torch.autograd.grad(found, (weight, gain), incoming)
    exact_by_weight, exact_by_gain = torch.autograd.grad(expected, (weight, gain), incoming)
    assert torch.equal(by_weight, exact_by_weight)
    torch.testing.assert_close(by_gain, exact_by_gain, rtol=1e-5, atol=1e-5)  # a sum in another order


def test_tensors_may_lie_anyhow() -> None:
    weight, gain = (x.detach() for x in given((6, 10)))
    turned, every_second = weight.T.contiguous().T, gain.repeat_interleave(2)[::2]
    found = fused_scale_rows(turned, every_second, torch.float32)
    assert torch.equal(found, plain_scale_rows(weight, gain, torch.float32))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_numbers_launch_nothing(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_rows, "_scale_rows", None)
    monkeypatch.setattr(scale_rows, "_scale_rows_back", None)
    weight, gain = given(shape)
    out = fused_scale_rows(weight, gain, torch.float32)
    by_weight, by_gain = torch.autograd.grad(out.sum(), (weight, gain))
    assert out.shape == by_weight.shape == shape
    assert not by_gain.any()


def test_the_operators_pass_their_own_check() -> None:
    weight, gain = given((3, 5))
    torch.library.opcheck(torch.ops.golf.scale_rows.default, (weight, gain, torch.float16))
    fixed = (torch.ones(3, 5, device=DEVICE), weight.detach(), gain.detach())
    torch.library.opcheck(torch.ops.golf.scale_rows_backward.default, fixed)


def test_a_second_derivative_is_refused() -> None:
    weight, gain = given((3, 5))
    out = fused_scale_rows(weight, gain, torch.float32)
    (first,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("weight", "gain", "message"),
    [
        (torch.zeros(3, 5).bfloat16(), torch.zeros(3), "bfloat16"),
        (torch.zeros(3, 5), torch.zeros(3).double(), "float64"),
        (torch.zeros(3, 5), torch.zeros(5), r"\(3, 5\), gain \(5,\)"),
        (torch.zeros(3, 5, 1), torch.zeros(3), r"\(3, 5, 1\)"),
        (torch.zeros(1, 1).expand(1, MAX_COLUMNS + 1), torch.zeros(1), "16385"),
    ],
)
def test_what_does_not_fit_is_refused(weight: Tensor, gain: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_scale_rows(weight, gain, torch.bfloat16)
