"""The quantizers without calibration, against their formulas written again in numpy with float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from golf.errors import NumericalFaultError
from golf.quant import nearest
from golf.quant.nearest import CLIP_CANDIDATES, PERCENTILE, quantize_nearest, row_max_scale
from golf.quant.rotation import hadamard
from golf.quant.scheme import Kind, QuantizedTensor, TensorScheme

SHAPES = [(1, 1), (3, 423), (64, 7)]


def heavy(rows: int, cols: int, *, seed: int = 0) -> Tensor:
    """Weights with far outliers, where clips differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) / torch.rand(rows, cols, generator=generator).add(0.02)


def scheme(kind: Kind, *, bits: int = 6, floor: float = 2**-24, rotated: bool = False) -> TensorScheme:
    return TensorScheme(kind=kind, bits=bits, floor=floor, rotated=rotated)


def by_formula(weight: Tensor, quantile: float, bits: int, floor: float, lowest: int) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]  # any numbers
    """Codes and float16 scales of clip(round(w / s), lowest, R) with s = float16(max(quantile / R, floor))."""
    w, levels = weight.double().numpy(), 2 ** (bits - 1) - 1
    reach = np.quantile(np.abs(w), quantile, axis=1)
    scale = np.maximum(reach / levels, floor).astype(np.float16)
    return np.clip(np.rint(w / scale.astype(np.float64)[:, None]), lowest, levels).astype(np.int8), scale


def squared_errors(weight: Tensor, tensor: QuantizedTensor) -> Tensor:
    return (weight - tensor.dequantize()).double().square().sum(1)


@pytest.mark.parametrize("bits", [2, 5, 6, 7])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_row_max_spans_the_largest_magnitude_of_a_row(rows: int, cols: int, bits: int) -> None:
    weight, levels = heavy(rows, cols), 2 ** (bits - 1) - 1
    found = quantize_nearest(weight, scheme("row_max", bits=bits))
    codes, scale = by_formula(weight, 1.0, bits, 2**-24, -levels - 1)
    assert np.array_equal(found.codes.numpy(), codes)
    assert np.array_equal(found.scale.numpy(), scale)


def test_row_max_reaches_the_lowest_code_where_float16_made_the_scale_small() -> None:
    weight = torch.tensor([[-1.0, 1.0, 0.0]]) * 31 * 1.4 * 2**-24  # the scale 1.4 * 2^-24 is stored as 2^-24
    assert quantize_nearest(weight, scheme("row_max")).codes.tolist() == [[-32, 31, 0]]
    assert quantize_nearest(weight, scheme("nearest")).codes.tolist() == [[-31, 31, 0]]


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_nearest_is_symmetric(rows: int, cols: int) -> None:
    weight = heavy(rows, cols)
    codes, scale = by_formula(weight, 1.0, 8, 2**-24, -127)
    found = quantize_nearest(weight, scheme("nearest", bits=8))
    assert np.array_equal(found.codes.numpy(), codes)
    assert np.array_equal(found.scale.numpy(), scale)


def test_the_percentile_cuts_the_weights_before_they_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "PERCENTILE", 0.99)
    weight = heavy(3, 2000) * 0.005
    weight[1, 5] = 0.9  # with the floor of 1 / 127 it would be code 114 if it were not cut
    found = quantize_nearest(weight, scheme("percentile", bits=8, floor=1 / 127))
    w = weight.double().numpy()
    reach = np.quantile(np.abs(w), 0.99, axis=1)
    cut = np.clip(w, -reach[:, None], reach[:, None])
    assert np.array_equal(found.codes.numpy(), np.rint(cut * 127).astype(np.int8))
    assert found.scale.tolist() == [torch.tensor(1 / 127).half().item()] * 3


def test_the_percentile_lies_below_the_largest_magnitude() -> None:
    weight = torch.zeros(1, 2001)
    weight[0, 7] = 127.0
    scale = 1 - 2000 * (1 - PERCENTILE)  # 0.9968: between the largest and the second largest, which is 0
    found = quantize_nearest(weight, scheme("percentile", bits=8))
    assert found.scale.item() == pytest.approx(scale, abs=1e-3)
    assert found.scale.item() < 1
    assert found.codes[0, 7] == 127


def test_the_search_takes_the_one_candidate_that_is_best_for_the_matrix() -> None:
    weight = heavy(8, 1500)
    found = quantize_nearest(weight, scheme("clip_search"))
    errors = []
    for quantile in CLIP_CANDIDATES:
        codes, scale = by_formula(weight, quantile, 6, 2**-24, -31)
        errors.append(((weight.double().numpy() - codes * scale.astype(np.float64)[:, None]) ** 2).sum())
    codes, scale = by_formula(weight, CLIP_CANDIDATES[int(np.argmin(errors))], 6, 2**-24, -31)
    assert CLIP_CANDIDATES[int(np.argmin(errors))] < 1
    assert np.array_equal(found.scale.numpy(), scale)
    assert np.array_equal(found.codes.numpy(), codes)


def test_the_search_by_row_is_at_least_as_good_in_every_row_and_better_in_one() -> None:
    weight = heavy(8, 1500)
    weight[0] = torch.linspace(-1, 1, 1500)  # no outlier: the whole row is best
    one = squared_errors(weight, quantize_nearest(weight, scheme("clip_search")))
    each = squared_errors(weight, quantize_nearest(weight, scheme("row_clip_search")))
    assert bool((each <= one).all())
    assert bool((each < one).any())


def test_the_search_is_never_worse_than_no_clip() -> None:
    for seed in range(5):
        weight = heavy(4, 300, seed=seed)
        found = squared_errors(weight, quantize_nearest(weight, scheme("clip_search"))).sum()
        assert found <= squared_errors(weight, quantize_nearest(weight, scheme("nearest"))).sum()


@pytest.mark.parametrize("kind", ["row_max", "clip_search", "row_clip_search", "nearest"])
def test_rows_below_one_all_get_the_unit_floors_step(kind: Kind) -> None:
    found = quantize_nearest(heavy(5, 200).clamp(-0.9, 0.9), scheme(kind, floor=1 / 31))
    assert found.scale.tolist() == [torch.tensor(1 / 31).half().item()] * 5


@pytest.mark.parametrize("kind", ["row_max", "clip_search", "row_clip_search", "percentile"])
def test_a_zero_row_has_code_0(kind: Kind) -> None:
    weight = heavy(3, 50)
    weight[1] = 0
    assert not quantize_nearest(weight, scheme(kind, bits=8)).codes[1].any()


@pytest.mark.parametrize("kind", ["row_max", "clip_search", "row_clip_search", "percentile"])
def test_a_weight_that_is_not_finite_is_refused(kind: Kind) -> None:
    weight = heavy(3, 50)
    weight[1, 2] = torch.inf
    with pytest.raises(NumericalFaultError, match="1 NaN or infinite"):
        quantize_nearest(weight, scheme(kind, bits=8))


def test_long_rows_are_taken_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(7, 100)
    whole = quantize_nearest(weight, scheme("percentile", bits=8))
    monkeypatch.setattr(nearest, "_QUANTILE_ELEMENTS", 250)
    assert torch.equal(quantize_nearest(weight, scheme("percentile", bits=8)).codes, whole.codes)


def test_a_rotated_matrix_is_rounded_in_its_rotated_form() -> None:
    weight = heavy(8, 30)
    found = quantize_nearest(weight, scheme("row_max", rotated=True))
    plain = quantize_nearest(hadamard(weight), scheme("row_max"))
    assert found.rotated
    assert torch.equal(found.codes, plain.codes)
    torch.testing.assert_close(found.dequantize(), hadamard(plain.dequantize()))


def test_the_fake_quantized_scale_is_not_rounded_to_float16() -> None:
    weight = torch.tensor([[0.1, -0.7], [3.1, 0.2]])
    found = row_max_scale(weight, scheme("row_max", floor=1 / 31))
    torch.testing.assert_close(found, torch.tensor([1 / 31, 3.1 / 31]), rtol=1e-7, atol=0)
