"""Byte compressors, each a pair of functions, and decompression that a hostile stream cannot inflate.

`decompress` is told the size to expect and never produces much more: 1 GiB of zeros is 841 bytes of brotli.
"""

import lzma
import zlib
from collections.abc import Callable
from types import ModuleType

import brotli  # type: ignore[import-untyped]  # ships no types

from golf.errors import EnvironmentUnfitError, UsageError

CAP = 256 * 2**20  # bytes; no stream and no artifact may unpack to more

# Literal context bits cost 1 % on quantized codes and matches are rare, so a large dictionary would only cost memory.
_LZMA_FORM = {"id": lzma.FILTER_LZMA2, "lc": 0, "pb": 0, "dict_size": 2**23}
_LZMA_FILTERS = [{**_LZMA_FORM, "preset": 9 | lzma.PRESET_EXTREME}]


def compress(codec: str, data: bytes, *, quick: bool = False) -> bytes:
    """Compress `data`; the same bytes every time. Raises UsageError for an unknown codec.

    `quick` takes the least effort for a stream of the same form, for when its size does not matter.
    """
    if codec not in CODECS:
        raise UsageError(f"no codec {codec!r}; there are {', '.join(CODECS)}")
    return CODECS[codec][0](data, quick)


def decompress(codec: str, data: bytes, *, size: int) -> bytes:
    """Return the `size` bytes that `data` holds.

    Raises ValueError for an unknown codec, a size over CAP, a damaged or truncated stream, bytes after its end, or
    one that holds fewer or more than `size` bytes; the latter is noticed before it is unpacked.
    """
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}")
    if not 0 <= size <= CAP:
        raise ValueError(f"declares {size} bytes; {CAP} are allowed")
    try:
        unpacked = CODECS[codec][1](data, size)
    except (brotli.error, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"damaged {codec} stream ({error})") from None
    if len(unpacked) != size:
        more_or_less = "more" if len(unpacked) > size else "less"
        raise ValueError(f"{codec} stream holds {more_or_less} than the {size} bytes it declares")
    return unpacked


def byte_shuffle(data: bytes, stride: int = 2) -> bytes:
    """Put all first bytes of `stride`-byte numbers first, then all second bytes: floats compress better so."""
    return b"".join(data[offset::stride] for offset in range(stride))


def byte_unshuffle(data: bytes, stride: int = 2) -> bytes:
    """Undo `byte_shuffle`; the length need not be a multiple of `stride`."""
    plain, start = bytearray(len(data)), 0
    for offset in range(stride):
        stop = start + len(range(offset, len(data), stride))
        plain[offset::stride] = data[start:stop]
        start = stop
    return bytes(plain)


def _brotli(data: bytes, quick: bool) -> bytes:
    compressed: bytes = brotli.compress(data, quality=1 if quick else 11, lgwin=24)
    return compressed


def _unbrotli(data: bytes, size: int) -> bytes:
    decoder, chunks, total = brotli.Decompressor(), [], 0
    piece = decoder.process(data, output_buffer_limit=size + 1)
    while piece and total <= size:  # a step may give fewer bytes than there are: go on until it gives none
        chunks.append(piece)
        total += len(piece)
        piece = decoder.process(b"", output_buffer_limit=size + 1)
    if total <= size and not decoder.is_finished():
        raise ValueError("brotli stream is truncated")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _lzma(data: bytes, quick: bool) -> bytes:
    filters = [{**_LZMA_FORM, "preset": 0}] if quick else _LZMA_FILTERS
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)


def _unlzma(data: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    unpacked = decoder.decompress(data, max_length=size + 1)
    if len(unpacked) <= size:
        _require_end(decoder.eof, decoder.unused_data, "lzma")
    return unpacked


def _zlib(data: bytes, quick: bool) -> bytes:
    return zlib.compress(data, level=1 if quick else 9)


def _unzlib(data: bytes, size: int) -> bytes:
    decoder = zlib.decompressobj()
    unpacked = decoder.decompress(data, size + 1)
    if len(unpacked) <= size:
        _require_end(decoder.eof, decoder.unused_data, "zlib")
    return unpacked


def _zstd(data: bytes, quick: bool) -> bytes:
    compressed: bytes = _zstandard().ZstdCompressor(level=1 if quick else 22).compress(data)
    return compressed


def _unzstd(data: bytes, size: int) -> bytes:
    """Unpack one frame that declares its size, into that size: a frame that holds more is an error to the library."""
    zstandard = _zstandard()
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.window_size > CAP:
            raise ValueError(f"zstd stream asks for a window of {frame.window_size} bytes; {CAP} are allowed")
        if frame.content_size == 0 and data != _zstd(b"", False):  # of an empty frame only the header is read
            raise ValueError("zstd stream is not the empty frame that it declares")
        if frame.content_size > size:  # so is "unknown", the largest number
            raise ValueError(f"zstd stream holds more than the {size} bytes it declares, or does not say how much")
        unpacked: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged zstd stream ({error})") from None
    return unpacked


def _zstandard() -> ModuleType:
    """Import the package when it is used: without it only this codec is missing, and nothing takes its place."""
    try:
        import zstandard
    except ImportError:
        raise EnvironmentUnfitError("codec zstd needs the package zstandard; pip install zstandard") from None
    return zstandard


def _require_end(at_end: bool, rest: bytes, codec: str) -> None:
    if not at_end or rest:
        raise ValueError(f"{codec} stream {'has bytes after its end' if rest else 'is truncated'}")


CODECS: dict[str, tuple[Callable[[bytes, bool], bytes], Callable[[bytes, int], bytes]]] = {
    "brotli": (_brotli, _unbrotli),
    "lzma": (_lzma, _unlzma),
    "zlib": (_zlib, _unzlib),
    "zstd": (_zstd, _unzstd),
    "raw": (lambda data, quick: data, lambda data, size: data),
}
