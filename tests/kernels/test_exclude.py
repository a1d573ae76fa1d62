"""Outputs without their own values' direction, gated, against their formula in float64."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from golf.kernels import exclude
from golf.kernels.exclude import fused_exclude, plain_exclude
from golf.kernels.jit import HAS_TRITON

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(2, 5, 6, 3, 8), (1, 423, 3, 3, 6), (2, 3, 3, 1, 7), (1, 7, 8, 4, 64), (3, 1, 1, 1, 1)]  # B, T, H, K, D
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
shapes = pytest.mark.parametrize("shape", SHAPES)
gatings = pytest.mark.parametrize("gated", [True, False])
Shape = tuple[int, int, int, int, int]
Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Given(NamedTuple):
    """Random float32 inputs, or what became of them."""

    y: Tensor
    v: Tensor
    weight: Tensor  # the gradient that arrives
    gates: Tensor | None = None

    def leaves(self, dtype: torch.dtype) -> "Given":
        """Round to a dtype, ask for gradients."""
        gates = None if self.gates is None else self.gates.detach().to(dtype).requires_grad_()
        y, v, weight = (x.detach().to(dtype) for x in self[:3])
        return Given(y.requires_grad_(), v.requires_grad_(), weight, gates)


def given(shape: Shape, *, gated: bool = True) -> Given:
    batch, tokens, heads, kv_heads, dim = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, tokens, count, dim) for count in (heads, kv_heads, heads)]
    y, v, weight = (torch.randn(size, generator=generator).to(DEVICE) for size in sizes)
    gates = torch.rand(batch, tokens, heads, generator=generator).to(DEVICE)
    return Given(y, v, weight, gates if gated else None)


def formula(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    """Return y - (y . v) / (v . v) v of the query head's value, gated, in float64."""
    value = v.double().repeat_interleave(y.shape[2] // v.shape[2], dim=2)
    along = torch.einsum("bthd,bthd->bth", y.double(), value) / value.square().sum(-1)
    rest = y.double() - along[..., None] * value
    return rest if gates is None else rest * gates.double()[..., None]


def outcome(form: Form, case: Given) -> list[Tensor]:
    """Return the values and the gradients of y, v and the gates."""
    out = form(case.y, case.v, case.gates)
    leaves = [case.y, case.v] if case.gates is None else [case.y, case.v, case.gates]
    return [out.detach(), *torch.autograd.grad(out, leaves, case.weight.to(out.dtype))]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=5e-6)


@shapes
@gatings
def test_the_plain_form_is_the_formula(shape: Shape, gated: bool) -> None:
    case = given(shape, gated=gated)
    assert_near([plain_exclude(case.y, case.v, case.gates)], [formula(case.y, case.v, case.gates)])


def test_the_plain_form_computes_in_float32_and_rounds_once() -> None:
    case = given(SHAPES[0]).leaves(torch.bfloat16)
    assert case.gates is not None
    exact = plain_exclude(case.y.float(), case.v.float(), case.gates.float())
    assert torch.equal(plain_exclude(case.y, case.v, case.gates), exact.bfloat16())


@needs_triton
@shapes
@gatings
def test_the_fused_form_and_its_gradients_are_the_formulas(shape: Shape, gated: bool) -> None:
    case = given(shape, gated=gated).leaves(torch.float32)
    assert_near(outcome(fused_exclude, case), outcome(formula, case))


@needs_triton
def test_many_programs_of_few_rows_give_the_formulas_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclude, "FORWARD_TILE", 32)  # 4 of 66 rows
    monkeypatch.setattr(exclude, "BACKWARD_TILE", 16)
    case = given((2, 11, 6, 3, 8)).leaves(torch.float32)
    assert_near(outcome(fused_exclude, case), outcome(formula, case))


@needs_triton
def test_outputs_and_values_may_be_slices_of_longer_rows() -> None:
    case = given((2, 5, 6, 3, 8)).leaves(torch.float32)
    y, v = torch.randn(2, 5, 9, 8, device=DEVICE), torch.randn(2, 5, 12, 8, device=DEVICE)
    y[:, :, 2:8], v[:, :, 9:] = case.y.detach(), case.v.detach()
    sliced = case._replace(y=y[:, :, 2:8].requires_grad_(), v=v[:, :, 9:].requires_grad_())
    assert_near(outcome(fused_exclude, sliced), outcome(formula, case))


@needs_triton
@pytest.mark.parametrize("arrangement", ["transposed", "expanded", "strided"])
def test_the_gradient_that_arrives_may_lie_anyhow(arrangement: str) -> None:
    case = given((2, 5, 6, 3, 8)).leaves(torch.float32)
    weight = {
        "transposed": case.weight.transpose(1, 3).contiguous().transpose(1, 3),
        "expanded": case.weight[:1, :1, :1, :1].expand_as(case.weight),
        "strided": case.weight.repeat(1, 1, 2, 1)[:, :, :6],
    }[arrangement]
    assert not weight.is_contiguous()
    case = case._replace(weight=weight)
    assert_near(outcome(fused_exclude, case), outcome(formula, case))


@needs_triton
def test_gates_may_lie_anyhow() -> None:
    case = given((2, 5, 6, 3, 8)).leaves(torch.float32)
    assert case.gates is not None
    gates = case.gates.detach().mT.contiguous().mT
    assert not gates.is_contiguous()
    turned = case._replace(gates=gates.requires_grad_())
    assert_near(outcome(fused_exclude, turned), outcome(formula, case))


@needs_triton
@pytest.mark.parametrize("length", [0.0, 1e-14, 1e-11])
def test_values_about_the_least_length_have_the_plain_forms_gradients(length: float) -> None:
    case = given((2, 5, 6, 3, 8))
    short = case._replace(v=case.v * (length / 3)).leaves(torch.float32)  # of 8 channels: about that length
    found, expected = outcome(fused_exclude, short), outcome(plain_exclude, short)
    assert all(bool(x.isfinite().all()) for x in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@gatings
def test_the_fused_error_is_at_most_twice_the_plain_forms(dtype: torch.dtype, gated: bool) -> None:
    case = given((2, 33, 6, 3, 16), gated=gated).leaves(dtype)
    exact = outcome(formula, case.leaves(torch.float64))
    plain, fused = (outcome(form, case) for form in (plain_exclude, fused_exclude))
    for reference, one, other in zip(exact, plain, fused, strict=True):
        assert other.dtype == dtype
        scale = float(reference.norm())
        allowed, found = (float((x.double() - reference).norm()) / scale for x in (one, other))
        assert 0 < found <= 2 * allowed


@needs_triton
def test_each_result_is_rounded_once_to_the_dtype_of_its_own_input() -> None:
    case = given((2, 5, 6, 3, 8))
    assert case.gates is not None
    y, v, gates = case.y.bfloat16(), case.v.half(), case.gates.bfloat16()
    mixed = Given(y.requires_grad_(), v.requires_grad_(), case.weight.bfloat16(), gates.requires_grad_())
    found, exact = outcome(fused_exclude, mixed), outcome(fused_exclude, mixed.leaves(torch.float32))
    for one, other, dtype in zip(found, exact, [y.dtype, y.dtype, v.dtype, gates.dtype], strict=True):
        assert torch.equal(one, other.to(dtype))


@needs_triton
def test_float32_gates_of_bfloat16_heads_have_float32_gradients() -> None:
    case = given((2, 5, 6, 3, 8))
    assert case.gates is not None
    low = Given(*(x.bfloat16() for x in case[:3])).leaves(torch.bfloat16)._replace(gates=case.gates.requires_grad_())
    found, expected = outcome(fused_exclude, low), outcome(formula, low)
    assert found[3].dtype == torch.float32
    torch.testing.assert_close(found[3], expected[3], rtol=1e-5, atol=5e-6)


@needs_triton
def test_gradients_are_contiguous() -> None:
    case = given((2, 5, 6, 3, 8))
    v = case.v.repeat(1, 1, 2, 1)[:, :, 3:]
    dy, dv, _ = exclude._exclude_back_op(case.weight.mT.contiguous().mT, case.y, v, None)
    assert (dy.stride(), dv.stride()) == ((240, 48, 8, 1), (120, 24, 8, 1))


@needs_triton
@pytest.mark.parametrize("shape", [(0, 5, 6, 3, 8), (2, 0, 6, 3, 8)])
def test_no_tokens_launch_nothing(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclude, "_exclude", None)
    monkeypatch.setattr(exclude, "_exclude_back", None)
    assert [x.numel() for x in outcome(fused_exclude, given(shape).leaves(torch.float32))] == [0, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 30 GB")
def test_channels_beyond_two_to_the_31_are_right() -> None:
    y = torch.randn(1, 2**20 + 3, 8, 256, dtype=torch.bfloat16, device=DEVICE)
    v = torch.randn(1, 2**20 + 3, 8, 256, dtype=torch.bfloat16, device=DEVICE)
    dy, dv, _ = exclude._exclude_back_op(y, y, v, None)
    tail = Given(*(x[:, -3:].contiguous() for x in (y, v, y))).leaves(torch.float32)
    found, expected = [fused_exclude(y, v, None), dy, dv], outcome(formula, tail)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[:, -3:].double(), other.double(), rtol=2**-8, atol=1e-4)


@needs_triton
@gatings
def test_the_operators_pass_torchs_checks(gated: bool) -> None:
    case = given((2, 3, 6, 3, 7), gated=gated)
    leaves = case.leaves(torch.float32)
    torch.library.opcheck(exclude._exclude_op, (leaves.y, leaves.v, leaves.gates))
    torch.library.opcheck(exclude._exclude_back_op, (case.weight, case.y, case.v, case.gates))


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    case = given((1, 3, 6, 3, 7)).leaves(torch.float32)
    out = fused_exclude(case.y, case.v, case.gates)
    (first,) = torch.autograd.grad(out.square().sum(), case.y, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("y", torch.zeros(2, 5, 6, 8, dtype=torch.float64), "float64"),
        ("v", torch.zeros(2, 5, 3, 8, dtype=torch.float64), "float64"),
        ("gates", torch.zeros(2, 5, 6, dtype=torch.float64), "float64"),
        ("y", torch.zeros(5, 6, 8), "heads, D"),
        ("v", torch.zeros(5, 3, 8), "heads, D"),
        ("y", torch.zeros(1, 1, 1, 1).expand(1, 2**20, 2**11, 8), "1073741824"),
        ("v", torch.zeros(2, 4, 3, 8), "does not fit"),
        ("v", torch.zeros(2, 5, 3, 7), "does not fit"),
        ("v", torch.zeros(2, 5, 4, 8), "does not fit"),
        ("v", torch.zeros(2, 5, 0, 8), "does not fit"),
        ("gates", torch.zeros(2, 5, 3), r"\(2, 5, 6\)"),
        ("gates", torch.zeros(2, 5, 6, 1), r"\(2, 5, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, replacement: Tensor, message: str) -> None:
    case = given((2, 5, 6, 3, 8))._replace(**{name: replacement})
    with pytest.raises(ValueError, match=message):
        fused_exclude(case.y, case.v, case.gates)
