"""What a scheme and a quantized tensor accept."""

from typing import Any

import pytest
import torch

from golf.quant.scheme import QuantizedTensor, TensorScheme, rows_and_cols


def quantized(**changes: Any) -> QuantizedTensor:
    fields: dict[str, Any] = {
        "codes": torch.tensor([[3, -3, 0], [1, 2, -1]], dtype=torch.int8),
        "scale": torch.tensor([0.5, 2.0], dtype=torch.float16),
        "bits": 3,
        "shape": (2, 3),
    }
    return QuantizedTensor(**(fields | changes))


def test_levels_follow_the_bits() -> None:
    assert TensorScheme(kind="gptq", bits=6, clip_sigmas=12.85).levels == 31


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "gptq", "bits": 1},
        {"kind": "nearest"},
        {"kind": "float16", "bits": 8},
        {"kind": "float16", "clip_sigmas": 3.0},
        {"kind": "row_max", "bits": 6, "clip_sigmas": 3.0},
        {"kind": "ternary", "bits": 2},
        {"kind": "gptq", "bits": 6, "clip_sigmas": -1.0},
        {"kind": "gptq", "bits": 6, "clip_sigmas": float("nan")},
    ],
)
def test_contradictory_schemes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bits|clip_sigmas"):
        TensorScheme(**fields)


@pytest.mark.parametrize("kind", ["float16", "ternary"])
def test_only_integer_codes_are_rotated(kind: Any) -> None:
    with pytest.raises(ValueError, match="rotation"):
        TensorScheme(kind=kind, rotated=True)


def test_the_weight_is_codes_times_row_scale() -> None:
    assert quantized().dequantize().tolist() == [[1.5, -1.5, 0.0], [2.0, 4.0, -2.0]]


def test_the_weight_has_its_own_shape() -> None:
    tensor = quantized(codes=torch.ones(6, 2, dtype=torch.int8), scale=torch.ones(6).half(), shape=(3, 2, 2))
    assert tensor.dequantize().shape == (3, 2, 2)


def test_a_rotated_weight_is_rotated_back() -> None:
    plain, rotated = quantized().dequantize(), quantized(rotated=True).dequantize()
    expected = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) @ plain / 2**0.5
    torch.testing.assert_close(rotated, expected)


def test_every_integer_of_the_width_is_a_code() -> None:
    codes = torch.tensor([[-4, 3, 0], [1, 2, -1]], dtype=torch.int8)
    assert quantized(codes=codes).dequantize()[0].tolist() == [-2.0, 1.5, 0.0]
    assert quantized(codes=torch.full((2, 3), -128, dtype=torch.int8), bits=8).dequantize()[1, 0] == -256


def test_a_vector_is_one_row() -> None:
    assert rows_and_cols((5,)) == (1, 5)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (-2, -3)])
def test_shapes_without_elements_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no row"):
        rows_and_cols(shape)


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": torch.zeros(2, 3)},
        {"codes": torch.zeros(3, 2, dtype=torch.int8)},
        {"codes": torch.full((2, 3), 4, dtype=torch.int8)},
        {"codes": torch.full((2, 3), -5, dtype=torch.int8)},
        {"codes": torch.zeros(3, 3).to(torch.int8), "scale": torch.ones(3).half(), "shape": (3, 3), "rotated": True},
        {"scale": torch.ones(2)},
        {"scale": torch.ones(3).half()},
        {"bits": 9},
        {"shape": (3, 3)},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"codes|scale|bits"):
        quantized(**changes)
