"""Normalized, turned and gained heads against their formula in float64."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from golf.kernels import turn_heads, turn_kernels
from golf.kernels.jit import HAS_TRITON
from golf.kernels.project import join
from golf.kernels.turn_heads import Heads, fused_turn_heads, plain_turn_heads
from golf.kernels.turn_kernels import as_tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1.1920929e-07  # of float32, whatever the heads
SHAPES = [
    (2, 5, 3, 1, 8, 2),
    (1, 423, 3, 3, 6, 0),
    (2, 3, 3, 1, 7, 2),
    (1, 3, 2, 2, 6, 3),
    (1, 9, 8, 4, 64, 8),
    (3, 1, 1, 1, 1, 0),
]  # B, T, H, K, D, R
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
shapes = pytest.mark.parametrize("shape", SHAPES)
normalizes = pytest.mark.parametrize("normalize", [True, False])
gains = pytest.mark.parametrize("gained", [True, False])
Shape = tuple[int, int, int, int, int, int]


class Given(NamedTuple):
    """Float32 inputs; all but the gain's presence random."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    gain: Tensor | None
    incoming: tuple[Tensor, ...]  # the gradients of what `flat` returns

    def leaves(self, dtype: torch.dtype, *, of_gain: torch.dtype | None = None) -> "Given":
        """Round to a dtype, ask for gradients."""
        gain = None if self.gain is None else self.gain.detach().to(of_gain or dtype).requires_grad_()
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in self[:3])
        cos, sin = (x.to(dtype) for x in (self.cos, self.sin))
        return Given(q, k, v, cos, sin, gain, tuple(x.to(dtype) for x in self.incoming))


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every program of the backward walk several small tiles."""
    monkeypatch.setattr(turn_kernels, "FORWARD_TILE", 32)
    monkeypatch.setattr(turn_kernels, "BACKWARD_TILE", 16)
    monkeypatch.setattr(turn_kernels, "BACKWARD_PROGRAMS", 4)


def given(shape: Shape, *, gained: bool = True) -> Given:
    batch, tokens, count, kv_count, size, half = shape
    generator = torch.Generator().manual_seed(0)
    counts = (count, kv_count, kv_count, count, *[kv_count] * (2 * (count // kv_count) + 1))
    q, k, v, *incoming = (torch.randn(batch, tokens, x, size, generator=generator).to(DEVICE) for x in counts)
    angles = torch.rand(tokens, 1, half, generator=generator).to(DEVICE) * 6
    gain = (torch.randn(count, generator=generator) + 2).to(DEVICE) if gained else None
    return Given(q, k, v, angles.cos(), angles.sin(), gain, tuple(incoming))


def formula(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool
) -> Heads:
    """Turn the complex numbers of channels j and j + R by -angle, in float64."""
    turned_q, turned_k = (turned_by_formula(x, cos, sin, normalize=normalize) for x in (q, k))
    return Heads(turned_q * (1.0 if gain is None else gain.double()[:, None]), turned_k, v.double(), v.double(), ())


def turned_by_formula(heads: Tensor, cos: Tensor, sin: Tensor, *, normalize: bool) -> Tensor:
    x = heads.double()
    if normalize:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    half = cos.shape[-1]
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.complex(cos.double(), -sin.double())
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], dim=-1)


def flat(heads: Heads) -> tuple[Tensor, ...]:
    """Return q, k, v, v, then k and v for each further query head of a group, though they may come once."""
    again = heads.again or ((heads.k, heads.v),) * (heads.q.shape[2] // heads.k.shape[2] - 1)
    return *heads[:4], *(x for pair in again for x in pair)


def outcome(function: Callable[..., Heads], case: Given, *, normalize: bool) -> list[Tensor]:
    """Return the values and the gradients of the heads and of the gain."""
    out = flat(function(*case[:6], normalize=normalize))
    leaves = [*case[:3]] if case.gain is None else [*case[:3], case.gain]
    incoming = [x.to(y.dtype) for x, y in zip(case.incoming, out, strict=True)]
    return [*(x.detach() for x in out), *torch.autograd.grad(out, leaves, incoming)]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], *, atol: float = 2e-6) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=atol)


@shapes
@normalizes
@gains
def test_the_plain_form_is_the_formula(shape: Shape, normalize: bool, gained: bool) -> None:
    case = given(shape, gained=gained)
    found = plain_turn_heads(*case[:6], normalize=normalize)
    assert found.again == ()
    assert_near(flat(found), flat(formula(*case[:6], normalize=normalize)))


def test_the_plain_form_rounds_tables_and_gain_to_the_dtype_of_the_heads() -> None:
    case = given(SHAPES[0])
    assert case.gain is not None
    q, k, v = (x.bfloat16() for x in case[:3])
    exact = plain_turn_heads(q, k, v, case.cos, case.sin, case.gain, normalize=True)
    rounded = plain_turn_heads(q, k, v, *(x.bfloat16() for x in (case.cos, case.sin, case.gain)), normalize=True)
    for one, other in zip(flat(exact), flat(rounded), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)


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
    case = given((2, 33, 3, 3, 8, 2)).leaves(torch.float32)  # 198 heads: 17 turns of 6 programs of 2 heads
    found = outcome(fused_turn_heads, case, normalize=normalize)
    assert_near(found, outcome(formula, case, normalize=normalize), atol=1e-5)


def projected(case: Given) -> Given:
    """Return the case with heads that are slices of longer rows."""
    row = torch.cat([case.q[:, :, :1], case.q, case.k, case.v], dim=2).detach()
    _, *heads = row.split([1, case.q.shape[2], case.k.shape[2], case.k.shape[2]], dim=2)
    q, k, v = (x.requires_grad_() for x in heads)
    assert not any(x.is_contiguous() for x in heads)
    return case._replace(q=q, k=k, v=v)


@needs_triton
def test_heads_may_be_slices_of_a_projection() -> None:
    case = given((2, 5, 3, 1, 8, 2)).leaves(torch.float32)
    sliced = outcome(fused_turn_heads, projected(case), normalize=True)
    assert_near(sliced, outcome(formula, case, normalize=True), atol=1e-5)


@needs_triton
def test_the_gradients_of_the_heads_are_slices_of_one_tensor() -> None:
    case = projected(given((2, 5, 4, 2, 8, 2)).leaves(torch.float32))
    out = flat(fused_turn_heads(*case[:6], normalize=True))
    of_q, of_k, of_v = (x.flatten(2) for x in torch.autograd.grad(out, case[:3], case.incoming))
    assert join([of_q, of_k, of_v]).data_ptr() == of_q.data_ptr()


@needs_triton
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@normalizes
def test_gradients_of_a_groups_query_heads_are_added_up_as_the_plain_form_does(kv_heads: int, normalize: bool) -> None:
    case = given((2, 5, 4, kv_heads, 8, 2)).leaves(torch.float32)
    found = outcome(fused_turn_heads, case, normalize=normalize)
    assert_near(found, outcome(plain_turn_heads, case.leaves(torch.float64), normalize=normalize), atol=1e-5)


@needs_triton
@pytest.mark.parametrize("count", [4, 3, 2, 1])
def test_k_and_v_come_again_for_each_further_query_head_of_a_group(count: int) -> None:
    case = given((2, 5, 4, count, 8, 2))
    out = fused_turn_heads(*case[:6], normalize=True)
    assert len(out.again) == 4 // count - 1
    for k, v in out.again:
        assert torch.equal(k, out.k)
        assert (k.data_ptr(), v.data_ptr()) == (out.k.data_ptr(), case.v.data_ptr())  # not copied


# Of q, k, v, v, then k and v for each of two further query heads.
USED = [(0,), (1,), (2,), (3,), (4,), (5,), (0, 1), (1, 2, 3), (1, 4), (4, 6), (2, 3, 5), (0, 1, 2, 3, 6, 7), (1, 4, 6)]


@needs_triton
@pytest.mark.parametrize("used", USED)
def test_what_nothing_reads_has_no_part_in_the_gradients(used: tuple[int, ...]) -> None:
    case = given((2, 5, 3, 1, 8, 2)).leaves(torch.float32)
    gradients = []
    for function in (fused_turn_heads, formula):
        out = flat(function(*case[:6], normalize=True))
        leaves = [*case[:3], case.gain]
        incoming = [case.incoming[i].to(out[i].dtype) for i in used]
        gradients.append(torch.autograd.grad([out[i] for i in used], leaves, incoming, materialize_grads=True))  # type: ignore[arg-type]  # the gain is there
    assert_near(*gradients, atol=1e-5)


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
def test_the_gradients_that_arrive_may_lie_anyhow(arrangement: str) -> None:
    case = given((2, 5, 4, 2, 8, 2)).leaves(torch.float32)
    arrange: Callable[[Tensor, int], Tensor] = {
        "transposed": lambda x, _: x.transpose(1, 3).contiguous().transpose(1, 3),
        "expanded": lambda x, _: x[:1, :1, :1, :1].expand_as(x),
        "strided": lambda x, i: x.repeat(1, 1, 2 + i, 1)[:, :, : x.shape[2]],  # every one differently
    }[arrangement]
    case = case._replace(incoming=tuple(arrange(x, i) for i, x in enumerate(case.incoming)))
    assert not any(x.is_contiguous() for x in case.incoming)
    found = outcome(fused_turn_heads, case, normalize=True)
    assert_near(found, outcome(formula, case, normalize=True), atol=1e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@normalizes
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_fused_error_is_at_most_twice_the_plain_forms(dtype: torch.dtype, normalize: bool, kv_heads: int) -> None:
    case = given((2, 33, 4, kv_heads, 16, 4)).leaves(dtype, of_gain=torch.float32)
    exact_case = case.leaves(dtype).leaves(torch.float64)
    exact = outcome(formula, exact_case, normalize=normalize)
    plain, fused = (outcome(f, case, normalize=normalize) for f in (plain_turn_heads, fused_turn_heads))
    assert [x.dtype for x in fused] == [*[dtype] * (len(case.incoming) + 3), torch.float32]
    passed = (2, *range(3, len(case.incoming), 2))  # v itself
    for i, (reference, one, other) in enumerate(zip(exact, plain, fused, strict=True)):
        scale = float(reference.double().norm())
        allowed, found = (float((x.double() - reference.double()).norm()) / scale for x in (one, other))
        assert found <= 2 * allowed
        assert found > 0 or i in passed


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    low = given((2, 33, 4, 2, 8, 2)).leaves(dtype)
    found, exact = (outcome(fused_turn_heads, x, normalize=True) for x in (low, low.leaves(torch.float32)))
    for one, other in zip(found[:-1], exact[:-1], strict=True):
        assert torch.equal(one, other.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_that_the_kernel_has_no_place_for_are_added_up_before_and_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    first, *others = (torch.randn(2, 5, 3, 8, generator=generator).to(dtype) for _ in range(4))
    kept, total = turn_kernels._at_most(2, [first, *others])
    assert kept is not None
    assert total is not None
    assert kept.data_ptr() == first.data_ptr()
    expected = torch.stack(others).double().sum(0).to(dtype)
    assert total.dtype == dtype
    assert torch.equal(total.view_as(first), expected)


def test_gradients_that_the_kernel_has_places_for_are_handed_on() -> None:
    two = [torch.randn(2, 5, 3, 8) for _ in range(2)]
    *found, missing = turn_kernels._at_most(3, two)
    assert [x.data_ptr() for x in found if x is not None] == [x.data_ptr() for x in two]
    assert missing is None


@needs_triton
def test_float32_tables_and_gain_are_rounded_to_the_dtype_of_the_heads() -> None:
    case = given((2, 5, 3, 1, 8, 2))
    low = case.leaves(torch.bfloat16)
    exact = case.leaves(torch.bfloat16, of_gain=torch.float32)._replace(cos=case.cos, sin=case.sin)
    first, second = (outcome(fused_turn_heads, x, normalize=True) for x in (exact, low))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.bfloat16(), other)


@needs_triton
def test_zero_heads_stay_zero_and_have_the_formulas_gradients() -> None:
    case = given((1, 5, 3, 1, 8, 2))
    zero = case._replace(q=torch.zeros_like(case.q), k=torch.zeros_like(case.k)).leaves(torch.float32)
    found = outcome(fused_turn_heads, zero, normalize=True)
    assert not any(found[i].any() for i in (0, 1, 4, 6))  # q, and k each time
    assert_near(found, outcome(formula, zero, normalize=True))


@needs_triton
@pytest.mark.parametrize("shape", [(0, 5, 3, 1, 8, 2), (2, 0, 3, 1, 8, 2)])
def test_no_tokens_launch_nothing_and_the_gradient_of_the_gain_is_zero(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_kernels, "_turn", None)
    monkeypatch.setattr(turn_kernels, "_turn_back", None)
    case = given(shape).leaves(torch.float32)
    *found, d_gain = outcome(fused_turn_heads, case, normalize=True)
    assert [x.shape for x in found] == [x.shape for x in (*case.incoming, *case[:3])]
    assert torch.equal(d_gain, torch.zeros_like(d_gain))


@needs_triton
def test_tables_and_gain_may_lie_anyhow() -> None:
    case = given((2, 5, 3, 1, 8, 2)).leaves(torch.float32)
    assert case.gain is not None
    cos, sin = (x.transpose(0, 2).contiguous().transpose(0, 2) for x in (case.cos, case.sin))
    gain = torch.stack([case.gain.detach(), case.gain.detach()], dim=1)[:, 0].requires_grad_()
    assert not any(x.is_contiguous() for x in (cos, sin, gain))
    found = outcome(fused_turn_heads, case._replace(cos=cos, sin=sin, gain=gain), normalize=True)
    assert_near(found, outcome(formula, case, normalize=True), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 30 GB")
def test_channels_beyond_two_to_the_31_are_right() -> None:
    heads = torch.randn(1, 2**20 + 3, 8, 256, dtype=torch.bfloat16, device=DEVICE)
    angles = torch.rand(2**20 + 3, 1, 8, device=DEVICE) * 6
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    short = heads[:, :, :1]
    joint, _ = turn_heads._turn_back_op(heads, [short], [short], heads, short, cos, sin, None, True)
    found = [fused_turn_heads(heads, short, short, cos, sin, None, normalize=True).q, joint[:, :, :8]]
    q, k = (x[:, -3:].float().requires_grad_() for x in (heads, short))
    expected = fused_turn_heads(q, k, k, cos[-3:].float(), sin[-3:].float(), None, normalize=True).q
    (gradient,) = torch.autograd.grad(expected, q, heads[:, -3:].float())
    for one, other in zip(found, (expected.detach(), gradient), strict=True):
        torch.testing.assert_close(one[:, -3:].double(), other.double(), rtol=2**-8, atol=1e-4)


@needs_triton
@gains
def test_the_operators_pass_torchs_checks(gained: bool) -> None:
    case = given((2, 3, 3, 1, 6, 2), gained=gained)
    torch.library.opcheck(turn_heads._turn_op, (case.q, *case[3:6], True))
    of_q, of_k, of_v, of_same_v, *again = case.incoming
    for of_keys, of_values in (
        ([of_k], [of_v]),
        ([of_k], [of_v, of_same_v]),
        ([of_k, again[0]], [of_v, again[1], of_same_v]),
        ([of_k, *again[::2]], [of_v, *again[1::2], of_same_v]),
    ):
        given_back = (of_q, of_keys, of_values, case.q, case.k, *case[3:6], True)
        torch.library.opcheck(turn_heads._turn_back_op, given_back)


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    case = given((1, 3, 3, 1, 6, 2)).leaves(torch.float32)
    out = fused_turn_heads(*case[:6], normalize=True)
    (first,) = torch.autograd.grad(out.q.square().sum(), case.q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("q", torch.zeros(2, 5, 3, 8, dtype=torch.float64), "float64"),
        ("v", torch.zeros(2, 5, 1, 8).bfloat16(), "bfloat16"),
        ("q", torch.zeros(5, 3, 8), r"\(B, T, H, D\)"),
        ("q", torch.zeros(1, 1, 1, 1).expand(1, 2**20, 2**11, 8), "1073741824"),
        ("k", torch.zeros(2, 5, 2, 8), "do not fit q"),
        ("v", torch.zeros(2, 4, 1, 8), "do not fit q"),
        ("q", torch.zeros(2, 5, 3, 3), "do not fit q"),
        ("cos", torch.zeros(4, 1, 2), "do not fit heads"),
        ("cos", torch.zeros(5, 3, 2), "do not fit heads"),
        ("sin", torch.zeros(5, 1, 3), "do not fit heads"),
        ("cos", torch.zeros(5, 1, 2).bfloat16(), "bfloat16"),
        ("sin", torch.zeros(5, 1, 2).requires_grad_(), "constant"),
        ("gain", torch.zeros(4), r"\(3,\)"),
        ("gain", torch.zeros(3, 1), r"\(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, replacement: Tensor, message: str) -> None:
    case = given((2, 5, 3, 1, 8, 2))._replace(**{name: replacement})  # type: ignore[arg-type]  # none is `incoming`
    with pytest.raises(ValueError, match=message):
        fused_turn_heads(*case[:6], normalize=True)


def test_tables_for_more_channels_than_a_head_has_are_refused() -> None:
    case = given((2, 5, 3, 1, 3, 0))
    with pytest.raises(ValueError, match="do not fit heads"):
        fused_turn_heads(*case[:3], torch.zeros(5, 1, 2), torch.zeros(5, 1, 2), None, normalize=True)
