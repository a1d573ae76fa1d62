"""The sums of programs' rows."""

import pytest
import torch

from golf.kernels.column_sums import COLUMNS, ROWS, column_sums
from golf.kernels.jit import HAS_TRITON
from tests.kernels.test_norm import random

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
SIZES = [(1, 1), (3, 8), (ROWS, COLUMNS), (ROWS + 1, COLUMNS + 1), (2 * ROWS + 5, 3 * COLUMNS - 1)]


@pytest.mark.parametrize("size", SIZES)
def test_every_column_is_summed(size: tuple[int, int]) -> None:
    rows = random(size)
    torch.testing.assert_close(column_sums(rows).double(), rows.double().sum(0), rtol=1e-6, atol=1e-5)


def test_a_row_counts_wherever_it_is() -> None:
    for row in (0, ROWS - 1, ROWS, 2 * ROWS):
        one = torch.zeros(2 * ROWS + 1, COLUMNS + 3, device=random((1,)).device)
        one[row] = torch.arange(COLUMNS + 3)
        assert torch.equal(column_sums(one), one[row])


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_no_rows_are_zeros(size: tuple[int, int]) -> None:
    assert torch.equal(column_sums(random(size)), torch.zeros(size[1], device=random((1,)).device))
