"""Rounding to codes and back, against worked examples and exact products."""

import pytest
import torch

from golf.errors import NumericalFaultError
from golf.quant.primitives import (
    SCALE_FLOOR,
    absmax_scale,
    dequantize,
    float16_scale,
    levels_of,
    quantize,
    require_finite,
    subnormal_rows,
)


def ones(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.float16)


def test_levels_are_symmetric_and_leave_out_the_least_integer() -> None:
    assert [levels_of(bits) for bits in range(2, 9)] == [1, 3, 7, 15, 31, 63, 127]


@pytest.mark.parametrize("bits", [0, 1, 9, -3])
def test_widths_that_do_not_fit_int8_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        levels_of(bits)


def test_halves_round_to_even() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 3.4999]])
    assert quantize(weight, ones(1), 31).tolist() == [[0, 2, 2, 0, -2, 3]]


def test_codes_are_clamped_to_the_levels() -> None:
    assert quantize(torch.tensor([[-900.0, 900.0, 31.4]]), ones(1), 31).tolist() == [[-31, 31, 31]]


def test_the_lowest_code_may_be_another() -> None:
    assert quantize(torch.tensor([[-900.0, 900.0, -31.6]]), ones(1), 31, lowest=-32).tolist() == [[-32, 31, -32]]


def test_each_row_has_its_own_scale() -> None:
    scale = torch.tensor([0.5, 2.0, 0.25], dtype=torch.float16)
    assert quantize(torch.full((3, 2), 2.0), scale, 7).tolist() == [[4, 4], [1, 1], [7, 7]]


def test_a_row_of_scale_0_has_code_0() -> None:
    scale = torch.tensor([0.0, 1.0], dtype=torch.float16)
    assert quantize(torch.tensor([[0.0, 3.0], [0.0, 3.0]]), scale, 7).tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.zeros(3, 5)
    weight[2, 4] = value
    with pytest.raises(NumericalFaultError, match="1 NaN or infinite values out of 15"):
        quantize(weight, ones(3), 31)


def test_a_scale_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NumericalFaultError, match="the scale"):
        quantize(torch.zeros(1, 2), torch.tensor([torch.inf], dtype=torch.float16), 31)


def test_dequantized_values_are_the_exact_products() -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8).reshape(5, 51)
    scale = torch.tensor([0.1, 6e-8, 3e-5, 1.0, 300.0], dtype=torch.float16)
    assert torch.equal(dequantize(codes, scale).double(), codes.double() * scale.double()[:, None])


def test_absmax_maps_the_peak_of_each_row_to_the_last_level() -> None:
    weight = torch.tensor([[0.25, -0.5, 0.125], [3.0, 0.0, 1.0]])
    scale = absmax_scale(weight, levels=127)
    assert scale.dtype == torch.float16
    assert quantize(weight, scale, 127).tolist() == [[64, -127, 32], [127, 0, 42]]


def test_a_zero_row_gets_the_least_float16() -> None:
    assert absmax_scale(torch.zeros(1, 3), levels=127).tolist() == [SCALE_FLOOR]


def test_the_default_floor_is_the_last_that_float16_keeps() -> None:
    assert float16_scale(torch.zeros(1), SCALE_FLOOR) > 0
    assert float16_scale(torch.zeros(1), SCALE_FLOOR / 2) == 0


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(NumericalFaultError, match="float16 scale"):
        float16_scale(torch.tensor([1.0, 70000.0]), SCALE_FLOOR)


def test_rows_with_a_coarse_scale_are_flagged() -> None:
    scale = torch.tensor([2**-14, 2**-15, 1.0, 2**-24], dtype=torch.float16)
    assert subnormal_rows(scale).tolist() == [False, True, False, True]


def test_finite_numbers_pass() -> None:
    require_finite(torch.tensor([1e38, -0.0, 1e-45]), "it")


def test_rounding_compiles_into_one_graph() -> None:
    weight, scale = torch.tensor([[0.5, 1.5, -9.0]]), ones(1)
    compiled = torch.compile(quantize, backend="eager", fullgraph=True)
    assert torch.equal(compiled(weight, scale, 7), quantize(weight, scale, 7))
