"""The sum over maps of the projections' input gradient in all its tiles, at a record's sizes."""

from golf.kernels import project_gemm
from golf.kernels.jit import ceil_div
from golf.kernels.project_gemm import TILES
from golf.kernels.tma import Tiles
from tests.kernels.hopper.build import Case

WIDTHS = (512, 256, 256, 8)  # queries, keys, values, the gate's scores


def _case(name: str, tiles: Tiles) -> Case:
    left = f"tensordesc<bf16[{tiles.rows}, {tiles.depth}]>"
    kinds = {f"g{number}": left for number in range(len(WIDTHS))}
    kinds |= {"weights": f"tensordesc<bf16[{tiles.depth}, {tiles.columns}]>"}
    kinds |= {"out": f"tensordesc<bf16[{tiles.rows}, {tiles.columns // tiles.parts}]>"}
    constants = {f"STEPS{number}": ceil_div(width, tiles.depth) for number, width in enumerate(WIDTHS)}
    constants |= {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "PARTS": tiles.parts}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in project_gemm._sum_products.arg_names}
    kernel = project_gemm._sum_products
    return Case(f"_sum_products, {name}", kernel, signature, constants, num_warps=tiles.warps, num_stages=tiles.stages)


CASES = [_case(name, tiles) for name, tiles in TILES.items()]
