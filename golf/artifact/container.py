"""The artifact file: quantized and plain tensors, and the recipe that rebuilds the model around them.

    "GOLF" | version u16 | codec, 8 bytes | header: stored bytes u32, plain bytes u32 | header | streams | SHA-256

Little endian; the digest is over everything before it. Header and streams are each compressed by the codec. The same
tensors and recipe give the same bytes, and reading gives exactly what was written.
"""

import hashlib
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golf.artifact.codecs import CAP, compress, decompress
from golf.artifact.header import Header, StreamLine, TensorLine, decode_header, encode_header
from golf.artifact.streams import StreamReader, join_tensor, split_tensor, stream_bytes
from golf.errors import BadFileError, NumericalFaultError, UsageError
from golf.files import sha256_bytes, write_bytes
from golf.quant.scheme import Stored

FORMAT_VERSION = 1
HEADER_CAP = 8 * 2**20  # plain bytes; the table of a 36M-parameter model takes 6 kB

_MAGIC = b"GOLF"
_PREFIX = struct.Struct("<4sH8sII")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Artifact:
    """What an artifact file holds."""

    config: dict[str, Any]
    tensors: dict[str, Stored]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactInfo:
    """Where the bytes of an artifact go.

    `group_bytes` is exact: each stream, and "header" for all that is not payload. Tensors of one stream are compressed
    together, so `tensor_bytes` divides its bytes among them by their order-0 entropies. With the header, each adds up
    to `bytes`.
    """

    bytes: int
    sha256: str  # of the whole file
    group_bytes: dict[str, int]
    tensor_bytes: dict[str, int]


def save_artifact(path: Path, tensors: Mapping[str, Stored], *, config: Mapping[str, Any], codec: str) -> ArtifactInfo:
    """Write the artifact to `path` atomically and say where its bytes go; see `pack_bytes`."""
    data = pack_bytes(tensors, config=config, codec=codec)
    write_bytes(path, data)
    return describe_bytes(data, source=path)


def load_artifact(path: Path) -> Artifact:
    """Read an artifact; raises BadFileError for anything that `save_artifact` did not write."""
    try:
        if path.stat().st_size > CAP:
            raise BadFileError(path, f"larger than the {CAP} bytes an artifact may have", "check the path")
        data = path.read_bytes()
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", "check the path") from None
    return unpack_bytes(data, source=path)


def pack_bytes(tensors: Mapping[str, Stored], *, config: Mapping[str, Any], codec: str, quick: bool = False) -> bytes:
    """Return the bytes of the artifact file; `config` must be JSON. Streams are compressed side by side in threads.

    A `quick` packing takes the compressor's least effort: a larger file that unpacks to the same.

    Raises NumericalFaultError, naming the tensor, if a number is not finite, and UsageError for an unknown codec or
    a name, dtype or empty shape that cannot be stored.
    """
    lines, pieces = _split_all(tensors)
    plain = {name: stream_bytes(name, pieces[name]) for name in sorted(pieces)}
    with ThreadPoolExecutor() as pool:  # the compressors release the interpreter's lock
        stored = list(pool.map(lambda data: compress(codec, data, quick=quick), plain.values()))
    streams = [
        StreamLine(name, len(out), len(data), zlib.crc32(data))
        for (name, data), out in zip(plain.items(), stored, strict=True)
    ]
    header = encode_header(Header(dict(config), streams, lines))
    packed_header = compress(codec, header)
    prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION, codec.encode(), len(packed_header), len(header))
    body = b"".join([prefix, packed_header, *stored])
    return body + hashlib.sha256(body).digest()


def unpack_bytes(data: bytes, *, source: Path | str = "artifact") -> Artifact:
    """Return what `pack_bytes` packed; raises BadFileError, naming `source`, for anything else."""
    try:
        header, codec, start = _read_header(data)
        readers = _read_streams(data[start:-_DIGEST_BYTES], header.streams, codec)
        tensors = {line.name: join_tensor(line, readers) for line in header.tensors}
        if any(not reader.at_end for reader in readers.values()):
            raise ValueError("a stream holds more than its tensors need")
    except (ValueError, NumericalFaultError, RecursionError) as error:
        raise BadFileError(source, str(error), "restore it from a copy or pack it again") from None
    return Artifact(header.config, tensors)


def describe_bytes(data: bytes, *, source: Path | str = "artifact") -> ArtifactInfo:
    """Return where the bytes of an artifact go; raises BadFileError as `unpack_bytes` does."""
    _, pieces = _split_all(unpack_bytes(data, source=source).tensors)
    stored = {line.name: line.stored for line in _read_header(data)[0].streams}
    overhead = {"header": len(data) - sum(stored.values())}
    tensor_bytes = dict(overhead)
    for stream, size in stored.items():
        entropies = np.array([1 + _entropy_bytes(piece) for piece in pieces[stream].values()])
        edges = np.rint(size * entropies.cumsum() / entropies.sum()).astype(int)
        for name, share in zip(pieces[stream], np.diff(edges, prepend=0).tolist(), strict=True):
            tensor_bytes[name] = tensor_bytes.get(name, 0) + share
    return ArtifactInfo(
        bytes=len(data), sha256=sha256_bytes(data), group_bytes=overhead | stored, tensor_bytes=tensor_bytes
    )


def _split_all(tensors: Mapping[str, Stored]) -> tuple[list[TensorLine], dict[str, dict[str, bytes]]]:
    """Return the header's lines and each stream's pieces by tensor, all ordered by name."""
    lines: list[TensorLine] = []
    pieces: dict[str, dict[str, bytes]] = {}
    for name in sorted(tensors):
        try:
            line, parts = split_tensor(name, tensors[name])
        except ValueError as error:
            raise UsageError(f"cannot store this: {error}") from None
        lines.append(line)
        for stream, piece in parts.items():
            pieces.setdefault(stream, {})[name] = piece
    return lines, pieces


def _read_header(data: bytes) -> tuple[Header, str, int]:
    """Return the header, the codec and where the streams begin; ValueError for whatever is wrong."""
    if data[:4] != _MAGIC:
        raise ValueError("not a golf artifact")
    if len(data) < _PREFIX.size + _DIGEST_BYTES:
        raise ValueError("truncated")
    _, version, codec_field, stored, size = _PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ValueError(f"has format version {version}, and this golf reads version {FORMAT_VERSION}")
    if hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise ValueError("truncated or damaged: its content does not match its digest")
    if size > HEADER_CAP:
        raise ValueError(f"declares a header of {size} bytes; {HEADER_CAP} are allowed")
    codec, stop = codec_field.rstrip(b"\0").decode("ascii"), _PREFIX.size + stored
    return decode_header(decompress(codec, data[_PREFIX.size : stop], size=size)), codec, stop


def _read_streams(data: bytes, lines: list[StreamLine], codec: str) -> dict[str, StreamReader]:
    if sum(line.stored for line in lines) != len(data):
        raise ValueError("the sizes of its streams do not add up to its length")
    if sum(line.size for line in lines) > CAP:
        raise ValueError(f"declares more than {CAP} bytes of content")
    readers, start = {}, 0
    for line in lines:
        content = decompress(codec, data[start : start + line.stored], size=line.size)
        if zlib.crc32(content) != line.crc32:
            raise ValueError(f"stream {line.name[:80]} does not match its checksum")
        readers[line.name] = StreamReader(line.name, content)
        start += line.stored
    return readers


def _entropy_bytes(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, np.uint8))
    counts = counts[counts > 0]
    return float((counts * np.log2(len(data) / counts)).sum() / 8)
