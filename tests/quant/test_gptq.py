"""GPTQ against its defining recursion on explicit inverses, and what it owes to its inputs."""

import pytest
import torch
from torch import Tensor

from golf.errors import NumericalFaultError, UsageError
from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.primitives import dequantize, quantize
from golf.quant.sdclip import choose_scale


def problem(rows: int, cols: int, *, seed: int = 3, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Return a float64 weight, an ill-conditioned Hessian of correlated inputs, and the weight's 4-bit scale."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, cols, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs, choose_scale(weight, clip_sigmas=3, levels=7)


def by_definition(weight: Tensor, hessian: Tensor, scale: Tensor, levels: int, columns: list[int]) -> Tensor:
    """Round `columns` in turn; each time spread the error by the inverse Hessian of the columns that are left."""
    weight, scale, codes = weight.clone(), scale.to(weight.dtype), torch.zeros_like(weight)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    for position, column in enumerate(columns):
        left = columns[position:]
        inverse = torch.linalg.inv(damped[left][:, left])
        codes[:, column] = torch.round(weight[:, column] / scale).clamp(-levels, levels)
        error = (weight[:, column] - codes[:, column] * scale) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
    return codes.to(torch.int8)


def output_error(weight: Tensor, hessian: Tensor, codes: Tensor, scale: Tensor) -> float:
    error = weight - dequantize(codes, scale)
    return float(torch.trace(error @ hessian.to(error.dtype) @ error.T))


@pytest.mark.parametrize(("rows", "cols"), [(5, 3), (17, 23), (1, 40)])
def test_codes_follow_the_defining_recursion_in_order_of_falling_diagonal(rows: int, cols: int) -> None:
    weight, hessian, scale = problem(rows, cols)
    columns = hessian.diagonal().argsort(descending=True).tolist()
    assert torch.equal(gptq(weight, hessian, scale, levels=7), by_definition(weight, hessian, scale, 7, columns))


def test_codes_follow_the_defining_recursion_in_the_given_order() -> None:
    weight, hessian, scale = problem(9, 14)
    expected = by_definition(weight, hessian, scale, 7, list(range(14)))
    assert torch.equal(gptq(weight, hessian, scale, levels=7, order="none"), expected)


@pytest.mark.parametrize("block_size", [1, 7, 32, 64, 100, 512])
def test_block_size_does_not_change_the_codes(block_size: int) -> None:
    weight, hessian, scale = problem(33, 100)
    assert torch.equal(
        gptq(weight, hessian, scale, levels=7, block_size=block_size), gptq(weight, hessian, scale, levels=7)
    )


def test_float32_codes_agree_with_float64_codes() -> None:
    weight, hessian, scale = problem(257, 129, tokens=150)
    single = gptq(weight.float(), hessian.float(), scale, levels=7)
    assert (single != gptq(weight, hessian, scale, levels=7)).double().mean() <= 1e-4


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_diagonal_hessian_gives_round_to_nearest(spread: float) -> None:
    weight, _, scale = problem(11, 30)
    hessian = torch.diag(torch.logspace(0, spread, 30))
    assert torch.equal(gptq(weight, hessian, scale, levels=7), quantize(weight, scale, 7))


def test_the_output_error_is_less_than_half_of_rounding_to_nearest() -> None:
    weight, hessian, scale = problem(64, 96)
    ours = output_error(weight, hessian, gptq(weight, hessian, scale, levels=7), scale)
    assert ours < 0.5 * output_error(weight, hessian, quantize(weight, scale, 7), scale)


def test_the_output_error_grows_with_the_damping() -> None:
    weight, hessian, scale = problem(256, 64)
    errors = [
        output_error(weight, hessian, gptq(weight, hessian, scale, levels=7, damping=damping), scale)
        for damping in (0.0005, 0.05, 0.5, 5.0)
    ]
    assert errors == sorted(errors)


def test_heavy_damping_gives_round_to_nearest() -> None:
    weight, hessian, scale = problem(16, 40)
    assert torch.equal(gptq(weight, hessian, scale, levels=7, damping=1e9), quantize(weight, scale, 7))


def test_a_power_of_two_on_the_hessian_changes_nothing_even_with_dead_columns() -> None:
    weight, hessian, scale = problem(16, 40)
    hessian[:, 7] = hessian[7, :] = 0
    small = hessian * 2**-40
    assert torch.equal(gptq(weight, small, scale, levels=7), gptq(weight, small * 2**-20, scale, levels=7))


def test_dead_columns_have_code_0_and_leave_the_others_alone() -> None:
    weight, hessian, scale = problem(16, 40)
    hessian[:, [3, 21]] = 0
    hessian[[3, 21], :] = 0
    codes = gptq(weight, hessian, scale, levels=7)
    weight[:, [3, 21]] = 1e6
    assert not codes[:, [3, 21]].any()
    assert torch.equal(gptq(weight, hessian, scale, levels=7), codes)


def test_zero_rows_have_code_0() -> None:
    weight, hessian, scale = problem(4, 10)
    weight[2] = 0
    assert not gptq(weight, hessian, scale, levels=7)[2].any()


def test_rows_of_scale_0_have_code_0() -> None:
    weight, hessian, scale = problem(4, 10)
    scale[1] = 0
    assert not gptq(weight, hessian, scale, levels=7)[1].any()


def test_a_single_column_is_rounded_to_nearest() -> None:
    weight, hessian, scale = problem(6, 1)
    assert torch.equal(gptq(weight, hessian, scale, levels=7), quantize(weight, scale, 7))


def test_stacked_matrices_get_the_codes_they_get_alone() -> None:
    weight, hessian, scale = problem(30, 50)
    parts = [gptq(weight[rows], hessian, scale[rows], levels=7) for rows in (slice(0, 11), slice(11, 30))]
    assert torch.equal(gptq(weight, hessian, scale, levels=7), torch.cat(parts))


def test_equal_diagonals_keep_their_order() -> None:
    weight, hessian, scale = problem(8, 20)
    deviation = hessian.diagonal().sqrt()
    hessian = hessian / deviation / deviation[:, None]
    hessian.fill_diagonal_(1.0)
    assert torch.equal(gptq(weight, hessian, scale, levels=7), gptq(weight, hessian, scale, levels=7, order="none"))


def test_a_code_needs_no_room_beyond_the_levels() -> None:
    weight, hessian, scale = problem(16, 40)
    codes = gptq(weight * 100, hessian, scale, levels=7)
    assert (int(codes.min()), int(codes.max())) == (-7, 7)


def test_accumulation_noise_in_the_hessian_is_averaged_over_both_triangles() -> None:
    weight, hessian, scale = problem(512, 40)
    noise = 8e-5 * hessian.abs().max() * torch.rand(40, 40, generator=torch.Generator().manual_seed(1))
    codes = gptq(weight, hessian + (noise + noise.T) / 2, scale, levels=7)
    assert torch.equal(gptq(weight, hessian + noise, scale, levels=7), codes)


def test_inputs_are_left_as_they_were() -> None:
    weight, hessian, scale = problem(5, 9)
    before = weight.clone(), hessian.clone(), scale.clone()
    gptq(weight, hessian, scale, levels=7)
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, hessian, scale), strict=True))


def test_a_parameter_can_be_given() -> None:
    weight, hessian, scale = problem(5, 9)
    parameter = torch.nn.Parameter(weight)
    assert torch.equal(gptq(parameter, hessian, scale, levels=7), gptq(weight, hessian, scale, levels=7))


def test_bfloat16_weights_are_rounded_as_their_values() -> None:
    weight, hessian, scale = problem(5, 9)
    weight = weight.bfloat16()
    assert torch.equal(gptq(weight, hessian, scale, levels=7), gptq(weight.float(), hessian, scale, levels=7))


def test_a_dead_diagonal_becomes_1_but_no_more_than_the_least_living() -> None:
    assert damped_diagonal(torch.diag(torch.tensor([0.0, 4.0, 10.0]))).tolist() == pytest.approx([1.05, 4.05, 10.05])
    assert damped_diagonal(torch.diag(torch.tensor([0.0, 0.5, 1.0]))).tolist() == pytest.approx(
        [0.5 + 0.02 / 3, 0.5 + 0.02 / 3, 1 + 0.02 / 3]
    )


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ((1, 1), float("nan"), "NaN or infinite"),
        ((0, 2), float("inf"), "NaN or infinite"),
        ((0, 2), 1e4, "asymmetric"),
        ((4, 4), -1.0, "negative diagonal"),
    ],
)
def test_a_damaged_hessian_is_refused(entry: tuple[int, int], value: float, told: str) -> None:
    weight, hessian, scale = problem(3, 6)
    hessian[entry] = value
    with pytest.raises(NumericalFaultError, match=told):
        gptq(weight, hessian, scale, levels=7)


def test_a_zero_hessian_is_refused() -> None:
    weight, hessian, scale = problem(3, 6)
    with pytest.raises(NumericalFaultError, match="all zeros"):
        gptq(weight, torch.zeros_like(hessian), scale, levels=7)


def test_an_indefinite_hessian_is_refused() -> None:
    weight, _, scale = problem(3, 2)
    with pytest.raises(NumericalFaultError, match="not positive definite with damping"):
        gptq(weight, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), scale, levels=7)


def test_a_hessian_of_few_tokens_is_damped_into_use() -> None:
    weight, hessian, scale = problem(16, 40, tokens=3)
    codes = gptq(weight, hessian, scale, levels=7)
    nearest = output_error(weight, hessian, quantize(weight, scale, 7), scale)
    assert output_error(weight, hessian, codes, scale) < nearest


def test_nan_in_the_weight_is_refused() -> None:
    weight, hessian, scale = problem(3, 6)
    weight[2, 2] = torch.nan
    with pytest.raises(NumericalFaultError, match="weight"):
        gptq(weight, hessian, scale, levels=7)


@pytest.mark.parametrize("damping", [-0.01, float("nan")])
def test_negative_damping_is_refused(damping: float) -> None:
    weight, hessian, scale = problem(3, 6)
    with pytest.raises(UsageError, match="damping"):
        gptq(weight, hessian, scale, levels=7, damping=damping)
