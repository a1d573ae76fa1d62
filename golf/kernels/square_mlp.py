"""Linear, squared leaky ReLU, linear (squared ReLU: Primer, arXiv:2109.08668) as one operation.

M tokens, C model dim, F hidden width. z = n fc^T, hidden = phi(z), y = hidden proj^T, with phi(z) = z^2 above zero and
(slope z)^2 below; y is added to a residual stream where there is one. The backward does not keep z: phi'(z) is
2 sqrt(hidden) above zero and -2 |slope| sqrt(hidden) below, so `hidden` and a bit a unit suffice, and half of hidden's
relative rounding is all that this costs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.add_product import add_in_place, as_rows, can_take
from golf.kernels.jit import ceil_div, jit, tl
from golf.kernels.leaky_relu_square import leaky_relu_square
from golf.kernels.square_mlp_gemm import (
    BACKWARD_TILES,
    FORWARD_TILES,
    GRAIN,
    WORD,
    pack_signs,
    slope_below,
    slope_product,
    slopes,
    square_product,
    squares,
)
from golf.kernels.square_mlp_rows import RINGS, run_on, slope_rows, square_rows, why_not

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MATMUL = (
    "matmul"  # the product by PyTorch, then one pass over it; any other way is a key of the tables of tiles or RINGS
)


class Ways(NamedTuple):
    """How the two products that the activation touches are computed."""

    forward: str  # of n and fc
    backward: str  # of dy and proj


# On an H200.
FASTEST = Ways("pair", "pair")
FASTEST_ROWS = Ways("deep rows", "deep rows")  # each is faster still where it can be taken
POINTWISE_WORDS = 128  # a program, of 32 elements each
POINTWISE_WARPS = 4


def plain_square_mlp(
    n: Tensor, fc: Tensor, proj: Tensor, *, negative_slope: float, onto: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return y (..., C_out) and hidden (..., F) of n (..., C), fc (F, C) and proj (C_out, F), all of one dtype.

    A stream to add y `onto`, (..., C_out), is spent: whoever hands it over reads it no more, nor has autograd kept it.
    `hidden` is there to be observed: no gradient flows through it.
    """
    hidden = leaky_relu_square(F.linear(n, fc), negative_slope=negative_slope)
    y = F.linear(hidden, proj)
    return y if onto is None else onto + y, hidden.detach()


@jit
def _word_at(count: "Any", words: "Any", width: "Any", WORDS: tl.constexpr) -> Any:
    """Return a program's words, where the elements of each lie within (M, F), and which of both there are."""
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)[:, None]
    column = word % words * 32 + tl.arange(0, 32)[None, :]
    is_word = word < count
    return word, (word // words).to(tl.int64) * width + column, is_word, is_word & (column < width)


@jit
def _square(
    z: "Any",  # (M, F), becomes hidden
    signs: "Any",  # (M, words)
    count: "Any",  # M * words
    words: "Any",
    width: "Any",
    slope_squared: "Any",
    WORDS: tl.constexpr,
) -> None:
    word, at, is_word, inside = _word_at(count, words, width, WORDS)
    x = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(signs + word, pack_signs(x, WORDS, 32), mask=is_word)
    tl.store(z + at, squares(x, slope_squared).to(z.dtype.element_ty), mask=inside)


@jit
def _slope(
    h: "Any",  # (M, F), becomes dz
    hidden: "Any",  # (M, F)
    signs: "Any",  # (M, words)
    count: "Any",  # M * words
    words: "Any",
    width: "Any",
    below: "Any",
    WORDS: tl.constexpr,
) -> None:
    word, at, is_word, inside = _word_at(count, words, width, WORDS)
    found = tl.load(signs + word, mask=is_word, other=0)
    slope = slopes(tl.load(hidden + at, mask=inside, other=0.0), found, below, WORDS, 32)
    dz = tl.load(h + at, mask=inside, other=0.0).to(tl.float32) * slope
    tl.store(h + at, dz.to(h.dtype.element_ty), mask=inside)


@torch.library.custom_op("golf::square_mlp_hidden", mutates_args=())
def _hidden_op(n: Tensor, fc: Tensor, negative_slope: float, way: str) -> tuple[Tensor, Tensor]:
    """Return hidden (M, F) and the packed signs of z (M, F / 32, rounded up)."""
    signs = n.new_empty(len(n), ceil_div(len(fc), WORD), dtype=torch.int32)
    if way == MATMUL:
        hidden = n @ fc.T
        _pass_over(_square, [hidden, signs], negative_slope**2)
    else:
        hidden = n.new_empty(len(n), len(fc))
        if hidden.numel():
            _square_by(way, n, fc, hidden, signs, negative_slope)
    return hidden, signs


@_hidden_op.register_fake
def _(n: Tensor, fc: Tensor, negative_slope: float, way: str) -> tuple[Tensor, Tensor]:
    tokens, width = n.shape[0], fc.shape[0]  # len() would fix a number that may vary
    return n.new_empty(tokens, width), n.new_empty(tokens, ceil_div(width, WORD), dtype=torch.int32)


@torch.library.custom_op("golf::square_mlp_backward", mutates_args=())
def _backward_op(
    dy: Tensor,
    n: Tensor,
    fc: Tensor,
    proj: Tensor,
    hidden: Tensor,
    signs: Tensor,
    negative_slope: float,
    way: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of n, fc and proj as far as they are `wanted`."""
    found, dy = [], dy.contiguous()
    if wanted[0] or wanted[1]:
        dz = _dz(dy, proj, hidden, signs, negative_slope, way)
        if wanted[0]:
            found.append(dz @ fc)
        if wanted[1]:
            found.append(dz.T @ n)
    if wanted[2]:
        found.append(dy.T @ hidden)
    return found


def _square_by(way: str, n: Tensor, fc: Tensor, hidden: Tensor, signs: Tensor, negative_slope: float) -> None:
    if way in RINGS:
        square_rows(n, fc, hidden, signs, slope_squared=negative_slope**2, ring=RINGS[way])
    else:
        square_product(n, fc, hidden, signs, negative_slope=negative_slope, tiles=FORWARD_TILES[way])


def _dz(dy: Tensor, proj: Tensor, hidden: Tensor, signs: Tensor, negative_slope: float, way: str) -> Tensor:
    if way == MATMUL:
        dz = dy @ proj
        _pass_over(_slope, [dz, hidden, signs], slope_below(negative_slope))
        return dz
    dz = torch.empty_like(hidden)
    if dz.numel() and way in RINGS:
        slope_rows(dy, proj, hidden, signs, dz, below=slope_below(negative_slope), ring=RINGS[way])
    elif dz.numel():
        slope_product(dy, proj, hidden, signs, dz, negative_slope=negative_slope, tiles=BACKWARD_TILES[way])
    return dz


def _pass_over(kernel: Any, tensors: Sequence[Tensor], number: float) -> None:
    """Let a kernel change the first tensor (M, F); the last one are its signs."""
    signs = tensors[-1]
    if signs.numel():
        sizes = signs.numel(), signs.shape[1], tensors[0].shape[1], number
        grid = ceil_div(signs.numel(), POINTWISE_WORDS)
        kernel[grid,](*tensors, *sizes, POINTWISE_WORDS, num_warps=POINTWISE_WARPS)


@_backward_op.register_fake
def _backward_fake(
    dy: Tensor,
    n: Tensor,
    fc: Tensor,
    proj: Tensor,
    hidden: Tensor,
    signs: Tensor,
    negative_slope: float,
    way: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, is_wanted in zip((n, fc, proj), wanted, strict=True) if is_wanted]


class _SquareMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, n: Tensor, fc: Tensor, proj: Tensor, onto: Tensor | None, negative_slope: float, ways: Ways
    ) -> tuple[Tensor, Tensor]:
        leading = n.shape[:-1]
        rows, fc, proj = (x.contiguous() for x in (as_rows(n), fc, proj))
        hidden, signs = _hidden_op(rows, fc, negative_slope, ways.forward)
        shown = hidden.view(*leading, len(fc))
        ctx.negative_slope, ctx.way = negative_slope, ways.backward
        ctx.set_materialize_grads(False)  # nobody reads the 400 MB of zeros that would stand for hidden's
        ctx.mark_non_differentiable(shown)
        ctx.save_for_backward(rows, fc, proj, hidden, signs)
        if onto is None:
            return F.linear(shown, proj), shown
        ctx.mark_dirty(onto)
        add_in_place(onto, hidden, proj)
        return onto, shown

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        rows, *others = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        found = iter(_backward_op(as_rows(dy), rows, *others, ctx.negative_slope, ctx.way, wanted))
        by_n, by_fc, by_proj = (next(found) if is_wanted else None for is_wanted in wanted)
        by_n = None if by_n is None else by_n.view(*dy.shape[:-1], rows.shape[1])
        return by_n, by_fc, by_proj, dy if ctx.needs_input_grad[3] else None, None, None


def fused_square_mlp(
    n: Tensor,
    fc: Tensor,
    proj: Tensor,
    *,
    negative_slope: float,
    onto: Tensor | None = None,
    by_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Do what `plain_square_mlp` does, keeping `hidden` and a bit a unit for the backward instead of z and `hidden`.

    The sum with `onto` takes its place, as in `golf.kernels.add_product`, wherever it can. Where the kernels of
    `golf.kernels.square_mlp_rows` run (`can_go_by_rows`), `by_rows` takes them for sizes that fit.
    float32, bfloat16 and float16 (whose gradients lose digits where hidden < 2^-14: it underflows). Gradients of
    all three inputs; no second derivatives (RuntimeError). Raises ValueError if shapes or dtypes do not fit.
    """
    ways = ways_for(n.dtype, (*fc.shape, *proj.shape), by_rows=by_rows)
    return square_mlp_by(ways, n, fc, proj, negative_slope=negative_slope, onto=onto)


def square_mlp_by(
    ways: Ways, n: Tensor, fc: Tensor, proj: Tensor, *, negative_slope: float, onto: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `fused_square_mlp` does in the given ways; a benchmark compares them.

    Tiles square the float32 sums, MATMUL squares z rounded to its dtype. Raises ValueError if a way cannot do it.
    """
    _check(n, fc, proj)
    for way, table in zip(ways, (FORWARD_TILES, BACKWARD_TILES), strict=True):
        _check_way(way, table, n.dtype, (*fc.shape, *proj.shape))
    taken = onto if onto is not None and can_take(onto, n, proj) else None
    y, hidden = _SquareMlp.apply(n, fc, proj, taken, negative_slope, ways)  # type: ignore[no-untyped-call]  # torch's own
    return y if onto is None or taken is not None else onto + y, hidden


def ways_for(dtype: torch.dtype, sizes: Sequence[int], *, by_rows: bool = False) -> Ways:
    """Return the fastest ways for a dtype and the `sizes` of fc and proj.

    FASTEST for a dtype of 16 bits and multiples of GRAIN, MATMUL for the rest. `by_rows` says that FASTEST_ROWS runs:
    then each product that fits it goes that way.
    """
    if dtype is torch.float32 or not _fit(sizes):
        return Ways(MATMUL, MATMUL)
    if not by_rows:
        return FASTEST
    width, channels, outputs, _ = sizes
    forward, backward = FASTEST_ROWS
    return Ways(
        FASTEST.forward if why_not(RINGS[forward], dtype, width, channels) else forward,
        FASTEST.backward if why_not(RINGS[backward], dtype, width, outputs) else backward,
    )


def can_go_by_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether FASTEST_ROWS runs on `device` and does `dtype`; which sizes it does, `ways_for` knows."""
    return dtype is torch.bfloat16 and run_on(device)


def _fit(sizes: Sequence[int]) -> bool:
    return all(size > 0 and size % GRAIN == 0 for size in sizes)


def _check_way(way: str, table: dict[str, Any], dtype: torch.dtype, sizes: Sequence[int]) -> None:
    if way == MATMUL:
        return
    if way in RINGS:
        width, channels, outputs, _ = sizes
        reason = why_not(RINGS[way], dtype, width, channels if table is FORWARD_TILES else outputs)
        if reason is not None:
            raise ValueError(f"{way!r} does not do it: {reason}")
        return
    if way not in table:
        raise ValueError(f"no way {way!r}; there are {', '.join((MATMUL, *table, *RINGS))}")
    if not _fit(sizes) or (dtype is torch.float32) != (way == "float32"):
        raise ValueError(f"{way!r} does not do {dtype} and sizes {tuple(sizes)}; they must be multiples of {GRAIN}")


def _check(n: Tensor, fc: Tensor, proj: Tensor) -> None:
    if n.dtype not in DTYPES or fc.dtype != n.dtype or proj.dtype != n.dtype:
        raise ValueError(f"n, fc, proj are {n.dtype}, {fc.dtype}, {proj.dtype}; one of float32, bfloat16, float16")
    if n.dim() < 1 or fc.dim() != 2 or proj.dim() != 2 or fc.shape[1] != n.shape[-1] or proj.shape[1] != fc.shape[0]:
        given = tuple(n.shape), tuple(fc.shape), tuple(proj.shape)
        raise ValueError(f"n, fc, proj are {given[0]}, {given[1]}, {given[2]}; not (..., C), (F, C), (C_out, F)")
