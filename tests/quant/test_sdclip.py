"""Scales against the formulas, computed in float64 by numpy."""

import math

import numpy as np
import pytest
import torch

from golf.errors import NumericalFaultError, UsageError
from golf.quant.primitives import SCALE_FLOOR, absmax_scale, quantize
from golf.quant.sdclip import choose_scale

GENERATOR_SEED = 7


def gaussian(rows: int, cols: int, seed: int = GENERATOR_SEED) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_the_scale_is_the_unbiased_deviation_times_k_over_levels() -> None:
    weight = gaussian(7, 33) + 0.02
    expected = (12.85 * weight.double().numpy().std(1, ddof=1) / 31).astype(np.float16)
    assert choose_scale(weight, clip_sigmas=12.85, levels=31).tolist() == expected.tolist()


@pytest.mark.parametrize(("clip_sigmas", "levels"), [(13, 31), (12, 31), (15, 63), (20, 127)])
def test_the_code_length_of_gaussian_rows_is_the_predicted_one(clip_sigmas: float, levels: int) -> None:
    weight = gaussian(512, 512)
    codes = quantize(weight, choose_scale(weight, clip_sigmas=clip_sigmas, levels=levels), levels)
    share = torch.bincount(codes.flatten().int() + levels).double() / codes.numel()
    entropy = -(share[share > 0] * share[share > 0].log2()).sum().item()
    assert entropy == pytest.approx(math.log2(math.sqrt(2 * math.pi * math.e) * levels / clip_sigmas), rel=0.01)


def test_lambda_0_is_the_plain_scale_bit_for_bit() -> None:
    weight, diagonal = gaussian(9, 20), torch.linspace(0.1, 5, 20)
    plain = choose_scale(weight, clip_sigmas=12, levels=31)
    assert torch.equal(choose_scale(weight, clip_sigmas=12, levels=31, hessian_diagonal=diagonal), plain)


def test_lambda_moves_the_scale_by_the_relative_importance_of_the_row() -> None:
    weight, diagonal = gaussian(9, 20), torch.linspace(0.0, 5, 20)
    w, h = weight.double().numpy(), np.maximum(diagonal.double().numpy(), 1e-8)
    importance = (np.abs(w) * h / h.mean()).mean(1)
    expected = 12 * w.std(1, ddof=1) * (1 + 0.4 * (importance / importance.mean() - 1)) / 31
    scale = choose_scale(weight, clip_sigmas=12, levels=31, hessian_diagonal=diagonal, hessian_lambda=0.4)
    np.testing.assert_allclose(scale.double().numpy(), expected, rtol=2**-11)


@pytest.mark.parametrize("hessian_lambda", [-0.1, 1.0, 2.5, float("nan")])
def test_lambda_outside_its_range_is_refused(hessian_lambda: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\)"):
        choose_scale(gaussian(2, 3), clip_sigmas=12, levels=31, hessian_lambda=hessian_lambda)


def test_lambda_without_a_hessian_is_refused() -> None:
    with pytest.raises(UsageError, match="no Hessian"):
        choose_scale(gaussian(2, 3), clip_sigmas=12, levels=31, hessian_lambda=0.1)


def test_a_zero_row_gets_the_floor() -> None:
    weight = gaussian(3, 8)
    weight[1] = 0
    assert choose_scale(weight, clip_sigmas=12, levels=31)[1] == SCALE_FLOOR


def test_a_zero_matrix_has_rows_of_equal_importance() -> None:
    scale = choose_scale(
        torch.zeros(2, 8), clip_sigmas=12, levels=31, hessian_diagonal=torch.ones(8), hessian_lambda=0.5
    )
    assert scale.tolist() == [SCALE_FLOOR, SCALE_FLOOR]


def test_the_reference_floor_vanishes_in_float16() -> None:
    assert choose_scale(torch.zeros(1, 8), clip_sigmas=12, levels=31, floor=1e-10).tolist() == [0.0]


@pytest.mark.parametrize(("value", "cols"), [(0.1, 11), (0.3, 6)])  # the deviation of the latter is 3e-8, not 0
def test_a_constant_row_spans_its_own_value(value: float, cols: int) -> None:
    scale = choose_scale(torch.full((1, cols), value), clip_sigmas=12, levels=31)
    assert scale.item() * 31 == pytest.approx(value, rel=2**-11)


def test_a_single_column_spans_its_own_value() -> None:
    weight = torch.tensor([[0.5], [-2.0]])
    assert quantize(weight, choose_scale(weight, clip_sigmas=12, levels=31), 31).tolist() == [[31], [-31]]


def test_clip_0_is_the_absmax_of_the_row() -> None:
    weight = gaussian(5, 17)
    assert torch.equal(choose_scale(weight, clip_sigmas=0, levels=127), absmax_scale(weight, levels=127))


def test_bfloat16_weights_have_the_scale_of_their_values() -> None:
    weight = gaussian(5, 17).bfloat16()
    expected = choose_scale(weight.float(), clip_sigmas=12, levels=31)
    assert torch.equal(choose_scale(weight, clip_sigmas=12, levels=31), expected)


def test_nan_in_the_weight_is_refused() -> None:
    with pytest.raises(NumericalFaultError, match="weight"):
        choose_scale(torch.tensor([[1.0, float("nan")]]), clip_sigmas=12, levels=31)


def test_nan_in_the_diagonal_is_refused() -> None:
    with pytest.raises(NumericalFaultError, match="diagonal"):
        choose_scale(
            gaussian(2, 2),
            clip_sigmas=12,
            levels=31,
            hessian_diagonal=torch.tensor([1.0, torch.nan]),
            hessian_lambda=0.1,
        )
