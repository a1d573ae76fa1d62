"""The MLP's products of rows in registers: where they are taken, where they are refused, and today's tiles' bits."""

import subprocess
import sys
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.kernels import gluon, square_mlp, square_mlp_rows, table
from golf.kernels.jit import HAS_TRITON
from golf.kernels.square_mlp import (
    FASTEST,
    FASTEST_ROWS,
    MATMUL,
    Ways,
    can_go_by_rows,
    fused_square_mlp,
    square_mlp_by,
    ways_for,
)
from golf.kernels.square_mlp_gemm import BACKWARD_TILES, FORWARD_TILES, slope_below, slope_product, square_product
from golf.kernels.square_mlp_rows import RINGS, Ring, run_on, slope_rows, square_rows, why_not
from golf.kernels.table import choose_kernels, fused_kernels
from tests.kernels.test_square_mlp import assert_near, by, exact, given, outcome

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BFLOAT16 = torch.bfloat16
SLOPE = 0.5
RECORD = (98304, 2048, 512)  # M, F, C
ODD = [(1, 128, 16), (64, 384, 64), (77, 128, 512), (127, 2048, 80), (128, 384, 128), (129, 128, 496), (8191, 384, 512)]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
needs_hopper = pytest.mark.skipif(not (torch.cuda.is_available() and run_on(CUDA)), reason="no GPU for these kernels")


@pytest.mark.parametrize(
    ("dtype", "sizes", "ways"),  # F, C, outputs, F
    [
        (BFLOAT16, (2048, 512, 512, 2048), FASTEST_ROWS),
        (BFLOAT16, (128, 16, 16, 128), FASTEST_ROWS),
        (torch.float16, (2048, 512, 512, 2048), FASTEST),
        (torch.float32, (2048, 512, 512, 2048), Ways(MATMUL, MATMUL)),
        (BFLOAT16, (2112, 512, 512, 2112), FASTEST),
        (BFLOAT16, (2048, 528, 512, 2048), Ways(FASTEST.forward, FASTEST_ROWS.backward)),
        (BFLOAT16, (2048, 512, 528, 2048), Ways(FASTEST_ROWS.forward, FASTEST.backward)),
        (BFLOAT16, (2048, 504, 512, 2048), Ways(MATMUL, MATMUL)),
    ],
)
def test_rows_are_taken_for_each_product_that_fits(dtype: torch.dtype, sizes: tuple[int, ...], ways: Ways) -> None:
    assert ways_for(dtype, sizes, by_rows=True) == ways


def test_rows_are_taken_only_where_they_run() -> None:
    assert ways_for(BFLOAT16, (2048, 512, 512, 2048)) == FASTEST


@pytest.mark.parametrize(
    ("ring", "dtype", "width", "channels", "reason"),
    [
        (Ring(64, 12), BFLOAT16, 2048, 512, None),
        (Ring(64, 12), torch.float16, 2048, 512, "the dtype is torch.float16, not torch.bfloat16"),
        (Ring(64, 12), BFLOAT16, 2112, 512, "the hidden width 2112 is no multiple of 128"),
        (Ring(64, 12), BFLOAT16, 0, 512, "the hidden width 0 is no multiple of 128"),
        (Ring(64, 12), BFLOAT16, 2048, 504, "the model dim 504 is no multiple of 16 up to 512"),
        (Ring(64, 12), BFLOAT16, 2048, 528, "the model dim 528 is no multiple of 16 up to 512"),
        (Ring(64, 12), BFLOAT16, 2048, 0, "the model dim 0 is no multiple of 16 up to 512"),
        (Ring(64, 8), BFLOAT16, 2048, 512, None),
        (Ring(64, 7), BFLOAT16, 2048, 512, "a tile's 8 steps do not fit a ring of 7"),
        (Ring(128, 3), BFLOAT16, 2048, 400, "a tile's 4 steps do not fit a ring of 3"),
    ],
)
def test_why_a_product_cannot_be_made(
    ring: Ring, dtype: torch.dtype, width: int, channels: int, reason: str | None
) -> None:
    assert why_not(ring, dtype, width, channels) == reason


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS.keys())
def test_every_ring_has_room_for_the_widest_models_tile(ring: Ring) -> None:
    assert why_not(ring, BFLOAT16, 128, square_mlp_rows.MOST_CHANNELS) is None


@pytest.mark.parametrize(
    ("device", "has_gluon", "capability", "runs"),
    [
        (CUDA, True, (9, 0), True),
        (CUDA, False, (9, 0), False),
        (CUDA, True, (8, 9), False),
        (CUDA, True, (10, 0), False),
        (CPU, True, (9, 0), False),
    ],
)
def test_they_run_on_hopper_with_gluon(
    device: torch.device, has_gluon: bool, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(square_mlp_rows, "HAS_GLUON", has_gluon)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert run_on(device) is runs
    assert can_go_by_rows(device, BFLOAT16) is runs
    assert not can_go_by_rows(device, torch.float16)


@pytest.mark.parametrize("missing", ["triton", "triton.experimental.gluon", "triton.experimental.gluon.nvidia.hopper"])
def test_without_gluon_there_is_no_such_way(missing: str) -> None:
    lines = [
        f"import sys; sys.modules[{missing!r}] = None",
        "import torch; from golf.kernels.square_mlp_rows import run_on",
        "from golf.kernels.gluon import HAS_GLUON",
        "print(HAS_GLUON, run_on(torch.device('cuda')))",
    ]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False False\n", 0), done.stderr


@pytest.mark.skipif(not gluon.HAS_GLUON, reason="no Gluon on this platform")
@pytest.mark.parametrize("name", ["warpgroup_mma", "fence_async_shared", "mbarrier"])
def test_gluon_by_other_names_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.experimental.gluon.language.nvidia import hopper

    monkeypatch.delattr(hopper, name)
    with pytest.raises(AttributeError, match=name):
        gluon._find()


@pytest.mark.parametrize("name", RINGS)
def test_another_device_is_refused(name: str) -> None:
    rows, matrix = torch.zeros(3, 16, dtype=BFLOAT16), torch.zeros(128, 16, dtype=BFLOAT16)
    hidden, signs = torch.zeros(3, 128, dtype=BFLOAT16), torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"compute capability 9\.0, not on cpu"):
        square_rows(rows, matrix, hidden, signs, slope_squared=0.25, ring=RINGS[name])
    with pytest.raises(ValueError, match=r"compute capability 9\.0, not on cpu"):
        slope_rows(rows, matrix.T.contiguous(), hidden, signs, hidden.clone(), below=-1.0, ring=RINGS[name])


@pytest.mark.parametrize(
    ("ways", "dtype", "shape", "message"),
    [
        (Ways("rows", MATMUL), torch.float16, (1, 3, 16, 128, 16), "'rows' does not do it: the dtype is torch.float16"),
        (Ways(MATMUL, "deep rows"), BFLOAT16, (1, 3, 16, 144, 16), "'deep rows' does not do it: the hidden width 144"),
        (Ways("rows", MATMUL), BFLOAT16, (1, 3, 528, 128, 16), "the model dim 528"),
        (Ways(MATMUL, "rows"), BFLOAT16, (1, 3, 16, 128, 528), "the model dim 528"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    ways: Ways, dtype: torch.dtype, shape: tuple[int, int, int, int, int], message: str
) -> None:
    case = given(shape).leaves(dtype)
    with pytest.raises(ValueError, match=message):
        square_mlp_by(ways, *case[:3], negative_slope=SLOPE)


def test_a_ring_that_would_wait_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RINGS, "rows", Ring(64, 7))
    case = given((1, 3, 512, 128, 16)).leaves(BFLOAT16)
    with pytest.raises(ValueError, match="8 steps do not fit a ring of 7"):
        square_mlp_by(Ways("rows", MATMUL), *case[:3], negative_slope=SLOPE)


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of autograd functions under its compiler
def test_the_compiler_sees_the_way_as_a_constant() -> None:
    case = given((1, 130, 16, 128, 16)).leaves(BFLOAT16)
    n, fc, proj = (x.detach().to(CPU) for x in case[:3])
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(part.code) for part in graph.modules() if isinstance(part, torch.fx.GraphModule))
        return graph.forward

    compiled = torch.compile(
        partial(fused_square_mlp, negative_slope=SLOPE, by_rows=True), backend=backend, fullgraph=True
    )
    with pytest.raises(ValueError, match="not on cpu"):  # once the graph runs
        compiled(n, fc, proj)
    assert any(repr(FASTEST_ROWS.forward) in code for code in seen)


def test_the_table_says_that_it_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rows" not in fused_kernels().description
    assert fused_kernels(mlp_by_rows=True).description.startswith("fused Triton kernels, the squared MLP's products")
    monkeypatch.setattr(table, "can_go_by_rows", lambda *place: place == (CUDA, BFLOAT16))
    monkeypatch.setattr(table, "HAS_TRITON", True)
    assert choose_kernels(CUDA, torch.float32, attention="padded").description == fused_kernels().description
    chosen = choose_kernels(CUDA, BFLOAT16, attention="padded")
    assert chosen.description == fused_kernels(mlp_by_rows=True).description
    taken: list[Any] = []
    monkeypatch.setattr(square_mlp, "square_mlp_by", lambda ways, *_, **__: taken.append(ways))
    x = torch.zeros(1, 16, dtype=BFLOAT16)
    chosen.square_mlp(x, x.new_zeros(128, 16), x.new_zeros(16, 128), negative_slope=SLOPE)
    assert taken == [FASTEST_ROWS]


def drawn(seed: int, tokens: int, width: int, channels: int) -> list[Tensor]:
    """Return random n, dy, fc and proj on the GPU."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    sizes = [(tokens, channels), (tokens, channels), (width, channels), (channels, width)]
    n, dy, fc, proj = (torch.randn(size, device=CUDA, dtype=BFLOAT16, generator=generator) for size in sizes)
    return [n, dy, fc * channels**-0.5, proj * width**-0.5]


def differing(name: str, n: Tensor, dy: Tensor, fc: Tensor, proj: Tensor) -> list[str]:
    """Return which of hidden, signs and dz are not the bits that tiles of the way "pair" give."""
    hidden = n.new_empty(len(n), len(fc))
    signs, dz = n.new_empty(len(n), len(fc) // 32, dtype=torch.int32), torch.empty_like(hidden)
    square_product(n, fc, hidden, signs, negative_slope=SLOPE, tiles=FORWARD_TILES["pair"])
    slope_product(dy, proj, hidden, signs, dz, negative_slope=SLOPE, tiles=BACKWARD_TILES["pair"])
    found = {"hidden": torch.full_like(hidden, 7.0), "signs": torch.full_like(signs, 7), "dz": torch.full_like(dz, 7.0)}
    square_rows(n, fc, found["hidden"], found["signs"], slope_squared=SLOPE**2, ring=RINGS[name])
    slope_rows(dy, proj, hidden, signs, found["dz"], below=slope_below(SLOPE), ring=RINGS[name])
    right = {"hidden": hidden, "signs": signs, "dz": dz}
    return [key for key, value in found.items() if not torch.equal(value, right[key])]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize("size", ODD, ids=str)
def test_odd_sizes_give_the_bits_of_tiles(size: tuple[int, int, int], name: str) -> None:
    assert differing(name, *drawn(0, *size)) == []


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", RINGS)
def test_a_records_size_gives_the_bits_of_tiles_again_and_again(name: str) -> None:
    """Twenty times: what may go wrong is a race."""
    assert [seed for seed in range(20) if differing(name, *drawn(seed, *RECORD))] == []


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", RINGS)
def test_a_busy_memory_changes_no_bit(name: str) -> None:
    source = torch.zeros(2**27, device=CUDA)
    target, stream = torch.empty_like(source), torch.cuda.Stream()
    wrong = []
    for seed in range(10):
        given_ = drawn(seed, *RECORD)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(10):
                target.copy_(source)
        wrong += differing(name, *given_)
    assert wrong == []


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize("slope", [0.5, 0.0, -0.3, 1.0])
def test_rows_in_registers_give_the_formulas_numbers(name: str, slope: float) -> None:
    case = given((1, 145, 80, 256, 96)).leaves(BFLOAT16)
    assert_near(outcome(by(Ways(name, name), slope), case), outcome(exact(slope), case.leaves(torch.float64)), 2**-6)


@pytest.mark.gpu
@needs_hopper
def test_the_fused_form_goes_by_rows_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its gradients are the formula's."""
    for tiled in ("square_product", "slope_product"):
        monkeypatch.setattr(square_mlp, tiled, None)
    case = given((2, 145, 80, 256, 96)).leaves(BFLOAT16)
    form = partial(fused_square_mlp, negative_slope=SLOPE, by_rows=True)
    assert_near(outcome(form, case), outcome(exact(), case.leaves(torch.float64)), 2**-6)


@pytest.mark.gpu
@needs_hopper
def test_a_thread_that_has_started_nothing_yet_may_begin_with_them() -> None:
    """As one of autograd's may: it has no CUDA context, and a tensor is described in one."""
    n, dy, fc, proj = drawn(0, 128, 128, 64)
    hidden, signs, dz = n.new_empty(128, 128), n.new_empty(128, 4, dtype=torch.int32), n.new_empty(128, 128)
    square_rows(n, fc, hidden, signs, slope_squared=SLOPE**2, ring=RINGS["rows"])
    broken: list[Exception] = []

    def begin() -> None:
        try:
            slope_rows(dy, proj, hidden, signs, dz, below=slope_below(SLOPE), ring=RINGS["rows"])
        except RuntimeError as error:
            broken.append(error)

    thread = Thread(target=begin)
    thread.start()
    thread.join()
    assert broken == []


@pytest.mark.gpu
@needs_hopper
def test_hidden_units_beyond_two_to_the_31_have_the_bits_of_tiles() -> None:
    assert differing("rows", *drawn(0, 2**20 + 3, 2048, 64)) == []
