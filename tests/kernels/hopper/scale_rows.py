"""The launches of `fused_scale_rows` for the last matrices of a record's attention and MLP."""

from typing import Any

from golf.kernels.scale_rows import WARPS, _scale_rows, _scale_rows_back
from tests.kernels.hopper.build import Case


def _case(kernel: Any, columns: int) -> Case:
    kinds = {"columns": "i32", "BLOCK": "constexpr", "out": "*bf16", "gradient": "*bf16"}
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    return Case(f"{kernel.__name__} {columns}", kernel, signature, {"BLOCK": columns}, num_warps=WARPS)


CASES = [_case(kernel, columns) for kernel in (_scale_rows, _scale_rows_back) for columns in (512, 2048)]
