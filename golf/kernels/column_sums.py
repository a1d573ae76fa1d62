"""The sums that a kernel's programs leave, one row each, added up: a gradient of a weight that all tokens share.

P rows, N columns.
"""

from typing import Any

from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl

# Tuned on an H200.
ROWS = 512  # that a program adds up at a time, each in its own sum
COLUMNS = 16  # a program
WARPS = 4


@jit
def _column_sums(
    rows: "Any",  # (P, N)
    out: "Any",  # (N,)
    count: "Any",  # P
    columns: "Any",  # N
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        total += tl.load(rows + row * columns + column, mask=(row < count) & (column < columns), other=0.0)
    tl.store(out + column, tl.sum(total, axis=0, keep_dims=True), mask=column < columns)


def column_sums(rows: Tensor) -> Tensor:
    """Return the sums of the columns (N,) of `rows` (P, N), contiguous and float32, always added in the same order.

    Few columns and some hundred rows are what PyTorch's sum is slow for (10 us on an H200).
    """
    count, columns = rows.shape
    if not rows.numel():
        return rows.new_zeros(columns)
    out = rows.new_empty(columns)
    width = min(COLUMNS, next_power_of_2(columns))
    _column_sums[(ceil_div(columns, width),)](rows, out, count, columns, ROWS, width, num_warps=WARPS)
    return out
