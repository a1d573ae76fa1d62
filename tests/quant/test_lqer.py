"""Low-rank correction against a float64 SVD and the formulas of its codes."""

import pytest
import torch
from torch import Tensor

from golf.quant.lqer import (
    Correction,
    correct,
    correct_worst,
    factor_names,
    is_factor,
    low_rank_factors,
    pack_asymmetric,
    pack_symmetric,
)
from golf.quant_config import LqerConfig


def matrix(rows: int, cols: int, *, seed: int = 0) -> Tensor:
    """Noise over a strong part of rank two, which a correction can find."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(rows, 2, generator=generator) @ torch.randn(2, cols, generator=generator)
    return strong + 0.1 * torch.randn(rows, cols, generator=generator)


@pytest.mark.parametrize(("rows", "cols", "rank"), [(17, 5, 2), (3, 423, 2), (7, 7, 7), (2, 9, 4)])
def test_the_factors_are_the_best_of_their_rank(rows: int, cols: int, rank: int) -> None:
    error = matrix(rows, cols)
    left, right = low_rank_factors(error, rank)
    values = torch.linalg.svdvals(error.double())
    assert left.shape == (rows, min(rank, rows, cols))
    assert right.shape == (min(rank, rows, cols), cols)
    left_over = float((error.double() - left.double() @ right.double()).square().sum())
    assert left_over == pytest.approx(float(values[rank:].square().sum()), abs=1e-5 * float(values[0] ** 2))


def test_the_right_factor_is_orthonormal() -> None:
    _, right = low_rank_factors(matrix(17, 5), 3)
    torch.testing.assert_close(right @ right.T, torch.eye(3), rtol=0, atol=1e-6)


def test_the_largest_magnitude_of_every_left_column_is_negative() -> None:
    for seed in range(5):
        left, _ = low_rank_factors(matrix(17, 9, seed=seed), 4)
        assert bool((left.gather(0, left.abs().argmax(0, keepdim=True)) < 0).all())


@pytest.mark.parametrize(("bits", "reach"), [(2, 1.5), (4, 7.5), (8, 127.5)])
def test_asymmetric_codes_use_every_integer_of_their_width(bits: int, reach: float) -> None:
    groups = torch.stack([torch.linspace(-3, 3, 1001), torch.linspace(-0.1, 0.1, 1001)])
    packed = pack_asymmetric(groups, bits)
    assert packed.scale.tolist() == (groups.abs().amax(1) / reach).half().tolist()
    scale = packed.scale.double()[:, None]
    expected = (groups.double() / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(packed.codes.double(), expected)
    assert int(packed.codes.min()) == -(2 ** (bits - 1))


def test_symmetric_codes_have_a_scale_a_row() -> None:
    packed = pack_symmetric(torch.tensor([[7.0, -7.0, 1.0], [0.5, 3.5, -1.4]]), 4)
    assert packed.scale.tolist() == [1.0, 0.5]
    assert packed.codes.tolist() == [[7, -7, 1], [1, 7, -3]]


def test_the_left_factor_has_one_scale_and_the_right_one_a_scale_a_group() -> None:
    pair = correct(matrix(10, 16), rank=4, bits=4, group=8)
    assert (pair.left.bits, pair.left.shape) == (2, (1, 40))
    assert (pair.right.bits, pair.right.shape) == (4, (8, 8))


@pytest.mark.parametrize("group", [0, 7])
def test_without_a_group_that_divides_both_factors_are_symmetric(group: int) -> None:
    pair = correct(matrix(10, 16), rank=4, bits=5, group=group)
    assert (pair.left.bits, pair.left.shape) == (5, (10, 4))
    assert (pair.right.bits, pair.right.shape) == (5, (4, 16))


def test_the_correction_is_the_product_of_the_unpacked_factors() -> None:
    error = matrix(10, 16)
    pair = correct(error, rank=2, bits=4, group=8)
    left = pair.left.codes.double().view(10, 2) * pair.left.scale.double()
    right = (pair.right.codes.double() * pair.right.scale.double()[:, None]).view(2, 16)
    torch.testing.assert_close(pair.expand((10, 16)).double(), left @ right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("group", "left_over"), [(0, 0.16), (8, 0.61)])  # two bits a left factor are few
def test_the_correction_takes_a_strong_error_away(group: int, left_over: float) -> None:
    error = matrix(40, 64)
    corrected = error - correct(error, rank=2, bits=4, group=group).expand((40, 64))
    assert float(corrected.norm()) < left_over * float(error.norm())


@pytest.mark.parametrize("shape", [(10, 15), (11, 16), (160,), (1, 1), ()])
def test_factors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not correct|no row"):
        correct(matrix(10, 16), rank=2, bits=4, group=8).expand(shape)


def test_an_error_of_zero_is_corrected_by_zero() -> None:
    assert not correct(torch.zeros(4, 8), rank=2, bits=4, group=4).expand((4, 8)).any()


def errors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Three errors of falling norm, with Hessians that turn the order around."""
    found = {name: matrix(6, 8) * size for name, size in (("b", 1.0), ("a", 0.5), ("c", 2.0))}
    return found, {name: torch.eye(8) * weight for name, weight in (("b", 1.0), ("a", 100.0), ("c", 0.01))}


def test_the_largest_errors_are_corrected_worst_first() -> None:
    factors = correct_worst(*errors(), LqerConfig(top_k=2, group=8))
    assert list(factors) == [*factor_names("c"), *factor_names("b")]


def test_ranked_by_hessian_the_largest_output_errors_are() -> None:
    factors = correct_worst(*errors(), LqerConfig(top_k=2, group=8, rank_by="hessian"))
    assert list(factors) == [*factor_names("a"), *factor_names("b")]


def test_more_than_there_are_is_all_of_them() -> None:
    assert len(correct_worst(*errors(), LqerConfig(top_k=9, group=8))) == 6


def test_equal_errors_are_taken_by_name() -> None:
    error, hessian = matrix(6, 8), torch.eye(8)
    factors = correct_worst({"z": error, "a": error}, {"z": hessian, "a": hessian}, LqerConfig(top_k=1, group=8))
    assert list(factors) == list(factor_names("a"))


def test_factors_are_known_by_their_names() -> None:
    assert [is_factor(name) for name in ("w", *factor_names("w"))] == [False, True, True]


def test_a_pair_is_two_packed_factors() -> None:
    assert isinstance(correct(matrix(4, 8), rank=1, bits=4, group=8), Correction)
