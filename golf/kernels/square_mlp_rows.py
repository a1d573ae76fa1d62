"""The two products of `fused_square_mlp` for Hopper again, the tokens' rows in registers: Gluon kernels for bfloat16.

M tokens, C model dim, F hidden width. A program has two groups of four warps that multiply and a warp that loads. The
128 rows of a band of tiles stay in the groups' registers, 64 each, so a tile of 128 x 128 only reads the short matrix
(2 MB, in the L2 cache): its blocks come through a ring in shared memory, and one is free again when both groups have
read it. The groups multiply in turns: each finishes its half of a tile (signs, squares or slopes, the way out) while
the other one multiplies. Plain Triton gives a warp neither a task of its own nor a turn, so in `square_mlp_gemm` both
wait for each other, or meet by chance.

Blocks arrive and leave through the tensor memory accelerator (TMA), which does not see what threads still do: a thread
fences what it has read or written before it says so. A barrier of the threads is not enough: ldmatrix is not done when
the next instruction is issued, and without the fence the TMA has overwritten rows that were still being read.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.gluon import (
    HAS_GLUON,
    TensorDescriptor,
    constexpr_function,
    fence_async_shared,
    gl,
    gluon_jit,
    gluon_kernel,
    load_block,
    mbarrier,
    multiply,
    reinterpret,
    specialize,
    store_block,
    wait_for_products,
    wait_for_stores,
)
from golf.kernels.jit import ceil_div
from golf.kernels.tma import describable


class Ring(NamedTuple):
    """The shared memory that blocks of both operands come through."""

    depth: int  # of a block: model dims of 128 tokens or hidden units
    stages: int  # blocks; a group waits for its turn with all blocks of a tile in the ring, so one tile must fit


RINGS = {"rows": Ring(64, 12), "deep rows": Ring(128, 6)}  # as much as shared memory has room for
TILE = 128  # tokens, and hidden units
CHANNELS = 16  # of which C must be a multiple
MOST_CHANNELS = 512  # 64 rows of them take 128 of a thread's registers
CAPABILITY = (9, 0)

WARPS = 4  # a group
LAUNCHED_REGISTERS = 168  # a thread; then the groups take from the loading warp and those beside it, which are idle
REGISTERS = {"REGISTERS": 240, "SPARE": 24}
SIZES = ["rows", "words", "tiles", "across"]  # one compilation serves all


@gluon_jit
def _bounds(tiles: "Any") -> Any:
    """Return which tiles are this program's: neighbors, and as many as any other's, but for one."""
    program, programs = gl.program_id(0), gl.num_programs(0)
    each, more = tiles // programs, tiles % programs
    first = program * each + gl.minimum(program, more)
    return first, first + each + gl.where(program < more, 1, 0)


@gluon_jit
def _next(index: "Any", phase: "Any", STAGES: gl.constexpr) -> Any:
    """Return the ring's next block, and the phase that its barriers are waited for in."""
    index += 1
    return gl.where(index == STAGES, 0, index), gl.where(index == STAGES, phase ^ 1, phase)


@gluon_jit
def _make_ring(blocks: "Any", STAGES: gl.constexpr, READERS: gl.constexpr) -> Any:
    """Return blocks with the barriers that tell which are full and which are empty."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=READERS)
    return blocks, full, empty


@gluon_jit
def _make_turns() -> Any:
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    return turns


# What the loading warp does.
@gluon_jit
def _load_block(matrix: "Any", row: "Any", column: "Any", ring: "Any", index: "Any", phase: "Any") -> None:
    """Let a block of a matrix come into the ring as soon as there is room."""
    blocks, full, empty = ring
    SHAPE: gl.constexpr = matrix.block_shape
    mbarrier.wait(empty.index(index), phase)
    mbarrier.expect(full.index(index), SHAPE[0] * SHAPE[1] * 2)
    block = reinterpret(blocks.index(index), matrix.dtype, SHAPE, matrix.layout)
    load_block(matrix, [row, column], full.index(index), block)


@gluon_jit
def _load(
    long: "Any",  # descriptor of (M, C), a block is (128, DEPTH)
    short: "Any",  # of (F, C), (128, DEPTH), or of (C, F), (DEPTH, 128)
    hidden: "Any",  # of (M, F), (64, 128), for the slopes alone
    ring: "Any",
    held: "Any",
    tiles: "Any",
    across: "Any",
    SLOPES: gl.constexpr,
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    first, last = _bounds(tiles)
    index, phase, held_phase = 0, 1, 1
    for tile in range(first, last):
        row, column = tile // across * 128, tile % across * 128
        if (tile == first) | (column == 0):
            for k in gl.static_range(STEPS):
                _load_block(long, row, k * DEPTH, ring, index, phase)
                index, phase = _next(index, phase, STAGES)
        for k in gl.static_range(STEPS):
            if SLOPES:
                _load_block(short, k * DEPTH, column, ring, index, phase)
            else:
                _load_block(short, column, k * DEPTH, ring, index, phase)
            index, phase = _next(index, phase, STAGES)
        if SLOPES:
            for group in gl.static_range(2):
                _load_block(hidden, row + group * 64, column, held, group, held_phase)
            held_phase ^= 1


# What both groups do.
@constexpr_function
def _sums_layout() -> Any:
    """Return how a group's threads have 64 x 128 sums."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])


@gluon_jit
def _take_rows(
    ring: "Any",
    index: "Any",
    phase: "Any",
    GROUP: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
) -> Any:
    """Return the group's 64 rows of the long matrix in registers, a tensor a step."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=_sums_layout(), k_width=2)
    blocks, full, empty = ring
    rows = ()
    for _ in gl.static_range(STEPS):
        mbarrier.wait(full.index(index), phase)
        rows += (blocks.index(index).slice(GROUP * 64, 64, 0).load(OPERAND),)  # type: ignore[assignment]
        fence_async_shared()
        mbarrier.arrive(empty.index(index), count=1)  # by one thread; Triton lets all 128 meet before
        index, phase = _next(index, phase, STAGES)
    return rows, index, phase


@gluon_jit
def _multiply(
    rows: "Any",
    ring: "Any",
    turns: "Any",
    index: "Any",
    phase: "Any",
    SHORT: gl.constexpr,
    GROUP: gl.constexpr,
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
) -> Any:
    """Return 64 x 128 sums. The turn is handed on with two steps under way: time for the other group to wake up."""
    blocks, full, empty = ring
    sums = gl.zeros([64, 128], gl.float32, _sums_layout())
    before = index
    for k in gl.static_range(STEPS):
        mbarrier.wait(full.index(index), phase)
        if SHORT is None:  # fc, whose blocks are (128, DEPTH)
            block = blocks.index(index).permute((1, 0))
        else:
            block = reinterpret(blocks.index(index), gl.bfloat16, [DEPTH, 128], SHORT)
        sums = multiply(rows[k], block, sums, use_acc=k > 0, is_async=True)
        if k == STEPS - 1:
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
        if k > 0:
            sums = wait_for_products(1, [sums])
            mbarrier.arrive(empty.index(before), count=1)
        before = index
        index, phase = _next(index, phase, STAGES)
    sums = wait_for_products(0, [sums])
    mbarrier.arrive(empty.index(before), count=1)
    return sums, index, phase


@constexpr_function
def _words_layout() -> Any:
    """Return how a product's threads have the words of 64 x 128 signs: four neighbors of a row each."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [8, 0]],
        lane_bases=[[0, 0], [0, 0], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 4],
    )


@gluon_jit
def _signs_at(signs: "Any", row: "Any", word: "Any", rows: "Any", words: "Any") -> Any:
    """Return where the words of 64 x 128 signs lie within (rows, words), 16 bytes a row, and which rows there are."""
    LAYOUT: gl.constexpr = _words_layout()
    token = (row + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)))[:, None]
    column = (word + gl.arange(0, 4, gl.SliceLayout(0, LAYOUT)))[None, :]
    at = signs + (token.to(gl.int64) * words + column)
    return gl.max_contiguous(gl.multiple_of(at, [16, 16]), [1, 4]), token < rows


@gluon_jit
def _pack_signs(z: "Any") -> Any:
    """Do what `square_mlp_gemm.pack_signs` does for 64 x 128."""
    negative = gl.reshape(z.to(gl.int32, bitcast=True) >> 31, [64, 4, 32])
    packed = gl.sum(negative & (1 << gl.arange(0, 32))[None, None, :], axis=2)
    return gl.convert_layout(packed, _words_layout(), assert_trivial=True)


@gluon_jit
def _slopes(hidden: "Any", words: "Any", below: "Any") -> Any:
    """Do what `square_mlp_gemm.slopes` does for 64 x 64."""
    FIVE: gl.constexpr = gl.reshape(hidden, [64, 2, 4, 4, 2]).type.layout
    LAYOUT: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(3, gl.SliceLayout(4, FIVE)))
    words = gl.convert_layout(words, LAYOUT, assert_trivial=True)
    shifted = words[:, :, None, None, None] >> (2 * gl.arange(0, 4))[None, None, None, :, None]
    bit = 1 << (8 * gl.arange(0, 4)[:, None, None] + gl.arange(0, 2)[None, None, :])
    found = gl.reshape(shifted & bit[None, None, :, :, :], [64, 64])
    negative = gl.convert_layout(found, hidden.type.layout, assert_trivial=True) != 0
    return gl.sqrt(hidden.to(gl.float32)) * gl.where(negative, below, 2.0)


@gluon_jit
def _halves(x: "Any", COLUMNS: gl.constexpr) -> Any:
    """Return the left and the right columns of 64 rows."""
    return gl.split(gl.permute(gl.reshape(x, [64, 2, COLUMNS // 2]), [0, 2, 1]))


@gluon_jit
def _finish_squares(
    z: "Any",
    hidden: "Any",
    signs: "Any",
    mine: "Any",
    row: "Any",
    column: "Any",
    rows: "Any",
    words: "Any",
    slope_squared: "Any",
) -> None:
    at, inside = _signs_at(signs, row, column // 32, rows, words)
    gl.store(at, _pack_signs(z), mask=inside)
    wait_for_stores(0)  # the last tile has left
    mine.store(gl.where(z > 0, z * z, z * z * slope_squared).to(gl.bfloat16))
    fence_async_shared()
    store_block(hidden, [row, column], mine)


@gluon_jit
def _finish_slopes(
    h: "Any",
    found: "Any",
    dz: "Any",
    held: "Any",
    phase: "Any",
    row: "Any",
    column: "Any",
    below: "Any",
    GROUP: gl.constexpr,
) -> None:
    """Let dz take hidden's place in shared memory, and leave from there."""
    blocks, full, empty = held
    mine = blocks.index(GROUP)
    mbarrier.wait(full.index(GROUP), phase)
    parts = _halves(h, 128)
    words = _halves(found, 4)
    for part in gl.static_range(2):  # one at a time: rows and sums alone take 192 registers
        half = mine.slice(part * 64, 64, 1)
        slope = _slopes(half.load(parts[part].type.layout), words[part], below)
        half.store((parts[part] * slope).to(gl.bfloat16))
    fence_async_shared()
    store_block(dz, [row, column], mine)
    wait_for_stores(0)
    mbarrier.arrive(empty.index(GROUP), count=1)


# A group's tiles, band by band.
@gluon_jit
def _square(
    tensors: "Any",
    sizes: "Any",
    GROUP: gl.constexpr,
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    hidden, signs, ring, turns, staged = tensors
    rows, words, tiles, across, slope_squared = sizes
    first, last = _bounds(tiles)
    index, phase, turn = 0, 0, 1 - GROUP
    for band in range(first // across, (last + across - 1) // across):
        row = band * 128 + GROUP * 64
        taken, index, phase = _take_rows(ring, index, phase, GROUP, STEPS, STAGES)
        for tile in range(gl.maximum(first, band * across), gl.minimum(last, (band + 1) * across)):
            column = (tile - band * across) * 128
            mbarrier.wait(turns.index(GROUP), turn)
            turn ^= 1
            z, index, phase = _multiply(taken, ring, turns, index, phase, None, GROUP, DEPTH, STEPS, STAGES)
            _finish_squares(z, hidden, signs, staged.index(GROUP), row, column, rows, words, slope_squared)
    wait_for_stores(0)


@gluon_jit
def _slope(
    tensors: "Any",
    sizes: "Any",
    GROUP: gl.constexpr,
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    SHORT: gl.constexpr,
) -> None:
    dz, signs, ring, turns, held = tensors
    rows, words, tiles, across, below = sizes
    first, last = _bounds(tiles)
    index, phase, turn, held_phase = 0, 0, 1 - GROUP, 0
    for band in range(first // across, (last + across - 1) // across):
        row = band * 128 + GROUP * 64
        taken, index, phase = _take_rows(ring, index, phase, GROUP, STEPS, STAGES)
        for tile in range(gl.maximum(first, band * across), gl.minimum(last, (band + 1) * across)):
            column = (tile - band * across) * 128
            at, inside = _signs_at(signs, row, column // 32, rows, words)
            found = gl.load(at, mask=inside, other=0)
            mbarrier.wait(turns.index(GROUP), turn)
            turn ^= 1
            h, index, phase = _multiply(taken, ring, turns, index, phase, SHORT, GROUP, DEPTH, STEPS, STAGES)
            _finish_slopes(h, found, dz, held, held_phase, row, column, below, GROUP)
            held_phase ^= 1


@gluon_kernel(unspecialized=SIZES)
def _square_rows(
    n: "Any",  # descriptor of (M, C), a block is (128, DEPTH)
    fc: "Any",  # of (F, C), (128, DEPTH)
    hidden: "Any",  # of (M, F), (64, 128)
    signs: "Any",  # (M, words)
    rows: "Any",
    words: "Any",
    tiles: "Any",
    across: "Any",
    slope_squared: "Any",
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    SPARE: gl.constexpr,
) -> None:
    blocks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 128, DEPTH], n.layout)
    staged = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 128], hidden.layout)
    ring = _make_ring(blocks, STAGES, 2)
    turns = _make_turns()
    fence_async_shared()
    tensors = (hidden, signs, ring, turns, staged)
    sizes = (rows, words, tiles, across, slope_squared)
    specialize(
        [
            (_square, (tensors, sizes, 0, DEPTH, STEPS, STAGES)),
            (_square, (tensors, sizes, 1, DEPTH, STEPS, STAGES)),
            (_load, (n, fc, hidden, ring, ring, tiles, across, False, DEPTH, STEPS, STAGES)),
        ],
        [4, 1],
        [REGISTERS, SPARE],
    )


@gluon_kernel(unspecialized=SIZES)
def _slope_rows(
    dy: "Any",  # descriptor of (M, C), a block is (128, DEPTH)
    proj: "Any",  # of (C, F), (DEPTH, 128)
    hidden: "Any",  # of (M, F), (64, 128)
    dz: "Any",  # of (M, F), (64, 128)
    signs: "Any",  # (M, words)
    rows: "Any",
    words: "Any",
    tiles: "Any",
    across: "Any",
    below: "Any",
    DEPTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    SPARE: gl.constexpr,
) -> None:
    blocks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 128, DEPTH], dy.layout)
    ring = _make_ring(blocks, STAGES, 2)
    held = _make_ring(gl.allocate_shared_memory(gl.bfloat16, [2, 64, 128], hidden.layout), 2, 1)
    turns = _make_turns()
    fence_async_shared()
    tensors = (dz, signs, ring, turns, held)
    sizes = (rows, words, tiles, across, below)
    SHORT: gl.constexpr = proj.layout
    specialize(
        [
            (_slope, (tensors, sizes, 0, DEPTH, STEPS, STAGES, SHORT)),
            (_slope, (tensors, sizes, 1, DEPTH, STEPS, STAGES, SHORT)),
            (_load, (dy, proj, hidden, ring, held, tiles, across, True, DEPTH, STEPS, STAGES)),
        ],
        [4, 1],
        [REGISTERS, SPARE],
    )


def square_rows(n: Tensor, fc: Tensor, hidden: Tensor, signs: Tensor, *, slope_squared: float, ring: Ring) -> None:
    """Write phi(n fc^T) into `hidden` (M, F) and the signs of n fc^T into `signs` (M, F / 32); n (M, C), fc (F, C).

    Bit for bit what `square_mlp_gemm.square_product` writes; all tensors are contiguous and not empty. Raises
    ValueError where these kernels do not run, or do not do it.
    """
    _check(n, hidden, ring)
    tensors = _described(n, TILE, ring.depth), _described(fc, TILE, ring.depth), _described(hidden, TILE // 2, TILE)
    _launch(_square_rows, (*tensors, signs), n, hidden, slope_squared, ring)


def slope_rows(
    dy: Tensor, proj: Tensor, hidden: Tensor, signs: Tensor, dz: Tensor, *, below: float, ring: Ring
) -> None:
    """Write (dy proj) phi'(z) into `dz` (M, F), where `hidden` and `signs` are as `square_rows` wrote them for z.

    dy (M, C), proj (C, F); `below` is phi'(z) / sqrt(phi(z)) below zero. Bit for bit what
    `square_mlp_gemm.slope_product` writes; all tensors are contiguous and not empty. Raises ValueError where these
    kernels do not run, or do not do it.
    """
    _check(dy, hidden, ring)
    out = _described(hidden, TILE // 2, TILE), _described(dz, TILE // 2, TILE)
    tensors = _described(dy, TILE, ring.depth), _described(proj, ring.depth, TILE), *out, signs
    _launch(_slope_rows, tensors, dy, hidden, below, ring)


def run_on(device: torch.device) -> bool:
    """Say whether these kernels run there: on a GPU of compute capability 9.0, with Gluon."""
    return HAS_GLUON and device.type == "cuda" and torch.cuda.get_device_capability(device) == CAPABILITY


def why_not(ring: Ring, dtype: torch.dtype, width: int, channels: int) -> str | None:
    """Say why these kernels cannot multiply (M, C) by a matrix of F x C, if they cannot."""
    if dtype is not torch.bfloat16:
        return f"the dtype is {dtype}, not torch.bfloat16"
    if width <= 0 or width % TILE:
        return f"the hidden width {width} is no multiple of {TILE}"
    if channels <= 0 or channels % CHANNELS or channels > MOST_CHANNELS:
        return f"the model dim {channels} is no multiple of {CHANNELS} up to {MOST_CHANNELS}"
    if ring.stages * ring.depth < channels:
        return f"a tile's {ceil_div(channels, ring.depth)} steps do not fit a ring of {ring.stages}"
    return None


def _check(long: Tensor, hidden: Tensor, ring: Ring) -> None:
    if not run_on(hidden.device):
        raise ValueError(
            f"these kernels run with Triton's Gluon on a GPU of compute capability 9.0, not on {hidden.device}"
        )
    reason = why_not(ring, long.dtype, hidden.shape[1], long.shape[1])
    if reason is not None:
        raise ValueError(reason)


def _described(matrix: Tensor, rows: int, columns: int) -> Any:
    """Return the descriptor by which the TMA moves (rows, columns) of a contiguous matrix."""
    ready = describable(matrix)
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return TensorDescriptor(ready, list(ready.shape), list(ready.stride()), [rows, columns], layout)


def _launch(kernel: Any, tensors: tuple[Any, ...], long: Tensor, hidden: Tensor, number: float, ring: Ring) -> None:
    (rows, width), channels = hidden.shape, long.shape[1]
    across = width // TILE
    tiles = ceil_div(rows, TILE) * across
    programs = min(torch.cuda.get_device_properties(hidden.device).multi_processor_count, tiles)
    sizes = rows, width // 32, tiles, across, number
    shape = ring.depth, ceil_div(channels, ring.depth), ring.stages
    kernel[programs,](*tensors, *sizes, *shape, **REGISTERS, num_warps=WARPS, maxnreg=LAUNCHED_REGISTERS)
