"""FlashAttention-4 and -3 as golf calls them, their packages replaced by stand-ins that compute the formula."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from golf.kernels import flash_ops
from golf.kernels.flash_ops import flash3_attention, flash4_attention, open_flash3, open_flash4
from tests.kernels.flash_stand_ins import (
    FLASH3_BACKWARD,
    FLASH3_FORWARD,
    attend,
    place_flash4,
    place_module,
    placed_flash3,
)
from tests.kernels.test_attention import segment_attention

BOUNDS = [0, 3, 10, 23, 24, 46, 46, 46]  # one row's end is at 23; the last two segments are padding
Attention = Callable[..., Tensor]


@pytest.fixture(params=["fa4", "fa3"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A FlashAttention whose package a stand-in takes the place of."""
    with ExitStack() as stack:
        if request.param == "fa4":
            place_flash4(monkeypatch)
        else:
            stack.enter_context(placed_flash3(monkeypatch))
        yield request.param


@pytest.fixture
def flash(name: str) -> Attention:
    return open_flash4() if name == "fa4" else open_flash3()


def inputs(dtype: torch.dtype = torch.bfloat16, heads: int = 6, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of 23 tokens, 16 wide heads."""
    generator = torch.Generator().manual_seed(heads)
    shapes = [(2, 23, count, 16) for count in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def segments() -> dict[str, Any]:
    return {"cu_seqlens": torch.tensor(BOUNDS, dtype=torch.int32), "max_seqlen": 2048}


def further(k: Tensor, v: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return k and v again, of which nothing but the shapes may be read."""
    pairs = [[torch.full_like(x, torch.nan).requires_grad_() for x in (k, v)] for _ in range(count)]
    return [(k, v) for k, v in pairs]


def exact_gradients(q: Tensor, k: Tensor, v: Tensor, incoming: Tensor) -> tuple[Tensor, ...]:
    q, k, v = leaves = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    return torch.autograd.grad(segment_attention(q, k, v, BOUNDS), leaves, incoming.double())


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_values_are_one_softmax_a_segment(flash: Attention, dtype: torch.dtype, kv_heads: int) -> None:
    q, k, v = inputs(dtype, kv_heads=kv_heads)
    out = flash(q, k, v, **segments())
    assert out.dtype == dtype
    expected = segment_attention(q.double(), k.double(), v.double(), BOUNDS)
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


INCOMING = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1, :1, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", INCOMING)
def test_gradients_are_those_of_the_formula_for_every_layout_of_the_incoming_one(flash: Attention, layout: str) -> None:
    q, k, v = leaves = tuple(x.requires_grad_() for x in inputs())
    incoming = INCOMING[layout](torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16())
    found = torch.autograd.grad(flash(q, k, v, **segments()), leaves, incoming)
    for gradient, exact in zip(found, exact_gradients(q, k, v, incoming), strict=True):
        assert gradient.dtype == torch.bfloat16
        assert gradient.is_contiguous()
        assert distance(gradient, exact) < 4e-3  # the output, of 8 bits, and the gradient itself are rounded


def test_gradients_flow_where_they_are_wanted_alone(flash: Attention) -> None:
    q, k, v = inputs()
    k.requires_grad_()
    (found,) = torch.autograd.grad(flash(q, k, v, **segments()).sum(), k)
    assert distance(found, exact_gradients(q, k, v, torch.ones_like(q))[1]) < 4e-3


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_each_query_head_of_a_group_gives_gradients_to_a_pair_of_its_own(
    monkeypatch: pytest.MonkeyPatch, kv_heads: int
) -> None:
    group = 6 // kv_heads
    q, k, v = (x.requires_grad_() for x in inputs(kv_heads=kv_heads))
    pairs = [(k, v), *further(k, v, group - 1)]
    incoming = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    with placed_flash3(monkeypatch):
        summed = torch.autograd.grad(flash3_attention(q, k, v, **segments()), (q, k, v), incoming)
        out = flash3_attention(q, k, v, **segments(), again=pairs[1:])
        dq, *parts = torch.autograd.grad(out, (q, *(x for pair in pairs for x in pair)), incoming)
    assert torch.equal(dq, summed[0])
    for member in range(group):
        heads = slice(member, None, group)
        exact = exact_gradients(q[:, :, heads], k, v, incoming[:, :, heads])[1:]
        for gradient, expected in zip(parts[2 * member : 2 * member + 2], exact, strict=True):
            assert gradient.is_contiguous()
            assert distance(gradient, expected) < 4e-3
    for one, total in zip((parts[::2], parts[1::2]), summed[1:], strict=True):
        assert torch.equal(torch.stack(one).sum(0), total)


def test_flash4_gives_all_gradients_to_k_and_v(monkeypatch: pytest.MonkeyPatch) -> None:
    place_flash4(monkeypatch)
    q, k, v = (x.requires_grad_() for x in inputs())
    pairs = further(k, v, 2)
    out = flash4_attention(q, k, v, **segments(), again=pairs)
    found = torch.autograd.grad(out.sum(), (q, k, v, *pairs[0], *pairs[1]), allow_unused=True)
    expected = torch.autograd.grad(flash4_attention(q, k, v, **segments()).sum(), (q, k, v))
    assert [x is None for x in found[3:]] == [True] * 4
    torch.testing.assert_close(found[:3], expected, rtol=0, atol=0)


def test_what_comes_again_is_neither_kept_nor_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    q, k, v = (x.requires_grad_() for x in inputs())
    k_again, v_again = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (k, v))
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with placed_flash3(monkeypatch), watched(made), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        flash3_attention(q, k, v, **segments(), again=[(k_again, v_again)] * 2)
    assert not [name for name in made if "clone" in name or "copy" in name]
    places = {x.data_ptr() for x in kept}
    assert {x.data_ptr() for x in (q, k, v)} <= places
    assert not {x.data_ptr() for x in (k_again, v_again)} & places


@pytest.mark.parametrize(("kv_heads", "count", "fits"), [(2, 1, 2), (2, 3, 2), (6, 1, 0)])
def test_pairs_for_other_than_all_further_query_heads_are_refused(kv_heads: int, count: int, fits: int) -> None:
    q, k, v = inputs(kv_heads=kv_heads)
    told = f"6 query heads of {kv_heads} key/value heads take k and v again 0 or {fits} times, not {count}"
    with pytest.raises(ValueError, match=told):
        flash3_attention(q, k, v, **segments(), again=further(k, v, count))


@pytest.mark.parametrize(("before", "after"), [(8, 0), (0, 3), (3, 5)])
def test_heads_of_longer_rows_give_what_their_copies_give(flash: Attention, before: int, after: int) -> None:
    """Rows that are no multiple of 16 bytes long, or heads that begin at no such address, cannot be read in place."""
    q, k, v = inputs()
    row = F.pad(torch.cat([x.flatten(2) for x in (q, k, v)], dim=-1), (before, after))  # (B, T, before + 160 + after)
    views = [x.unflatten(-1, (-1, 16)) for x in row.split([before, 96, 32, 32, after], dim=-1)[1:4]]
    assert not views[0].is_contiguous()
    assert torch.equal(flash(*views, **segments()), flash(q, k, v, **segments()))


def test_heads_shared_by_expansion_give_what_their_copies_give(flash: Attention) -> None:
    q, k, v = inputs(kv_heads=1)
    k, v = (x.expand(2, 23, 3, 16) for x in (k, v))
    assert torch.equal(flash(q, k, v, **segments()), flash(q, k.contiguous(), v.contiguous(), **segments()))


def test_heads_are_read_in_place_where_they_can_be() -> None:
    x = torch.zeros(5, 32, 16)[:, 4:12]
    assert flash_ops._aligned(x) is x


def test_the_operators_of_flash4_pass_opcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    place_flash4(monkeypatch)
    q, k, v = (x.flatten(0, 1) for x in inputs(heads=2, kv_heads=1))
    bounds = torch.tensor(BOUNDS, dtype=torch.int32), 2048
    out, lse = flash_ops._flash4(q, k, v, *bounds)
    torch.library.opcheck(flash_ops._flash4, (*(x.clone().requires_grad_() for x in (q, k, v)), *bounds))
    torch.library.opcheck(flash_ops._flash4_backward, (torch.ones_like(q), q, k, v, out, lse, *bounds))


@pytest.mark.parametrize("count", [0, 2])
def test_the_operators_of_flash3_pass_opcheck(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    heads = inputs(heads=3, kv_heads=1)
    q, k, v = (x.flatten(0, 1) for x in heads)
    again = [x.detach().zero_().requires_grad_() for pair in further(*heads[1:], count) for x in pair]
    bounds = torch.tensor(BOUNDS, dtype=torch.int32), 2048
    with placed_flash3(monkeypatch):
        out, lse = flash_ops._flash3(q, k, v, *bounds, [])
        torch.library.opcheck(flash_ops._flash3, (*(x.clone().requires_grad_() for x in (q, k, v)), *bounds, again))
        torch.library.opcheck(flash_ops._flash3_backward, (torch.ones_like(q), q, k, v, out, lse, *bounds, count > 0))


def test_compiled_as_one_graph_it_gives_the_same_bits(flash: Attention) -> None:
    leaves = tuple(x.requires_grad_() for x in inputs())
    given = segments()

    def step(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        out = flash(q * 2, k, v, **given)
        return out, *torch.autograd.grad(out.square().sum(), (q, k, v))

    whole = torch.compile(lambda q, k, v: flash(q * 2, k, v, **given), backend="aot_eager", fullgraph=True)
    out = whole(*leaves)
    found = (out, *torch.autograd.grad(out.square().sum(), leaves))
    torch.testing.assert_close(found, step(*leaves), rtol=0, atol=0)


def test_compiled_as_one_graph_the_parts_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in inputs())
    leaves, bounds = (q, k, v, *(x for pair in further(k, v, 2) for x in pair)), segments()

    def form(*given: Tensor) -> Tensor:
        q, k, v, *again = given
        return flash3_attention(q * 2, k, v, **bounds, again=list(zip(again[::2], again[1::2], strict=True)))

    with placed_flash3(monkeypatch):
        results = []
        for function in (form, torch.compile(form, backend="aot_eager", fullgraph=True)):
            out = function(*leaves)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_second_derivative_is_refused(flash: Attention) -> None:
    leaves = tuple(x.requires_grad_() for x in inputs())
    out = flash(*leaves, **segments())
    (dq,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        dq.sum().backward()


def test_the_log_sum_exp_has_no_gradient(name: str) -> None:
    q, k, v = (x.flatten(0, 1).requires_grad_() for x in inputs())
    given = q, k, v, segments()["cu_seqlens"], 2048
    out, lse = flash_ops._flash4(*given) if name == "fa4" else flash_ops._flash3(*given, [])
    assert out.requires_grad
    assert not lse.requires_grad
    expected = attend(q.detach(), k.detach(), v.detach(), segments()["cu_seqlens"], 0.25)[1]
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-6)


def watched(made: list[str]) -> TorchDispatchMode:
    """Write down what PyTorch is asked for."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(str(function))
            return function(*args, **(kwargs or {}))

    return Watch()  # type: ignore[no-untyped-call]  # PyTorch's constructor is untyped


def test_no_gradient_of_zeros_is_made_for_the_log_sum_exp(flash: Attention) -> None:
    """PyTorch would fill one on the GPU with every call."""
    made: list[str] = []
    leaves = tuple(x.requires_grad_() for x in inputs())
    out = flash(*leaves, **segments())
    with watched(made):
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert any("backward" in name for name in made)
    assert not [name for name in made if "zeros" in name]


def test_no_tokens_need_no_package() -> None:
    q, k, v = (x[:, :0].requires_grad_() for x in inputs())
    for form in (flash4_attention, flash3_attention):
        out = form(q, k, v, cu_seqlens=torch.zeros(2, dtype=torch.int32), max_seqlen=2048)
        assert out.shape == (2, 0, 6, 16)
        assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]
    pairs = further(k, v, 2)
    out = flash3_attention(q, k, v, cu_seqlens=torch.zeros(2, dtype=torch.int32), max_seqlen=2048, again=pairs)
    assert [x.shape for x in torch.autograd.grad(out.sum(), pairs[1])] == [k.shape, v.shape]


WRONG: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "torch.float32": lambda q, k, v: (q.float(), k.float(), v.float()),
    "torch.float16": lambda q, k, v: (q, k.half(), v),
    r"takes \(B, T, H, D\)": lambda q, k, v: (q[0, :, :2], k[0], v[0]),
    "and twice": lambda q, k, v: (q, k, v[:, :, :1]),
    r"k \(2, 22, 2, 16\)": lambda q, k, v: (q, k[:, 1:], v[:, 1:]),
    "5 query heads do not share 2": lambda q, k, v: (q[:, :, 1:], k, v),
    "6 query heads do not share 0": lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]),
    "one head size": lambda q, k, v: (q, k[..., :8], v[..., :8]),
    "multiple of 8": lambda q, k, v: (q[..., :12], k[..., :12], v[..., :12]),
    "up to 256": lambda q, k, v: (q.repeat(1, 1, 1, 17), k.repeat(1, 1, 1, 17), v.repeat(1, 1, 1, 17)),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_the_kernels_do_not_take_is_refused(told: str) -> None:
    with pytest.raises(ValueError, match=told):
        flash4_attention(*WRONG[told](*inputs()), **segments())


def test_boundaries_of_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cu_seqlens is torch\.int64"):
        flash3_attention(*inputs(), cu_seqlens=torch.tensor(BOUNDS), max_seqlen=2048)


@pytest.mark.parametrize("older", ["_flash_attn_fwd", "_flash_attn_bwd"])
def test_functions_that_do_not_take_what_they_would_be_given_are_refused(
    monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    place_flash4(monkeypatch)
    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], older, lambda q, k, v, out=None: q)
    with pytest.raises(TypeError, match="argument"):
        open_flash4()


@pytest.mark.parametrize(
    ("older", "told"),
    [
        ({"forward": FLASH3_FORWARD.replace("is_causal", "causal")}, "fwd takes no is_causal"),
        ({"forward": FLASH3_FORWARD.replace(", int num_splits=0", "")}, "fwd takes no num_splits"),
        ({"backward": FLASH3_BACKWARD.replace("max_seqlen", "max_length")}, "bwd takes no max_seqlen_q, max_seqlen_k"),
        ({"backward": FLASH3_BACKWARD.replace("Tensor dout", "Tensor d_out")}, "bwd takes no dout"),
    ],
)
def test_operators_that_do_not_take_what_they_would_be_given_are_refused(
    monkeypatch: pytest.MonkeyPatch, older: dict[str, str], told: str
) -> None:
    with placed_flash3(monkeypatch, **older), pytest.raises(TypeError, match=told):
        open_flash3()


def test_a_module_that_registers_no_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place_module(monkeypatch, "flash_attn_interface")
    with pytest.raises(AttributeError, match="fwd"):
        open_flash3()
