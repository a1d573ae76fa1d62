"""The launches of `column_sums` for weights of one stream mix, of two lanes, and for the queries' gains."""

from golf.kernels.column_sums import COLUMNS, ROWS, WARPS, _column_sums
from tests.kernels.hopper.build import Case

_SIGNATURE = {
    "rows": "*fp32",
    "out": "*fp32",
    "count": "i32",
    "columns": "i32",
    "ROWS": "constexpr",
    "COLUMNS": "constexpr",
}
CASES = [
    Case(f"column_sums {width}", _column_sums, _SIGNATURE, {"ROWS": ROWS, "COLUMNS": width}, num_warps=WARPS)
    for width in (COLUMNS, 8)
]
