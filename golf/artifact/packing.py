"""Codes as bytes, laid out so that a byte compressor does best.

Codes are stored column by column: neighbours then share a column, whose variance differs from the next one's. Most
codes are small, so two of them go into a byte, four bits each in [-7, 7]; the nibble -8 says that the code is found
in a second run of bytes, the escapes. Pairing halves what a Huffman code loses to whole bits a symbol. When escapes
would be the majority (8-bit absmax tables), one byte a code is better.

Measured with brotli 11 on planes with the statistics of a 36M-parameter record (35.9M codes, 12 to 15 sigmas over 31
or 63 levels), relative to the order-0 entropy of 15.6 MB: Gaussian columns alike | their deviations spread by 0.3.

    int8, row by row, one stream         +1.20 % | +1.06 %   58 s on one core
    int8, column by column               +1.20 % | -1.31 %
    6 or 7 bits packed densely           +21 to +37 %        (two planes)
    nibbles, by column, one stream       +0.52 % | -1.97 %
    nibbles, by column, one a shape      +0.52 % | -1.96 %   23 s, and shapes compress side by side: chosen
    nibbles, by column, one a tensor     +0.55 % | -1.68 %
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ESCAPE = -8
_NEAR = 7  # largest code that a nibble holds


def prefers_nibbles(codes: Tensor) -> bool:
    """Whether most of `codes` fit a nibble."""
    return int((codes.abs() > _NEAR).sum()) * 2 <= codes.numel()


def pack_bytes_by_column(codes: Tensor) -> bytes:
    """Return int8 `codes` (rows, cols), one byte each, column by column."""
    return _by_column(codes).tobytes()


def unpack_bytes_by_column(packed: bytes, rows: int, cols: int) -> Tensor:
    """Undo `pack_bytes_by_column`."""
    return _from_columns(np.frombuffer(packed, np.int8), rows, cols)


def pack_nibbles(codes: Tensor) -> tuple[bytes, bytes]:
    """Return int8 `codes` (rows, cols) in [-127, 127] as pairs of nibbles, and the escaped codes, by column."""
    plain = _by_column(codes)
    far = np.abs(plain) > _NEAR
    nibbles = np.zeros(plain.size + plain.size % 2, np.int8)
    nibbles[: plain.size] = np.where(far, _ESCAPE, plain)
    return ((nibbles[0::2] & 15) | (nibbles[1::2] << 4)).tobytes(), plain[far].tobytes()


def nibble_pairs(count: int) -> int:
    """Return the bytes that `count` nibbles take."""
    return (count + 1) // 2


def unpack_nibbles(pairs: bytes, take_escapes: Callable[[int], bytes], rows: int, cols: int) -> Tensor:
    """Undo `pack_nibbles`; `take_escapes(n)` gives the next n escaped codes."""
    both = np.frombuffer(pairs, np.int8)
    nibbles = np.empty(2 * both.size, np.int8)
    nibbles[0::2] = both << 4 >> 4  # the arithmetic shift extends the sign
    nibbles[1::2] = both >> 4
    codes = nibbles[: rows * cols]
    far = codes == _ESCAPE
    codes[far] = np.frombuffer(take_escapes(int(far.sum())), np.int8)
    return _from_columns(codes, rows, cols)


def _by_column(codes: Tensor) -> NDArray[np.int8]:
    flat: NDArray[np.int8] = codes.detach().cpu().T.contiguous().flatten().numpy()
    return flat


def _from_columns(flat: NDArray[Any], rows: int, cols: int) -> Tensor:
    return torch.from_numpy(np.array(flat.reshape(cols, rows).T, order="C"))
