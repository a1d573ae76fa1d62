"""Tensors as pieces of byte streams, and back.

A stream holds the pieces of its tensors in the order of their names. Codes of one shape share a stream (two, with the
escapes of `golf.artifact.packing`), all ternary codes share one, all scales of rows share one, and so do all plain
tensors of a dtype and the scales of ternary groups. Streams of numbers wider than a byte are byte-shuffled as a whole.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from golf.artifact import packing
from golf.artifact.codecs import byte_shuffle, byte_unshuffle
from golf.artifact.header import TensorLine
from golf.quant.primitives import require_finite
from golf.quant.scheme import QuantizedTensor, Stored, rows_and_cols
from golf.quant.ternary import TernaryTensor

_MAX_DIMS = 8
_ROTATED = "+rotated"  # ends the layout of codes whose rows were rotated
_TRITS = "trits."  # begins the layout of ternary codes, whose shape is rows, groups a row, codes a group
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*")
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
}


class StreamReader:
    """A decompressed stream, read from the front."""

    def __init__(self, name: str, data: bytes) -> None:
        self.data, self.position = byte_unshuffle(data, _stride(name)), 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; ValueError if there are fewer."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise ValueError("a stream holds less than its tensors need")
        return self.data[start : self.position]

    @property
    def at_end(self) -> bool:
        """Whether every byte was taken."""
        return self.position == len(self.data)


def stream_bytes(name: str, pieces: Mapping[str, bytes]) -> bytes:
    """Return the content of stream `name`, ready to be compressed."""
    return byte_shuffle(b"".join(pieces.values()), _stride(name))


def split_tensor(name: str, tensor: Stored) -> tuple[TensorLine, dict[str, bytes]]:
    """Return the header's line for a tensor and its piece of each stream that it needs.

    Raises ValueError for a name, dtype or empty shape that cannot be stored, NumericalFaultError for NaN or infinity.
    """
    check_tensor(name, tensor)
    if isinstance(tensor, TernaryTensor):
        return _split_ternary(name, tensor)
    if not isinstance(tensor, QuantizedTensor):
        dtype = _dtype_name(tensor)
        return TensorLine(name, dtype, 0, tuple(tensor.shape)), {dtype: _to_bytes(tensor)}
    plane, mark = _plane(tensor.shape), _ROTATED if tensor.rotated else ""
    if packing.prefers_nibbles(tensor.codes):
        layout, (pairs, escapes) = "nibbles", packing.pack_nibbles(tensor.codes)
        parts = {f"nibbles.{plane}": pairs, f"escapes.{plane}": escapes}
    else:
        layout, parts = "bytes", {f"bytes.{plane}": packing.pack_bytes_by_column(tensor.codes)}
    return TensorLine(name, layout + mark, tensor.bits, tensor.shape), parts | {"scale": _to_bytes(tensor.scale)}


def join_tensor(line: TensorLine, streams: Mapping[str, StreamReader]) -> Stored:
    """Take one tensor off its streams; ValueError if they do not hold it."""
    _check_shape(line.name, line.shape)
    if line.layout in _DTYPES:
        tensor: Stored = _join_plain(line.layout, line.shape, streams)
    elif line.layout.startswith(_TRITS):
        tensor = _join_ternary(line, streams)
    else:
        layout = line.layout.removesuffix(_ROTATED)
        codes = _join_codes(line._replace(layout=layout), streams)
        scale = _to_tensor(_take(streams, "scale", 2 * len(codes)), torch.float16)
        tensor = QuantizedTensor(
            codes=codes, scale=scale, bits=line.bits, shape=line.shape, rotated=layout != line.layout
        )
    check_tensor(line.name, tensor)
    return tensor


def check_tensor(name: str, tensor: Stored) -> None:
    """Refuse what no artifact may hold, on the way in and on the way out."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"tensor name {name!r} has characters beyond letters, digits and _./-")
    numbers = tensor if isinstance(tensor, Tensor) else tensor.scale
    if numbers.dtype not in _DTYPES.values():
        raise ValueError(f"{name} is {numbers.dtype}; store {', '.join(_DTYPES)}")
    _check_shape(name, tuple(tensor.shape))
    require_finite(numbers, name)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=1) < 1 or len(shape) > _MAX_DIMS:
        raise ValueError(f"{name} has the odd shape {str(shape)[:80]}: sizes begin at 1, and {_MAX_DIMS} are enough")


def _split_ternary(name: str, tensor: TernaryTensor) -> tuple[TensorLine, dict[str, bytes]]:
    (rows, groups), dtype = tensor.scale.shape, _dtype_name(tensor.scale)
    parts = {"trits": packing.pack_trits(tensor.codes), dtype: _to_bytes(tensor.scale)}
    return TensorLine(name, _TRITS + dtype, 0, (rows, groups, tensor.shape[1] // groups)), parts


def _join_ternary(line: TensorLine, streams: Mapping[str, StreamReader]) -> TernaryTensor:
    dtype = line.layout.removeprefix(_TRITS)
    if dtype not in _DTYPES or len(line.shape) != 3:
        raise ValueError(f"{line.name} has the odd ternary layout {line.layout[:80]!r}, {line.shape}")
    rows, groups, size = line.shape
    packed = _take(streams, "trits", packing.trit_bytes(rows * groups * size))
    codes = packing.unpack_trits(packed, rows, groups * size)
    return TernaryTensor(codes=codes, scale=_join_plain(dtype, (rows, groups), streams))


def _join_plain(dtype: str, shape: tuple[int, ...], streams: Mapping[str, StreamReader]) -> Tensor:
    data = _take(streams, dtype, math.prod(shape) * _DTYPES[dtype].itemsize)
    return _to_tensor(data, _DTYPES[dtype]).reshape(shape)


def _join_codes(line: TensorLine, streams: Mapping[str, StreamReader]) -> Tensor:
    (rows, cols), plane = rows_and_cols(line.shape), _plane(line.shape)
    if line.layout == "nibbles":
        pairs = _take(streams, f"nibbles.{plane}", packing.nibble_pairs(rows * cols))
        return packing.unpack_nibbles(pairs, lambda count: _take(streams, f"escapes.{plane}", count), rows, cols)
    if line.layout == "bytes":
        return packing.unpack_bytes_by_column(_take(streams, f"bytes.{plane}", rows * cols), rows, cols)
    raise ValueError(f"{line.name} has the unknown layout {line.layout[:80]!r}")


def _take(streams: Mapping[str, StreamReader], name: str, size: int) -> bytes:
    if name not in streams:
        raise ValueError(f"stream {name[:80]} is missing")
    return streams[name].take(size)


def _plane(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in rows_and_cols(shape))


def _stride(stream: str) -> int:
    """Return the bytes of one number of a stream."""
    if stream in _DTYPES:
        return _DTYPES[stream].itemsize
    return 2 if stream == "scale" else 1


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _to_tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)
