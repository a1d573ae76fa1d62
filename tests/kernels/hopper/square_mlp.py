"""The MLP's products in all their tiles, and its passes over a product, at a record's sizes."""

from typing import Any

from golf.kernels import square_mlp, square_mlp_gemm
from golf.kernels.square_mlp_gemm import BACKWARD_TILES, FORWARD_TILES, Tiles
from tests.kernels.hopper.build import Case

NUMBERS = ("slope_squared", "below")
POINTERS = ("z", "h", "hidden")


def _product(kernel: Any, name: str, tiles: Tiles) -> Case:
    """Name tensors and sizes as the kernel does."""
    dtype = "fp32" if name == "float32" else "bf16"
    constants = {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth, "PARTS": tiles.parts}
    left, out = (tiles.rows, tiles.depth), (tiles.rows, tiles.columns // tiles.parts)
    blocks = {"n": left, "fc": (tiles.columns, tiles.depth), "dy": left, "proj": (tiles.depth, tiles.columns)}
    blocks |= {"hidden": out, "dz": out}
    kinds = {argument: f"tensordesc<{dtype}[{rows}, {columns}]>" for argument, (rows, columns) in blocks.items()}
    kinds |= {"signs": "*i32", **dict.fromkeys(NUMBERS, "fp32"), **dict.fromkeys(constants, "constexpr")}
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    title = f"{kernel.__name__}, {name}, {dtype}"
    return Case(title, kernel, signature, constants, num_warps=tiles.warps, num_stages=tiles.stages)


def _pass(kernel: Any, dtype: str) -> Case:
    constants = {"WORDS": square_mlp.POINTWISE_WORDS}
    kinds = {"signs": "*i32", **dict.fromkeys(POINTERS, f"*{dtype}"), **dict.fromkeys(NUMBERS, "fp32")}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    return Case(f"{kernel.__name__}, {dtype}", kernel, signature, constants, num_warps=square_mlp.POINTWISE_WARPS)


CASES = [
    *(_product(square_mlp_gemm._square_product, name, tiles) for name, tiles in FORWARD_TILES.items()),
    *(_product(square_mlp_gemm._slope_product, name, tiles) for name, tiles in BACKWARD_TILES.items()),
    *(_pass(kernel, dtype) for kernel in (square_mlp._square, square_mlp._slope) for dtype in ("bf16", "fp32")),
]
