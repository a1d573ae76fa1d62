"""The launches of `fused_scale_rows` for the last matrices of a record's attention and MLP."""

from typing import Any

from golf.kernels.scale_rows import TILE, WARPS, _scale_rows, _scale_rows_back
from tests.kernels.hopper.build import Case


def _case(kernel: Any, columns: int) -> Case:
    tile = {"ROWS": TILE // columns, "COLUMNS": columns}
    kinds = {"rows": "i32", "columns": "i32", "out": "*bf16", "gradient": "*bf16", **dict.fromkeys(tile, "constexpr")}
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    return Case(f"{kernel.__name__} {columns}", kernel, signature, tile, num_warps=WARPS)


CASES = [_case(kernel, columns) for kernel in (_scale_rows, _scale_rows_back) for columns in (512, 2048)]
