"""Every codec gives back what it got, and nothing else gets through."""

import random
import tracemalloc
import zlib
from collections.abc import Callable
from lzma import FORMAT_RAW, LZMACompressor

import brotli  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.artifact.codecs import _LZMA_FILTERS, CAP, CODECS, byte_shuffle, byte_unshuffle, compress, decompress
from golf.errors import UsageError

PACKED = [codec for codec in CODECS if codec != "raw"]
SAMPLE = bytes(range(256)) * 3 + b"\0" * 500 + b"golf" * 40
NOISE = random.Random(0).randbytes(1000)  # stored as it is: all of it is there before the end mark


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", b"x", SAMPLE, b"\xff" * 100_000])
def test_data_comes_back(codec: str, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), size=len(data)) == data


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(CODECS)), st.binary(max_size=300))
def test_any_data_comes_back(codec: str, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), size=len(data)) == data


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_data_gives_the_same_bytes(codec: str) -> None:
    assert compress(codec, SAMPLE) == compress(codec, bytes(SAMPLE))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [SAMPLE, NOISE])
def test_every_truncation_is_refused(codec: str, data: bytes) -> None:
    packed = compress(codec, data)
    for length in range(len(packed)):
        with pytest.raises(ValueError, match=codec):
            decompress(codec, packed[:length], size=len(data))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rest", [b"\0", b"x", SAMPLE])
def test_bytes_after_the_end_are_refused(codec: str, rest: bytes) -> None:
    with pytest.raises(ValueError, match=codec):
        decompress(codec, compress(codec, SAMPLE) + rest, size=len(SAMPLE))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("wrong", "told"), [(-1, "more"), (1, "less")])
def test_a_size_that_is_off_by_one_is_refused(codec: str, wrong: int, told: str) -> None:
    with pytest.raises(ValueError, match=f"{told} than the"):
        decompress(codec, compress(codec, SAMPLE), size=len(SAMPLE) + wrong)


@pytest.mark.parametrize("size", [-1, CAP + 1, 2**63])
def test_sizes_beyond_the_cap_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        decompress("brotli", b"", size=size)


@pytest.mark.parametrize("codec", PACKED)
def test_noise_is_refused(codec: str) -> None:
    with pytest.raises(ValueError, match=codec):
        decompress(codec, b"\xff" * 64, size=100)


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("size", [0, 1000])
def test_a_bomb_is_refused_before_it_goes_off(codec: str, size: int) -> None:
    bomb = _zeros(codec, megabytes=64)
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than the"):
        decompress(codec, bomb, size=size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24  # lzma's dictionary takes 8 MiB


def test_an_unknown_codec_is_a_usage_error_when_packing() -> None:
    with pytest.raises(UsageError, match=r"'zip'.*brotli"):
        compress("zip", b"")


def test_an_unknown_codec_is_refused_when_unpacking() -> None:
    with pytest.raises(ValueError, match="unknown codec 'zip'"):
        decompress("zip", b"", size=0)


def test_shuffled_bytes_are_grouped_by_their_place_in_the_number() -> None:
    assert byte_shuffle(b"aAbBcCd") == b"abcdABC"
    assert byte_shuffle(b"123412341", 4) == b"111" + b"22" + b"33" + b"44"


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [*range(10), 1001])
def test_unshuffling_undoes_shuffling(length: int, stride: int) -> None:
    data = (bytes(range(256)) * 4)[:length]
    assert byte_unshuffle(byte_shuffle(data, stride), stride) == data


def _zeros(codec: str, megabytes: int) -> bytes:
    steps: dict[str, tuple[Callable[[bytes], bytes], Callable[[], bytes]]] = {}
    fast, small, usual = (
        brotli.Compressor(quality=3),
        LZMACompressor(FORMAT_RAW, filters=_LZMA_FILTERS),
        zlib.compressobj(),
    )
    steps["brotli"] = fast.process, fast.finish
    steps["lzma"] = small.compress, small.flush
    steps["zlib"] = usual.compress, usual.flush
    feed, end = steps[codec]
    return b"".join([feed(bytes(2**20)) for _ in range(megabytes)] + [end()])
