"""The rotation against the matrix it stands for."""

import pytest
import torch

from golf.quant.rotation import can_rotate, hadamard


@pytest.mark.parametrize("rows", [2, 4, 64])
def test_it_is_the_product_with_the_normalized_hadamard_matrix(rows: int) -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < rows:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    weight = torch.randn(rows, 423, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(weight).double(), matrix @ weight.double() / rows**0.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 8, 512])
def test_twice_gives_the_weight_back(rows: int) -> None:
    weight = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(hadamard(weight)), weight, rtol=1e-5, atol=1e-6)


def test_powers_of_two_above_one_can_be_rotated() -> None:
    assert [rows for rows in range(-4, 70) if can_rotate(rows)] == [2, 4, 8, 16, 32, 64]


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        hadamard(torch.zeros(3, 4))
