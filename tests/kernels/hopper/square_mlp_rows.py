"""The MLP's products of rows in registers, in all their rings, at a record's sizes and at the smallest."""

from typing import Any

from golf.kernels import square_mlp_rows
from golf.kernels.gluon import HAS_GLUON, gl
from golf.kernels.square_mlp_rows import RINGS, TILE, Ring
from tests.kernels.hopper.build import Case

NUMBERS = ("slope_squared", "below")
CHANNELS = (512, 16)


def _product(kernel: Any, name: str, ring: Ring, channels: int) -> Case:
    """Name tensors and sizes as the kernel does."""
    constants = {"DEPTH": ring.depth, "STEPS": -(-channels // ring.depth), "STAGES": ring.stages}
    constants |= square_mlp_rows.REGISTERS
    left, out = (TILE, ring.depth), (TILE // 2, TILE)
    blocks = {"n": left, "fc": left, "dy": left, "proj": (ring.depth, TILE), "hidden": out, "dz": out}
    kinds = {argument: _descriptor(*block) for argument, block in blocks.items()}
    kinds |= {"signs": "*i32", **dict.fromkeys(NUMBERS, "fp32"), **dict.fromkeys(constants, "constexpr")}
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    return Case(
        f"{kernel.__name__}, {name}, {channels} channels",
        kernel,
        signature,
        constants,
        num_warps=square_mlp_rows.WARPS,
        options={"maxnreg": square_mlp_rows.LAUNCHED_REGISTERS},
        unspecialized=tuple(square_mlp_rows.SIZES),
    )


def _descriptor(rows: int, columns: int) -> str:
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return f"tensordesc<bf16[{rows}, {columns}],{layout!r}>"


KERNELS = (square_mlp_rows._square_rows, square_mlp_rows._slope_rows)
CASES = [
    _product(kernel, name, ring, channels)
    for kernel in KERNELS
    for name, ring in RINGS.items()
    for channels in CHANNELS
    if HAS_GLUON
]
