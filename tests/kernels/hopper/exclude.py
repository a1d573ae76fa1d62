"""The launches of `fused_exclude` for a record's heads, with gates and without."""

from typing import Any

from golf.kernels.exclude import BACKWARD_TILE, EPS, FORWARD_TILE, WARPS, _exclude, _exclude_back
from tests.kernels.hopper.build import Case

SIZE = 64
SIZES = ("rows", "gradient_stride", "y_stride", "v_stride")


def _case(name: str, kernel: Any, dtype: str, *, tile: int, gates: bool) -> Case:
    """Name tensors and sizes as the kernel does."""
    constants: dict[str, Any] = {
        "EPS": EPS,
        "KV_HEADS": 4,
        "GROUP": 2,
        "SIZE": SIZE,
        "COLUMNS": SIZE,
        "ROWS": tile // SIZE,
    }
    if not gates:
        constants["gates"] = None
    kinds = {name: "i32" if name in SIZES else f"*{dtype}" for name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
    return Case(f"{name}, {dtype}{', gated' * gates}", kernel, signature, constants, num_warps=WARPS)


CASES = [
    case
    for dtype, gates in (("bf16", True), ("bf16", False), ("fp32", True))
    for case in (
        _case("exclude", _exclude, dtype, tile=FORWARD_TILE, gates=gates),
        _case("exclude_backward", _exclude_back, dtype, tile=BACKWARD_TILE, gates=gates),
    )
]
