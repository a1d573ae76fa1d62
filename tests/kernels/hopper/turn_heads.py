"""The launches of `fused_turn_heads` for a record's queries (gained), and for its keys, which take the values along.

Backward, a record's keys have two gradients and its values three (with FlashAttention-3), or one and two.
"""

from typing import Any

from golf.kernels.norm import EPS
from golf.kernels.turn_kernels import BACKWARD_TILE, FORWARD_TILE, WARPS, _turn, _turn_back
from tests.kernels.hopper.build import Case

SIZE, HALF = 64, 8
FLOATS = ("gain", "partial")
STRIDES = ("stride", "g0_stride", "g1_stride", "v0_stride", "v1_stride", "v2_stride", "result_stride")
SIZES = ("rows", "tokens", *STRIDES)
QUERIES = ("g1", "v0", "v1", "v2", "d_v")  # what theirs lack


def _case(name: str, kernel: Any, dtype: str, heads: int, missing: tuple[str, ...], *, tile: int) -> Case:
    constants: dict[str, Any] = {"EPS": EPS, "NORMALIZE": True, "HEADS": heads, "SIZE": SIZE, "HALF": HALF}
    constants |= {"PAIRS": SIZE // 2, "ROWS": tile // SIZE} | dict.fromkeys(missing)
    kinds = dict.fromkeys(SIZES, "i32") | dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, f"*{dtype}") for argument in kernel.arg_names}
    constants = {argument: value for argument, value in constants.items() if argument in signature}
    return Case(f"{name} of {heads} heads, {dtype}", kernel, signature, constants, num_warps=WARPS)


def _cases(dtype: str, *, heads: int, missing: tuple[str, ...] = ()) -> list[Case]:
    forward = tuple(name for name in missing if name in _turn.arg_names)
    return [
        _case("turn_heads", _turn, dtype, heads, forward, tile=FORWARD_TILE),
        _case("turn_heads_backward", _turn_back, dtype, heads, missing, tile=BACKWARD_TILE),
    ]


CASES = [
    *_cases("bf16", heads=8, missing=QUERIES),
    *_cases("bf16", heads=4, missing=("gain",)),
    *_cases("bf16", heads=4, missing=("gain", "v2")),
    *_cases("bf16", heads=4, missing=("gain", "g1", "v2")),
    *_cases("bf16", heads=4, missing=("gain", "g1", "v1", "v2")),
    *_cases("fp32", heads=8, missing=QUERIES),
]
