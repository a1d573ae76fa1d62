"""The two products of `fused_square_mlp` with their point-wise work fused in: persistent Triton products for Hopper.

M tokens, C model dim, F hidden width. Both make M x F of a sum over few C (98,304 x 2,048 over 512): a tile is eight
steps long, so what comes after its last step counts as much as the steps. The loops over tiles and steps are one, so
the loads of the next tile's first steps run during it, and tiles leave through the tensor memory accelerator (TMA),
cut into groups of columns. Tiles of the same tokens follow each other: the short matrix (2 MB) stays in the L2 cache
whole and the long one is read from memory once, so no other grouping of the tiles saves anything.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.jit import HAS_TRITON, ceil_div, jit, tl
from golf.kernels.tma import describable

if HAS_TRITON:
    from triton.tools.tensor_descriptor import TensorDescriptor

WORD = 32  # signs a word
GRAIN = 16  # of which C and F must be multiples: the TMA takes rows of whole 16 bytes
_INTERPRETED_PROGRAMS = 2  # few, so that a program walks over several tiles


class Tiles(NamedTuple):
    """How a product is cut."""

    rows: int  # of a tile: tokens
    columns: int  # of a tile: channels or hidden units
    depth: int  # of a step
    parts: int  # that a tile's columns leave in, and what they are multiplied with arrives in: 1, 2 or 4
    stages: int  # steps in flight
    warps: int
    programs: int  # a multiprocessor


# On an H200 "pair" is the fastest of 107 cuts both ways. A tile of 128 x 256 reads least from L2; "pair" reads a third
# more, but one program multiplies while the other one finishes its tile. Fewer parts wait less, more parts leave room
# for a stage.
FORWARD_TILES = {
    "whole": Tiles(128, 256, 64, parts=1, stages=3, warps=8, programs=1),
    "wide": Tiles(128, 256, 64, parts=2, stages=3, warps=8, programs=1),
    "deep": Tiles(128, 256, 64, parts=4, stages=4, warps=8, programs=1),
    "tall": Tiles(256, 128, 64, parts=4, stages=4, warps=8, programs=1),
    "pair": Tiles(128, 128, 64, parts=4, stages=3, warps=8, programs=2),
    "float32": Tiles(64, 64, 16, parts=1, stages=3, warps=8, programs=2),
}
BACKWARD_TILES = {
    "wide": Tiles(128, 256, 64, parts=2, stages=3, warps=8, programs=1),
    "deep": Tiles(128, 256, 64, parts=4, stages=4, warps=8, programs=1),
    "tall": Tiles(256, 128, 64, parts=2, stages=3, warps=8, programs=1),
    "pair": Tiles(128, 128, 64, parts=4, stages=3, warps=8, programs=2),
    "float32": Tiles(64, 64, 16, parts=1, stages=3, warps=8, programs=2),
}


@jit
def _cut(tile: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr) -> Any:
    """Return the PARTS groups of columns of a tile, from left to right."""
    if PARTS == 1:
        return (tile,)
    else:  # without it, Triton would cut for ever
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        return _cut(left, ROWS, COLUMNS // 2, PARTS // 2) + _cut(right, ROWS, COLUMNS // 2, PARTS // 2)


@jit
def squares(z: "Any", slope_squared: "Any") -> Any:
    """Return phi(z) in float32: z^2 where z > 0 and slope^2 z^2 elsewhere."""
    return tl.where(z > 0, z * z, z * z * slope_squared)


@jit
def pack_signs(z: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> Any:
    """Return the signs of float32 z (ROWS, COLUMNS), (ROWS, COLUMNS / 32) int32: bit b of word w is column 32 w + b."""
    negative = tl.reshape(z.to(tl.int32, bitcast=True) >> 31, (ROWS, COLUMNS // 32, 32))
    return tl.sum(negative & (1 << tl.arange(0, 32))[None, None, :], axis=2)


@jit
def slopes(hidden: "Any", signs: "Any", below: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> Any:
    """Return phi'(z) in float32 from hidden = phi(z) (ROWS, COLUMNS) and the words of signs: (2 or below) sqrt(hidden).

    A thread of a matrix product has pairs of columns, eight apart; which pair only depends on the thread. So the words
    are shifted by pairs first, and the rest of a column's place is a constant of the code.
    """
    words = (signs[:, :, None] >> (2 * tl.arange(0, 4))[None, None, :])[:, :, None, :, None]
    bit = 1 << (8 * tl.arange(0, 4)[:, None, None] + tl.arange(0, 2)[None, None, :])
    negative = tl.reshape(words & bit[None, None, :, :, :], (ROWS, COLUMNS)) != 0
    return tl.sqrt(hidden.to(tl.float32)) * tl.where(negative, below, 2.0)


@jit
def _words_at(row: "Any", column: "Any", rows: "Any", words: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> Any:
    """Return where a tile's signs lie within (rows, words), and which of them do."""
    token = (row + tl.arange(0, ROWS))[:, None]
    word = (column // 32 + tl.arange(0, COLUMNS // 32))[None, :]
    return token.to(tl.int64) * words + word, (token < rows) & (word < words)


@jit
def _square_product(
    n: "Any",  # descriptor of (M, C), a block is (ROWS, DEPTH)
    fc: "Any",  # of (F, C), (COLUMNS, DEPTH)
    hidden: "Any",  # of (M, F), (ROWS, COLUMNS / PARTS)
    signs: "Any",  # (M, words)
    rows: "Any",
    words: "Any",
    steps: "Any",
    tiles: "Any",
    tiles_across: "Any",
    slope_squared: "Any",
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    tl.assume(steps > 0)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // tiles_across * ROWS, tile % tiles_across * COLUMNS
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            k = step * DEPTH
            z = tl.dot(n.load([row, k]), fc.load([column, k]).T, z, input_precision="ieee")
        at, inside = _words_at(row, column, rows, words, ROWS, COLUMNS)
        tl.store(signs + at, pack_signs(z, ROWS, COLUMNS), mask=inside)
        parts = _cut(squares(z, slope_squared).to(hidden.dtype), ROWS, COLUMNS, PARTS)
        for part in tl.static_range(PARTS):
            hidden.store([row, column + part * (COLUMNS // PARTS)], parts[part])


@jit
def _slope_product(
    dy: "Any",  # descriptor of (M, C), a block is (ROWS, DEPTH)
    proj: "Any",  # of (C, F), (DEPTH, COLUMNS)
    hidden: "Any",  # of (M, F), (ROWS, COLUMNS / PARTS)
    dz: "Any",  # of (M, F), (ROWS, COLUMNS / PARTS)
    signs: "Any",  # (M, words)
    rows: "Any",
    words: "Any",
    steps: "Any",
    tiles: "Any",
    tiles_across: "Any",
    below: "Any",
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    tl.assume(steps > 0)
    WIDTH: tl.constexpr = COLUMNS // PARTS
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // tiles_across * ROWS, tile % tiles_across * COLUMNS
        h = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            k = step * DEPTH
            h = tl.dot(dy.load([row, k]), proj.load([k, column]), h, input_precision="ieee")
        parts = _cut(h, ROWS, COLUMNS, PARTS)
        for part in tl.static_range(PARTS):  # one at a time: the sums alone take half of the registers
            start = column + part * WIDTH
            at, inside = _words_at(row, start, rows, words, ROWS, WIDTH)
            found = tl.load(signs + at, mask=inside, other=0)
            slope = slopes(hidden.load([row, start]), found, below, ROWS, WIDTH)
            dz.store([row, start], (parts[part] * slope).to(dz.dtype))


def square_product(
    n: Tensor, fc: Tensor, hidden: Tensor, signs: Tensor, *, negative_slope: float, tiles: Tiles
) -> None:
    """Write phi(n fc^T) into `hidden` (M, F) and the signs of n fc^T into `signs` (M, F / 32); n (M, C), fc (F, C).

    The activation takes the float32 sums; all tensors are contiguous and not empty, C and F multiples of GRAIN.
    """
    left, right, out = (tiles.rows, tiles.depth), (tiles.columns, tiles.depth), (tiles.rows, _width(tiles))
    tensors = _described(n, left), _described(fc, right), _described(hidden, out), signs
    _launch(_square_product, tensors, hidden, n.shape[1], negative_slope**2, tiles)


def slope_product(
    dy: Tensor, proj: Tensor, hidden: Tensor, signs: Tensor, dz: Tensor, *, negative_slope: float, tiles: Tiles
) -> None:
    """Write (dy proj) phi'(z) into `dz` (M, F), where `hidden` and `signs` are as `square_product` wrote them for z.

    dy (M, C), proj (C, F). The product takes the float32 sums; all tensors are contiguous and not empty, C and F
    multiples of GRAIN.
    """
    left, right, out = (tiles.rows, tiles.depth), (tiles.depth, tiles.columns), (tiles.rows, _width(tiles))
    tensors = _described(dy, left), _described(proj, right), _described(hidden, out), _described(dz, out), signs
    _launch(_slope_product, tensors, hidden, dy.shape[1], slope_below(negative_slope), tiles)


def slope_below(negative_slope: float) -> float:
    """Return phi'(z) / sqrt(phi(z)) below zero: 2 slope^2 z / |slope z|, and of slope 0 its limit."""
    return -2.0 * abs(negative_slope)


def _launch(kernel: Any, tensors: tuple[Any, ...], hidden: Tensor, depth: int, number: float, tiles: Tiles) -> None:
    rows, width = hidden.shape
    across = ceil_div(width, tiles.columns)
    count = ceil_div(rows, tiles.rows) * across
    programs = _count_programs(hidden.device, tiles.programs)
    sizes = rows, ceil_div(width, WORD), ceil_div(depth, tiles.depth), count, across, number
    shape = tiles.rows, tiles.columns, tiles.depth, tiles.parts
    kernel[min(programs, count),](*tensors, *sizes, *shape, num_warps=tiles.warps, num_stages=tiles.stages)


def _width(tiles: Tiles) -> int:
    return tiles.columns // tiles.parts


def _described(matrix: Tensor, block: tuple[int, int]) -> Any:
    """Return the descriptor by which the TMA moves a `block` of a contiguous `matrix` with rows of whole 16 bytes."""
    ready = describable(matrix)
    return TensorDescriptor(ready, list(ready.shape), list(ready.stride()), list(block))


def _count_programs(device: torch.device, each: int) -> int:
    """Return how many programs fill `device`, so many `each` of its multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return each * int(torch.cuda.get_device_properties(device).multi_processor_count)
