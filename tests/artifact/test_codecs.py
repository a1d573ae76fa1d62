"""Every codec gives back what it got, and nothing else gets through."""

import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from lzma import FORMAT_RAW, LZMACompressor

import brotli  # type: ignore[import-untyped]  # ships no types
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.artifact.codecs import _LZMA_FILTERS, CAP, CODECS, byte_shuffle, byte_unshuffle, compress, decompress
from golf.errors import EnvironmentUnfitError, UsageError

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


def zstd_frame(content: bytes, *, declare: bool, window_log: int = 10) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=declare)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def test_a_zstd_frame_that_lies_about_its_size_is_refused_before_it_is_unpacked() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(2**26)))
    assert int.from_bytes(frame[6:10], "little") == 2**26  # where the frame of this size and window says it
    frame[6:10] = (1000).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged zstd"):
        decompress("zstd", bytes(frame), size=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_zstd_frame_that_does_not_say_how_much_it_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say how much"):
        decompress("zstd", zstd_frame(SAMPLE, declare=False), size=len(SAMPLE))


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused() -> None:
    body = zstd_frame(NOISE, declare=True)
    magic, descriptor = body[:4], body[4] & ~0x20  # not one segment: a byte for the window follows
    window = bytes([(29 - 10) << 3])
    with pytest.raises(ValueError, match="a window of 536870912 bytes"):
        decompress("zstd", magic + bytes([descriptor]) + window + body[5:], size=len(NOISE))


@pytest.mark.parametrize("rest", [b"x", b"\0" * 9])
def test_bytes_after_an_empty_zstd_frame_are_refused(rest: bytes) -> None:
    with pytest.raises(ValueError, match="zstd"):
        decompress("zstd", compress("zstd", b"") + rest, size=0)


def test_two_zstd_frames_are_refused() -> None:
    frame = compress("zstd", SAMPLE)
    with pytest.raises(ValueError, match="zstd"):
        decompress("zstd", frame + frame, size=2 * len(SAMPLE))


def test_without_its_package_zstd_is_refused_by_name_and_nothing_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(EnvironmentUnfitError, match="zstandard"):
        compress("zstd", SAMPLE)
    with pytest.raises(EnvironmentUnfitError, match="zstandard"):
        decompress("zstd", b"", size=0)


def test_zstd_is_at_its_strongest_level() -> None:
    text = random.Random(0).choices(["golf ", "hole ", "par ", "birdie "], k=20_000)
    packed = compress("zstd", "".join(text).encode())
    assert len(packed) == len(zstandard.ZstdCompressor(level=22).compress("".join(text).encode()))
    assert len(packed) < 0.9 * len(zstandard.ZstdCompressor(level=3).compress("".join(text).encode()))


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
    if codec == "zstd":  # one frame that says how much it holds
        return zstandard.ZstdCompressor().compress(bytes(megabytes * 2**20))
    feed, end = steps[codec]
    return b"".join([feed(bytes(2**20)) for _ in range(megabytes)] + [end()])


@pytest.mark.parametrize("codec", PACKED)
def test_a_quick_stream_is_larger_and_unpacks_to_the_same(codec: str) -> None:
    words = [random.Random(number).randbytes(1 + number % 7) for number in range(50)]
    data = b"".join(random.Random(0).choices(words, k=8000))
    quick = compress(codec, data, quick=True)
    assert decompress(codec, quick, size=len(data)) == data
    assert len(quick) > len(compress(codec, data))
