"""Tensors to pieces of streams and back."""

import pytest
import torch

from golf.artifact.header import TensorLine
from golf.artifact.streams import StreamReader, check_tensor, join_tensor, split_tensor, stream_bytes
from golf.errors import NumericalFaultError
from golf.quant.scheme import QuantizedTensor, Stored
from golf.quant.ternary import TernaryTensor


def quantized(rows: int, cols: int, value: int, *, rotated: bool = False) -> QuantizedTensor:
    return QuantizedTensor(
        codes=torch.full((rows, cols), value, dtype=torch.int8),
        scale=torch.arange(1, rows + 1).half(),
        bits=8,
        shape=(rows, cols),
        rotated=rotated,
    )


def ternary(dtype: torch.dtype) -> TernaryTensor:
    codes = torch.tensor([[1, -1, 0, 0, 1, 1], [0, 0, -1, 1, 0, -1]], dtype=torch.int8)
    return TernaryTensor(codes=codes, scale=torch.tensor([[0.1, 2.0], [0.0, 3.0]], dtype=dtype))


def joined(name: str, tensor: Stored) -> Stored:
    """What is read back of a tensor whose streams hold nothing else."""
    line, parts = split_tensor(name, tensor)
    return join_tensor(line, {key: StreamReader(key, stream_bytes(key, {name: part})) for key, part in parts.items()})


def test_near_codes_go_to_nibbles_escapes_and_scale() -> None:
    line, parts = split_tensor("fc.weight", quantized(3, 5, 2))
    assert line == TensorLine("fc.weight", "nibbles", 8, (3, 5))
    assert {name: len(part) for name, part in parts.items()} == {"nibbles.3x5": 8, "escapes.3x5": 0, "scale": 6}


def test_far_codes_go_to_bytes_and_scale() -> None:
    line, parts = split_tensor("gate", quantized(3, 5, 100))
    assert line.layout == "bytes"
    assert {name: len(part) for name, part in parts.items()} == {"bytes.3x5": 15, "scale": 6}


@pytest.mark.parametrize(("value", "layout"), [(2, "nibbles+rotated"), (100, "bytes+rotated")])
def test_the_layout_says_that_rows_were_rotated(value: int, layout: str) -> None:
    assert split_tensor("fc.weight", quantized(4, 5, value, rotated=True))[0].layout == layout


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("value", [2, 100, -128])
def test_codes_come_back_with_their_rotation(value: int, rotated: bool) -> None:
    tensor = quantized(4, 5, value, rotated=rotated)
    found = joined("fc.weight", tensor)
    assert isinstance(found, QuantizedTensor)
    assert found.rotated == rotated
    assert torch.equal(found.dequantize(), tensor.dequantize())


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.float32, "float32")])
def test_ternary_codes_go_to_trits_and_their_scales_to_the_stream_of_their_dtype(dtype: torch.dtype, name: str) -> None:
    line, parts = split_tensor("fc.weight", ternary(dtype))
    assert line == TensorLine("fc.weight", f"trits.{name}", 0, (2, 2, 3))
    assert {key: len(part) for key, part in parts.items()} == {"trits": 3, name: 4 * dtype.itemsize}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_ternary_tensors_come_back_exactly(dtype: torch.dtype) -> None:
    found = joined("fc.weight", ternary(dtype))
    assert isinstance(found, TernaryTensor)
    assert torch.equal(found.codes, ternary(dtype).codes)
    assert torch.equal(found.scale, ternary(dtype).scale)
    assert found.scale.dtype == dtype


def test_plain_tensors_go_to_the_stream_of_their_dtype() -> None:
    assert split_tensor("q_gain", torch.tensor(1.0)) == (
        TensorLine("q_gain", "float32", 0, ()),
        {"float32": b"\0\0\x80?"},
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int32, torch.int64])
def test_plain_tensors_of_every_dtype_come_back(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(3, 1, 2).to(dtype)
    line, parts = split_tensor("t", tensor)
    readers = {name: StreamReader(name, stream_bytes(name, {"t": part})) for name, part in parts.items()}
    joined = join_tensor(line, readers)
    assert isinstance(joined, torch.Tensor)
    torch.testing.assert_close(joined, tensor, rtol=0, atol=0)


def test_scales_are_shuffled_as_numbers_of_two_bytes() -> None:
    assert stream_bytes("scale", {"a": b"aAbB", "b": b"cC"}) == b"abcABC"


def test_codes_are_not_shuffled() -> None:
    assert stream_bytes("bytes.2x3", {"a": b"abcdef"}) == b"abcdef"


def test_a_reader_gives_bytes_in_order_until_there_are_none() -> None:
    reader = StreamReader("bytes.1x1", b"abc")
    assert (reader.take(2), reader.at_end, reader.take(1), reader.at_end) == (b"ab", False, b"c", True)
    with pytest.raises(ValueError, match="less than"):
        reader.take(1)


@pytest.mark.parametrize("name", ["", "../x", "/etc", "a..b", "a b", "a\0", "ü", "-x"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        check_tensor(name, torch.ones(1))


@pytest.mark.parametrize("tensor", [torch.ones(1).double(), torch.ones(1).bool()])
def test_odd_dtypes_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="store float16"):
        check_tensor("t", tensor)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (1,) * 9])
def test_odd_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="odd shape"):
        check_tensor("t", torch.ones(shape))


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(NumericalFaultError, match=r"blocks\.3\.scale"):
        check_tensor("blocks.3.scale", torch.tensor([1.0, torch.inf]))


@pytest.mark.parametrize(
    "line",
    [
        TensorLine("a", "nibbles", 8, (3, 5)),
        TensorLine("a", "bytes", 8, (3, 5)),
        TensorLine("a", "bytes", 1, (2, 2)),
        TensorLine("a", "bytes", 3, (2, 2)),
        TensorLine("a", "bytes", 8, ()),
        TensorLine("a", "pickle", 8, (2, 2)),
        TensorLine("a", "bytes+rotated", 8, (3, 3)),
        TensorLine("a", "bytes+rotated+rotated", 8, (2, 2)),
        TensorLine("a", "uint8+rotated", 0, (1,)),
        TensorLine("a", "trits.float16", 0, (2, 2)),
        TensorLine("a", "trits.float16", 0, (1, 1, 5)),
        TensorLine("a", "trits.float64", 0, (1, 1, 5)),
        TensorLine("a", "trits.uint8", 0, (1, 1, 3)),
        TensorLine("a", "trits.float32", 0, (1, 1, 10**9)),
        TensorLine("a", "float32", 0, (2, 2)),
        TensorLine("a", "uint8", 0, (10**9, 10**9)),
        TensorLine("../a", "uint8", 0, (1,)),
    ],
)
def test_lines_that_the_streams_do_not_bear_out_are_value_errors(line: TensorLine) -> None:
    streams = {"bytes.2x2": b"\x7f\x7f\x7f\x7f", "scale": b"\0<\0<", "uint8": b"abc", "trits": b"\xf2\xf3"}
    with pytest.raises(ValueError, match=r"."):
        join_tensor(line, {name: StreamReader(name, data) for name, data in streams.items()})


@pytest.mark.parametrize("shape", [(0,), (0, 10**30), (1,) * 1000])
def test_lines_with_an_odd_shape_are_value_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="odd shape"):
        join_tensor(TensorLine("a", "uint8", 0, shape), {"uint8": StreamReader("uint8", b"abc")})
