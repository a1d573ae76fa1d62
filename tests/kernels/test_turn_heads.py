"""Normalized, turned and gained heads against their formula in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from golf.kernels import turn_heads
from golf.kernels.jit import HAS_TRITON
from golf.kernels.turn_heads import as_tokens, fused_turn_heads, plain_turn_heads

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1.1920929e-07  # of float32, whatever the heads
SHAPES = [
    (2, 5, 3, 8, 2),
    (1, 423, 3, 6, 0),
    (2, 3, 3, 7, 2),
    (1, 3, 2, 6, 3),
    (1, 9, 8, 64, 8),
    (3, 1, 1, 1, 0),
]  # B, T, H, D, R
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
shapes = pytest.mark.parametrize("shape", SHAPES)
normalizes = pytest.mark.parametrize("normalize", [True, False])
gains = pytest.mark.parametrize("gained", [True, False])
Shape = tuple[int, int, int, int, int]


class Given(NamedTuple):
    """Float32 inputs; all but the gain's presence random."""

    heads: Tensor
    cos: Tensor
    sin: Tensor
    gain: Tensor | None
    weight: Tensor  # the gradient that arrives

    def leaves(self, dtype: torch.dtype, *, of_gain: torch.dtype | None = None) -> "Given":
        """Round to a dtype, ask for gradients."""
        gain = None if self.gain is None else self.gain.to(of_gain or dtype).requires_grad_()
        heads, cos, sin, weight = (x.to(dtype) for x in (self.heads, self.cos, self.sin, self.weight))
        return Given(heads.requires_grad_(), cos, sin, gain, weight)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every program of the backward walk several small tiles."""
    monkeypatch.setattr(turn_heads, "FORWARD_TILE", 32)
    monkeypatch.setattr(turn_heads, "BACKWARD_TILE", 16)
    monkeypatch.setattr(turn_heads, "BACKWARD_PROGRAMS", 4)


def given(shape: Shape, *, gained: bool = True) -> Given:
    batch, tokens, count, size, half = shape
    generator = torch.Generator().manual_seed(0)
    heads, weight = (torch.randn(batch, tokens, count, size, generator=generator) for _ in range(2))
    angles = torch.rand(tokens, 1, half, generator=generator) * 6
    gain = torch.randn(count, generator=generator) + 2 if gained else None
    tensors = (heads, angles.cos(), angles.sin(), gain, weight)
    return Given(*(None if x is None else x.to(DEVICE) for x in tensors))  # type: ignore[arg-type]  # only the gain may be None


def formula(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool) -> Tensor:
    """Turn the complex numbers of channels j and j + R by -angle, in float64."""
    x = heads.double()
    if normalize:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    half = cos.shape[-1]
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.complex(cos.double(), -sin.double())
    x = torch.cat([turned.real, turned.imag, x[..., 2 * half :]], dim=-1)
    return x if gain is None else x * gain.double()[:, None]


def outcome(function: object, case: Given, *, normalize: bool) -> list[Tensor]:
    """Return the values and the gradients of the heads and of the gain."""
    assert callable(function)
    out = function(case.heads, case.cos, case.sin, case.gain, normalize=normalize)
    leaves = [case.heads] if case.gain is None else [case.heads, case.gain]
    return [out.detach(), *torch.autograd.grad(out, leaves, case.weight.to(out.dtype))]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], *, atol: float = 2e-6) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=atol)


@shapes
@normalizes
@gains
def test_the_plain_form_is_the_formula(shape: Shape, normalize: bool, gained: bool) -> None:
    case = given(shape, gained=gained)
    found = plain_turn_heads(case.heads, case.cos, case.sin, case.gain, normalize=normalize)
    assert_near([found], [formula(*case[:4], normalize=normalize)])


def test_the_plain_form_rounds_tables_and_gain_to_the_dtype_of_the_heads() -> None:
    case = given(SHAPES[0])
    assert case.gain is not None
    exact = plain_turn_heads(case.heads.bfloat16(), case.cos, case.sin, case.gain, normalize=True)
    rounded = [x.bfloat16() for x in (case.heads, case.cos, case.sin, case.gain)]
    assert exact.dtype == torch.bfloat16
    assert torch.equal(exact, plain_turn_heads(*rounded, normalize=True))


@needs_triton
@shapes
@normalizes
@gains
def test_the_fused_form_and_its_gradients_are_the_formulas(shape: Shape, normalize: bool, gained: bool) -> None:
    case = given(shape, gained=gained).leaves(torch.float32)
    found = outcome(fused_turn_heads, case, normalize=normalize)
    assert_near(found, outcome(formula, case, normalize=normalize), atol=1e-5)


@needs_triton
@pytest.mark.usefixtures("short_turns")
@normalizes
def test_programs_that_walk_many_tiles_give_the_formulas_gradients(normalize: bool) -> None:
    case = given((2, 33, 3, 8, 2)).leaves(torch.float32)  # 198 heads: 17 turns of 6 programs of 2 heads
    found = outcome(fused_turn_heads, case, normalize=normalize)
    assert_near(found, outcome(formula, case, normalize=normalize), atol=1e-5)


@needs_triton
def test_heads_may_be_slices_of_a_projection() -> None:
    case = given((2, 5, 3, 8, 2))
    projection = torch.randn(2, 5, 5, 8, device=DEVICE)
    projection[:, :, 1:4] = case.heads
    heads = projection[:, :, 1:4].detach().requires_grad_()
    assert heads.stride() == (200, 40, 8, 1)
    sliced = outcome(fused_turn_heads, case.leaves(torch.float32)._replace(heads=heads), normalize=True)
    assert_near(sliced, outcome(formula, case.leaves(torch.float32), normalize=True), atol=1e-5)


def test_regular_tokens_are_not_copied() -> None:
    heads = torch.randn(2, 5, 6, 8)[:, :, 1:4]
    assert as_tokens(heads).data_ptr() == heads.data_ptr()
    assert as_tokens(heads).stride() == (48, 8, 1)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3)])
def test_irregular_tokens_are_copied(order: tuple[int, ...]) -> None:
    heads = torch.randn(3, 3, 3, 3).permute(order)
    assert torch.equal(as_tokens(heads), heads.reshape(9, 3, 3))
    assert as_tokens(heads).stride() == (9, 3, 1)


@needs_triton
@pytest.mark.parametrize("arrangement", ["transposed", "expanded", "strided"])
def test_the_gradient_that_arrives_may_lie_anyhow(arrangement: str) -> None:
    case = given((2, 5, 3, 8, 2)).leaves(torch.float32)
    weight = {
        "transposed": case.weight.transpose(1, 3).contiguous().transpose(1, 3),
        "expanded": case.weight[:1, :1, :1, :1].expand_as(case.weight),
        "strided": case.weight.repeat(1, 1, 2, 1)[:, :, :3],
    }[arrangement]
    assert not weight.is_contiguous()
    case = case._replace(weight=weight)
    found = outcome(fused_turn_heads, case, normalize=True)
    assert_near(found, outcome(formula, case, normalize=True), atol=1e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@normalizes
def test_the_fused_error_is_at_most_twice_the_plain_forms(dtype: torch.dtype, normalize: bool) -> None:
    case = given((2, 33, 3, 16, 4)).leaves(dtype, of_gain=torch.float32)
    exact_case = Given(*(x.detach().to(dtype).double() for x in case if x is not None)).leaves(torch.float64)
    exact = outcome(formula, exact_case, normalize=normalize)
    plain, fused = (outcome(f, case, normalize=normalize) for f in (plain_turn_heads, fused_turn_heads))
    assert [x.dtype for x in fused] == [dtype, dtype, torch.float32]
    for reference, one, other in zip(exact, plain, fused, strict=True):
        scale = float(reference.double().norm())
        allowed, found = (float((x.double() - reference.double()).norm()) / scale for x in (one, other))
        assert 0 < found <= 2 * allowed


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    case = given((2, 33, 3, 8, 2))
    low = case.leaves(dtype)
    high = Given(*(x.detach() for x in low if x is not None)).leaves(torch.float32)
    found, exact = (outcome(fused_turn_heads, x, normalize=True) for x in (low, high))
    assert torch.equal(found[0], exact[0].to(dtype))
    assert torch.equal(found[1], exact[1].to(dtype))


@needs_triton
def test_float32_tables_and_gain_are_rounded_to_the_dtype_of_the_heads() -> None:
    case = given((2, 5, 3, 8, 2))
    low = Given(*(x.bfloat16() for x in case if x is not None))
    assert case.gain is not None
    exact = Given(low.heads.requires_grad_(), case.cos, case.sin, case.gain.requires_grad_(), low.weight)
    first = outcome(fused_turn_heads, exact, normalize=True)
    second = outcome(fused_turn_heads, low.leaves(torch.bfloat16), normalize=True)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2].bfloat16(), second[2])


@needs_triton
def test_zero_heads_stay_zero_and_have_the_formulas_gradients() -> None:
    case = given((1, 5, 3, 8, 2))
    zero = case._replace(heads=torch.zeros_like(case.heads)).leaves(torch.float32)
    found = outcome(fused_turn_heads, zero, normalize=True)
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    assert_near(found, outcome(formula, zero, normalize=True))


@needs_triton
@pytest.mark.parametrize("shape", [(0, 5, 3, 8, 2), (2, 0, 3, 8, 2)])
def test_no_tokens_launch_nothing_and_the_gradient_of_the_gain_is_zero(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_heads, "_turn", None)
    monkeypatch.setattr(turn_heads, "_turn_back", None)
    out, d_heads, d_gain = outcome(fused_turn_heads, given(shape).leaves(torch.float32), normalize=True)
    assert out.shape == d_heads.shape == shape[:4]
    assert torch.equal(d_gain, torch.zeros_like(d_gain))


@needs_triton
def test_tables_and_gain_may_lie_anyhow() -> None:
    case = given((2, 5, 3, 8, 2)).leaves(torch.float32)
    assert case.gain is not None
    cos, sin = (x.transpose(0, 2).contiguous().transpose(0, 2) for x in (case.cos, case.sin))
    gain = torch.stack([case.gain.detach(), case.gain.detach()], dim=1)[:, 0].requires_grad_()
    assert not any(x.is_contiguous() for x in (cos, sin, gain))
    found = outcome(fused_turn_heads, case._replace(cos=cos, sin=sin, gain=gain), normalize=True)
    assert_near(found, outcome(formula, case, normalize=True), atol=1e-5)


@needs_triton
def test_the_gradient_of_a_slice_is_contiguous() -> None:
    case = given((2, 5, 6, 8, 2), gained=False)
    heads = case.heads[:, :, :3].requires_grad_()
    out = turn_heads._turn_back_op(case.weight[:, :, 3:], heads, case.cos, case.sin, None, True)
    assert out[0].stride() == (120, 24, 8, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 20 GB")
def test_channels_beyond_two_to_the_31_are_right() -> None:
    heads = torch.randn(1, 2**20 + 3, 8, 256, dtype=torch.bfloat16, device=DEVICE)
    angles = torch.rand(2**20 + 3, 1, 8, device=DEVICE) * 6
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    d_heads, _ = turn_heads._turn_back_op(heads, heads, cos, sin, None, True)
    found = [fused_turn_heads(heads, cos, sin, None, normalize=True), d_heads]
    tail = Given(heads[:, -3:], cos[-3:], sin[-3:], None, heads[:, -3:]).leaves(torch.float32)
    for one, other in zip(found, outcome(formula, tail, normalize=True), strict=True):
        torch.testing.assert_close(one[:, -3:].double(), other.double(), rtol=2**-8, atol=1e-4)


@needs_triton
@gains
def test_the_operators_pass_torchs_checks(gained: bool) -> None:
    case = given((2, 3, 3, 6, 2), gained=gained).leaves(torch.float32)
    torch.library.opcheck(turn_heads._turn_op, (*case[:4], True))
    fixed = [None if x is None else x.detach() for x in (case.weight, *case[:4])]
    torch.library.opcheck(turn_heads._turn_back_op, (*fixed, True))


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    case = given((1, 3, 3, 6, 2)).leaves(torch.float32)
    out = fused_turn_heads(*case[:4], normalize=True)
    (first,) = torch.autograd.grad(out.square().sum(), case.heads, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("heads", torch.zeros(2, 5, 3, 8, dtype=torch.float64), "float64"),
        ("heads", torch.zeros(5, 3, 8), r"\(B, T, H, D\)"),
        ("heads", torch.zeros(1, 1, 1, 1).expand(1, 2**20, 2**11, 8), "1073741824"),
        ("heads", torch.zeros(2, 5, 3, 3), "do not fit"),
        ("cos", torch.zeros(4, 1, 2), "do not fit"),
        ("cos", torch.zeros(5, 3, 2), "do not fit"),
        ("sin", torch.zeros(5, 1, 3), "do not fit"),
        ("cos", torch.zeros(5, 1, 2).bfloat16(), "bfloat16"),
        ("sin", torch.zeros(5, 1, 2).requires_grad_(), "constant"),
        ("gain", torch.zeros(4), r"\(3,\)"),
        ("gain", torch.zeros(3, 1), r"\(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, replacement: Tensor, message: str) -> None:
    case = given((2, 5, 3, 8, 2))._replace(**{name: replacement})
    with pytest.raises(ValueError, match=message):
        fused_turn_heads(*case[:4], normalize=True)
