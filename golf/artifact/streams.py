"""Tensors as pieces of byte streams, and back.

A stream holds the pieces of its tensors in the order of their names. Codes of one shape share a stream (two, with the
escapes of `golf.artifact.packing`), all scales share one, and so do all plain tensors of a dtype. Streams of numbers
wider than a byte are byte-shuffled as a whole.
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

_MAX_DIMS = 8
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
    if not isinstance(tensor, QuantizedTensor):
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorLine(name, dtype, 0, tuple(tensor.shape)), {dtype: _to_bytes(tensor)}
    plane, scale = _plane(tensor.shape), {"scale": _to_bytes(tensor.scale)}
    if packing.prefers_nibbles(tensor.codes):
        pairs, escapes = packing.pack_nibbles(tensor.codes)
        parts = {f"nibbles.{plane}": pairs, f"escapes.{plane}": escapes}
        return TensorLine(name, "nibbles", tensor.bits, tensor.shape), parts | scale
    parts = {f"bytes.{plane}": packing.pack_bytes_by_column(tensor.codes)}
    return TensorLine(name, "bytes", tensor.bits, tensor.shape), parts | scale


def join_tensor(line: TensorLine, streams: Mapping[str, StreamReader]) -> Stored:
    """Take one tensor off its streams; ValueError if they do not hold it."""
    _check_shape(line.name, line.shape)
    if line.layout in _DTYPES:
        dtype = _DTYPES[line.layout]
        data = _take(streams, line.layout, math.prod(line.shape) * dtype.itemsize)
        tensor: Stored = _to_tensor(data, dtype).reshape(line.shape)
    else:
        codes = _join_codes(line, streams)
        scale = _to_tensor(_take(streams, "scale", 2 * len(codes)), torch.float16)
        tensor = QuantizedTensor(codes=codes, scale=scale, bits=line.bits, shape=line.shape)
    check_tensor(line.name, tensor)
    return tensor


def check_tensor(name: str, tensor: Stored) -> None:
    """Refuse what no artifact may hold, on the way in and on the way out."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"tensor name {name!r} has characters beyond letters, digits and _./-")
    numbers = tensor.scale if isinstance(tensor, QuantizedTensor) else tensor
    if numbers.dtype not in _DTYPES.values():
        raise ValueError(f"{name} is {numbers.dtype}; store {', '.join(_DTYPES)}")
    _check_shape(name, tuple(tensor.shape))
    require_finite(numbers, name)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if min(shape, default=1) < 1 or len(shape) > _MAX_DIMS:
        raise ValueError(f"{name} has the odd shape {str(shape)[:80]}: sizes begin at 1, and {_MAX_DIMS} are enough")


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


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _to_tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)
