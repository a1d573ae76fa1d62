"""The Triton kernels of golf/kernels/mix.py, and their launches.

J streams, O outputs, N rows (all leading dimensions together), C channels. Every program walks over tiles of rows with
the weights in registers; backward it also adds up the weights' gradient there and writes it once. What is not wanted or
not there is None: no code is made for it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.column_sums import column_sums
from golf.kernels.jit import ceil_div, jit, tl
from golf.kernels.norm import EPS, load_tile, row_tile, tile_at, tile_gradient, tile_rstd

MAX_STREAMS = 4
MAX_OUTPUTS = 2

# Tuned on an H200. Backward, a tile has 8 elements a thread: with more, O * J sums of it overflow the registers.
FORWARD_TILE = 2048  # elements a program and turn of its loop
FORWARD_PROGRAMS = 64 * 132  # at most
FORWARD_STAGES = 1  # tiles in flight
BACKWARD_TILE = 1024
BACKWARD_PROGRAMS = 3 * 132  # at most, as registers allow for 8 sums; each writes one (O, J, C) of partial sums
BACKWARD_STAGES = 3


@jit
def _no_tiles() -> Any:
    """Return a tuple to put tiles into."""
    return ()


@jit
def _load_weights(
    weights: "Any",
    output_stride: "Any",
    stream_stride: "Any",
    channel_stride: "Any",
    DTYPE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STREAMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
) -> Any:
    """Return w_oj at index o * J + j, (1, C), rounded to the streams' dtype."""
    channel = tl.arange(0, TILE_CHANNELS)
    loaded = _no_tiles()
    for output in tl.static_range(OUTPUTS):
        for stream in tl.static_range(STREAMS):
            start = weights + output * output_stride + stream * stream_stride
            weight = tl.load(start + channel * channel_stride, mask=channel < CHANNELS, other=0.0)
            loaded += (weight.to(DTYPE).to(tl.float32)[None, :],)
    return loaded


@jit
def _weighted_sum(weights: "Any", tiles: "Any", START: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr) -> Any:
    """Return the sum over k < COUNT of weights[START + k * STEP] * tiles[k]."""
    total = weights[START] * tiles[0]
    for k in tl.static_range(1, COUNT):
        total += weights[START + k * STEP] * tiles[k]
    return total


@jit
def _load_tiles(pointers: "Any", at: "Any", inside: "Any", COUNT: tl.constexpr) -> Any:
    tiles = _no_tiles()
    for k in tl.static_range(COUNT):
        tiles += (load_tile(pointers[k], at, inside),)
    return tiles


@jit
def _mix_forward(
    x0: "Any",  # (N, C), as all streams and outputs
    x1: "Any",
    x2: "Any",
    x3: "Any",
    weights: "Any",  # (O, J, C), of any strides
    out0: "Any",
    out1: "Any",
    normalized: "Any",
    rstd: "Any",  # (N,)
    rows: "Any",
    scale: "Any",
    output_stride: "Any",
    stream_stride: "Any",
    channel_stride: "Any",
    OUTPUTS: tl.constexpr,
    STREAMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EPSILON: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    streams, outputs = (x0, x1, x2, x3), (out0, out1)
    dtype: tl.constexpr = x0.dtype.element_ty
    w = _load_weights(
        weights, output_stride, stream_stride, channel_stride, dtype, OUTPUTS, STREAMS, CHANNELS, TILE_CHANNELS
    )
    for turn in tl.range(tl.program_id(0), tl.cdiv(rows, TILE_ROWS), tl.num_programs(0), num_stages=STAGES):
        row, is_row, at, inside = tile_at(turn, rows, CHANNELS, TILE_ROWS, TILE_CHANNELS)
        x = _load_tiles(streams, at, inside, STREAMS)
        for output in tl.static_range(OUTPUTS):
            u = _weighted_sum(w, x, output * STREAMS, 1, STREAMS).to(dtype)
            tl.store(outputs[output] + at, u, mask=inside)
            if normalized is not None:
                u = u.to(tl.float32)
                r = tile_rstd(u, CHANNELS, EPSILON)
                tl.store(normalized + at, u * (r * scale)[:, None], mask=inside)
                tl.store(rstd + row, r, mask=is_row)


@jit
def _stream_gradient(
    weights: "Any",
    tiles: "Any",
    more: "Any",
    at: "Any",
    inside: "Any",
    STREAM: tl.constexpr,
    STREAMS: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> Any:
    """Return the gradient of a stream from those of the sums, and what there is `more` of it."""
    gradient = _weighted_sum(weights, tiles, STREAM, STREAMS, OUTPUTS)
    if more is not None:
        gradient += load_tile(more, at, inside)
    return gradient


@jit
def _mix_backward(
    x0: "Any",  # (N, C), as all streams and gradients
    x1: "Any",
    x2: "Any",
    x3: "Any",
    weights: "Any",  # (O, J, C), of any strides
    g0: "Any",  # gradients of the sums
    g1: "Any",
    normalized: "Any",  # gradient of the normalized sum
    rstd: "Any",  # (N,)
    h0: "Any",  # what is added to the streams' gradients
    h1: "Any",
    h2: "Any",
    h3: "Any",
    d0: "Any",  # gradients of the streams
    d1: "Any",
    d2: "Any",
    d3: "Any",
    partials: "Any",  # (programs, O, J, C)
    rows: "Any",
    scale: "Any",
    output_stride: "Any",
    stream_stride: "Any",
    channel_stride: "Any",
    OUTPUTS: tl.constexpr,
    STREAMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    streams, incoming, handed_on, outgoing = (x0, x1, x2, x3), (g0, g1), (h0, h1, h2, h3), (d0, d1, d2, d3)
    dtype: tl.constexpr = x0.dtype.element_ty
    w = _load_weights(
        weights, output_stride, stream_stride, channel_stride, dtype, OUTPUTS, STREAMS, CHANNELS, TILE_CHANNELS
    )
    sums = _no_tiles()
    for _ in tl.static_range(OUTPUTS * STREAMS):
        sums += (tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32),)
    for turn in tl.range(tl.program_id(0), tl.cdiv(rows, TILE_ROWS), tl.num_programs(0), num_stages=STAGES):
        row, is_row, at, inside = tile_at(turn, rows, CHANNELS, TILE_ROWS, TILE_CHANNELS)
        x = _load_tiles(streams, at, inside, STREAMS)
        g = _load_tiles(incoming, at, inside, OUTPUTS)
        if normalized is not None:
            u = _weighted_sum(w, x, 0, 1, STREAMS).to(dtype).to(tl.float32)
            r = tl.load(rstd + row, mask=is_row, other=0.0)
            g = (g[0] + tile_gradient(u, r, r, load_tile(normalized, at, inside), scale, CHANNELS),)
        for stream in tl.static_range(STREAMS):
            if outgoing[stream] is not None:
                d = _stream_gradient(w, g, handed_on[stream], at, inside, stream, STREAMS, OUTPUTS)
                tl.store(outgoing[stream] + at, d, mask=inside)
        if partials is not None:
            more = _no_tiles()
            for k in tl.static_range(OUTPUTS * STREAMS):
                more += (sums[k] + g[k // STREAMS] * x[k % STREAMS],)
            sums = more
    if partials is not None:
        channel = tl.arange(0, TILE_CHANNELS)
        for k in tl.static_range(OUTPUTS * STREAMS):
            start = partials + (tl.program_id(0) * (OUTPUTS * STREAMS) + k) * CHANNELS
            tl.store(start + channel, tl.sum(sums[k], axis=0), mask=channel < CHANNELS)


class Normalized(NamedTuple):
    """The normalized sum, or its gradient, and what belongs to it."""

    tensor: Tensor | None  # (..., C)
    rstd: Tensor | None  # (...), float32: 1 / sqrt(mean(u^2) + eps) of each row
    scale: float


NOT_NORMALIZED = Normalized(None, None, 1.0)


def launch_forward(
    streams: Sequence[Tensor], weights: Tensor, outputs: Sequence[Tensor], normalized: Normalized = NOT_NORMALIZED
) -> None:
    """Write the O sums of J `streams` (..., C) with `weights` (O, J, C); the norm of the sum (O = 1) too if wanted.

    All but `weights` must be contiguous.
    """
    channels = weights.shape[2]
    rows = _count_rows(streams[0])
    if rows == 0:
        return
    tile = row_tile(channels, FORWARD_TILE)
    grid = (min(FORWARD_PROGRAMS, ceil_div(rows, tile.rows)),)
    tensors = (*_padded(streams, MAX_STREAMS), weights, *_padded(outputs, MAX_OUTPUTS), *normalized[:2])
    sizes = (*weights.shape[:2], channels, EPS, tile.rows, tile.channels, FORWARD_STAGES)
    _mix_forward[grid](*tensors, rows, normalized.scale, *weights.stride(), *sizes, num_warps=tile.warps)


def launch_backward(
    streams: Sequence[Tensor],
    weights: Tensor,
    incoming: Sequence[Tensor | None],
    outgoing: Sequence[Tensor | None],
    *,
    wants_weights: bool,
    normalized: Normalized = NOT_NORMALIZED,
    handed_on: Sequence[Tensor | None] = (),
) -> Tensor | None:
    """Write the streams' gradients into `outgoing` from those of the sums, `incoming`, and of the normalized sum.

    What was `handed_on` is added to those of the streams. None stands for zeros, or for what is not wanted. Returns the
    gradient of `weights` (O, J, C), float32, if it `wants_weights`. All but `weights` must be contiguous.
    """
    rows, channels = _count_rows(streams[0]), weights.shape[2]
    tile = row_tile(channels, BACKWARD_TILE)
    programs = min(BACKWARD_PROGRAMS, ceil_div(rows, tile.rows))
    partials = weights.new_empty(programs, *weights.shape, dtype=torch.float32) if wants_weights else None
    if rows > 0:
        gradients = (*_padded(incoming, MAX_OUTPUTS), *normalized[:2], *_padded(handed_on, MAX_STREAMS))
        sizes = (*weights.shape[:2], channels, tile.rows, tile.channels, BACKWARD_STAGES)
        arguments = (
            *_padded(streams, MAX_STREAMS),
            weights,
            *gradients,
            *_padded(outgoing, MAX_STREAMS),
            partials,
            rows,
            normalized.scale,
            *weights.stride(),
            *sizes,
        )
        _mix_backward[(programs,)](*arguments, num_warps=tile.warps)
    return None if partials is None else column_sums(partials.flatten(1)).view(weights.shape)


def _count_rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _padded(tensors: Sequence[Tensor | None], length: int) -> tuple[Tensor | None, ...]:
    return (*tensors, *(None for _ in range(length - len(tensors))))
