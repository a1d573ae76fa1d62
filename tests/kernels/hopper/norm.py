"""The norm's kernels at a record's sizes, and what the cases of both norm and mix are made with."""

from collections.abc import Mapping
from typing import Any

from golf.kernels import norm
from golf.kernels.norm import EPS, row_tile
from tests.kernels.hopper.build import Case

CHANNELS = 512


def row_case(kernel: Any, *, dtype: str, elements: int, values: Mapping[str, Any], name: str = "") -> Case:
    """Return a case of a kernel over tiles of rows of about `elements`.

    `values` are its constants, and the types of arguments that are neither tensors (N, C) of `dtype` nor well known.
    """
    tile = row_tile(CHANNELS, elements)
    common = {"rstd": "*fp32", "rows": "i32", "scale": "fp32"}
    sizes = {"CHANNELS": CHANNELS, "EPSILON": EPS, "TILE_ROWS": tile.rows, "TILE_CHANNELS": tile.channels}
    known = {**common, **{key: value for key, value in sizes.items() if key in kernel.arg_names}, **values}
    given = {key: known.get(key, f"*{dtype}") for key in kernel.arg_names}
    types = {key: value if isinstance(value, str) else "constexpr" for key, value in given.items()}
    constants = {key: value for key, value in given.items() if not isinstance(value, str)}
    return Case(f"{kernel.__name__} {dtype} {name}", kernel, types, constants, num_warps=tile.warps)


def _cases(dtype: str) -> list[Case]:
    forward, backward = norm._norm_forward, norm._norm_backward
    return [
        row_case(forward, dtype=dtype, elements=norm.TILE, values={}),
        row_case(backward, dtype=dtype, elements=norm.TILE, values={"other": None}, name="alone"),
        row_case(backward, dtype=dtype, elements=norm.TILE, values={}, name="of a sum"),
    ]


CASES = [case for dtype in ("bf16", "fp32") for case in _cases(dtype)]
