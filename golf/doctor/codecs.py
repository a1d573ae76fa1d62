"""The compressors of the artifact, tried before a training depends on them."""

import random
import time

from golf.artifact.codecs import compress, decompress
from golf.doctor.check import Check

_BYTES = 1_000_000


def check_codec(codec: str) -> Check:
    """Compress a megabyte that looks like quantized weights and unpack it again."""
    name, data = f"codec {codec}", _codes()
    started = time.perf_counter()
    packed = compress(codec, data)
    came_back = decompress(codec, packed, size=len(data)) == data
    seconds = time.perf_counter() - started
    value = f"{len(data):,} bytes to {len(packed):,} and back in {seconds:.1f} s"
    if not came_back:
        return Check(name, "fail", f"{value}, but not the same ones", "install golf anew in a fresh folder")
    return Check(name, "ok", value)


def _codes() -> bytes:
    """Draw codes of about 2.5 bits each: the number of ones in a random byte is spread like a rounded Gaussian."""
    return random.Random(0).randbytes(_BYTES).translate(bytes(value.bit_count() for value in range(256)))
