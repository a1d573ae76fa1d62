"""The launches of `fused_turn_heads` for a record's queries (gained) and keys."""

from typing import Any

from golf.kernels.norm import EPS
from golf.kernels.turn_heads import BACKWARD_TILE, FORWARD_TILE, WARPS, _turn, _turn_back
from tests.kernels.hopper.build import Case

SIZE, HALF = 64, 8


def _case(name: str, kernel: Any, pointers: list[str], sizes: list[str], *, tile: int, **choice: Any) -> Case:
    """Name tensors and sizes as the kernel does; `choice`: dtype, heads, gain."""
    kinds = {pointer: f"*{choice['dtype']}" for pointer in pointers} | {"gain": "*fp32", "partial": "*fp32"}
    kinds = {name: kinds[name] for name in kernel.arg_names if name in kinds} | dict.fromkeys(sizes, "i32")
    constants = {"EPS": EPS, "NORMALIZE": True, "HEADS": choice["heads"], "SIZE": SIZE, "HALF": HALF}
    constants |= {"PAIRS": SIZE // 2, "ROWS": tile // SIZE} | ({} if choice["gain"] else {"gain": None})
    signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
    return Case(f"{name} of {choice['heads']} heads, {choice['dtype']}", kernel, signature, constants, num_warps=WARPS)


def _cases(dtype: str, *, heads: int, gain: bool) -> list[Case]:
    forward = ["heads", "cos", "sin", "out"]
    backward = ["gradient", "heads", "cos", "sin", "d_heads"]
    sizes = ["rows", "stride", "tokens"]
    choice = {"dtype": dtype, "heads": heads, "gain": gain}
    return [
        _case("turn_heads", _turn, forward, sizes, tile=FORWARD_TILE, **choice),
        _case("turn_heads_backward", _turn_back, backward, [*sizes, "gradient_stride"], tile=BACKWARD_TILE, **choice),
    ]


CASES = [
    *_cases("bf16", heads=8, gain=True),
    *_cases("bf16", heads=4, gain=False),
    *_cases("fp32", heads=8, gain=True),
]
