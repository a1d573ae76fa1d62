"""A sum of products with one result, for the input's gradient of `fused_project`: persistent, for Hopper.

M tokens, C model dim, K_i outputs of map i. dx = sum_i g_i w_i. cuBLAS adds a product to what is already there, so the
result is read and written once a map; here a tile stays in registers until every map is in it. The maps' matrices lie
one below the other, each padded with rows of zeros to whole steps; what a step reads beyond a gradient's row is zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, tl
from golf.kernels.tma import Tiles, count_programs, cut, described

MOST = 4  # maps
GRAIN = 8  # of which K_i and C must be multiples: the TMA takes rows of whole 16 bytes


# Not yet tuned on a GPU.
TILES = {
    "wide": Tiles(128, 256, 64, parts=2, stages=3, warps=8, programs=1),
    "deep": Tiles(128, 256, 64, parts=4, stages=4, warps=8, programs=1),
    "pair": Tiles(128, 128, 64, parts=4, stages=3, warps=8, programs=2),
}


@jit
def _add_product(
    total: "Any", left: "Any", right: "Any", row: "Any", column: "Any", START: tl.constexpr, STEPS: tl.constexpr
) -> Any:
    """Add the product of rows of `left` and columns of `right`, whose rows begin at step START."""
    DEPTH: tl.constexpr = left.block_shape[1]
    for step in range(STEPS):
        k = step * DEPTH
        total = tl.dot(left.load([row, k]), right.load([START * DEPTH + k, column]), total)
    return total


@jit
def _sum_products(
    g0: "Any",  # descriptors of (M, K_i), a block is (ROWS, DEPTH); None: there are fewer maps
    g1: "Any",
    g2: "Any",
    g3: "Any",
    weights: "Any",  # of (all steps * DEPTH, C), (DEPTH, COLUMNS)
    out: "Any",  # of (M, C), (ROWS, COLUMNS / PARTS)
    tiles: "Any",
    tiles_across: "Any",
    STEPS0: tl.constexpr,
    STEPS1: tl.constexpr,
    STEPS2: tl.constexpr,
    STEPS3: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, column = tile // tiles_across * ROWS, tile % tiles_across * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        total = _add_product(total, g0, weights, row, column, 0, STEPS0)
        if g1 is not None:
            total = _add_product(total, g1, weights, row, column, STEPS0, STEPS1)
        if g2 is not None:
            total = _add_product(total, g2, weights, row, column, STEPS0 + STEPS1, STEPS2)
        if g3 is not None:
            total = _add_product(total, g3, weights, row, column, STEPS0 + STEPS1 + STEPS2, STEPS3)
        parts = cut(total.to(out.dtype), ROWS, COLUMNS, PARTS)
        for part in tl.static_range(PARTS):
            out.store([row, column + part * (COLUMNS // PARTS)], parts[part])


def can_sum(gradients: Sequence[Tensor], width: int) -> bool:
    """Say whether `sum_products` does these gradients (M, K_i) and `width` channels."""
    sizes = [width, *(gradient.shape[1] for gradient in gradients)]
    has_dtype = all(gradient.dtype in (torch.bfloat16, torch.float16) for gradient in gradients)
    return has_dtype and len(gradients) <= MOST and all(size > 0 and size % GRAIN == 0 for size in sizes)


def sum_products(gradients: Sequence[Tensor], weights: Sequence[Tensor], *, width: int, tiles: Tiles) -> Tensor:
    """Return sum_i g_i w_i (M, width) of g_i (M, K_i) and w_i (K_i, up to `width`), what is missing being zero.

    Summed in float32, of the gradients' dtype; what `can_sum` refuses, it must not get.
    """
    depth, tokens = tiles.depth, gradients[0].shape[0]
    steps = [ceil_div(gradient.shape[1], depth) for gradient in gradients]
    stacked = gradients[0].new_zeros(sum(steps) * depth, width)
    start = 0
    for weight, count in zip(weights, steps, strict=True):
        stacked[start : start + weight.shape[0], : weight.shape[1]] = weight
        start += count * depth
    out = gradients[0].new_empty(tokens, width)
    if tokens:
        missing = MOST - len(gradients)
        left = [described(gradient.contiguous(), (tiles.rows, depth)) for gradient in gradients] + [None] * missing
        right = described(stacked, (depth, tiles.columns))
        result = described(out, (tiles.rows, tiles.columns // tiles.parts))
        across = ceil_div(width, tiles.columns)
        count = ceil_div(tokens, tiles.rows) * across
        shape = [*steps, *[0] * missing, tiles.rows, tiles.columns, tiles.parts]
        grid = min(count, count_programs(out.device, tiles.programs))
        options: dict[str, Any] = {"num_warps": tiles.warps, "num_stages": tiles.stages}
        _sum_products[grid,](*left, right, result, count, across, *shape, **options)
    return out
