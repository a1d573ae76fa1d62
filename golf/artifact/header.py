"""The artifact's header: canonical JSON that is read back strictly, because a file is data and not to be trusted."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from golf.files import canonical_json

_T = TypeVar("_T")


class TensorLine(NamedTuple):
    """What the header says of one tensor."""

    name: str
    layout: str  # nibbles, bytes, either "+rotated"; "trits." and the scale's dtype; or the dtype of a plain tensor
    bits: int  # 0 for ternary and plain tensors
    shape: tuple[int, ...]


class StreamLine(NamedTuple):
    """What the header says of one stream."""

    name: str
    stored: int  # bytes in the file
    size: int  # bytes once decompressed
    crc32: int  # of the decompressed bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The resolved recipe and two tables, each ordered by name."""

    config: dict[str, Any]
    streams: list[StreamLine]
    tensors: list[TensorLine]


def encode_header(header: Header) -> bytes:
    """Return the one text that stands for `header`; NaN in the config is a ValueError."""
    fields = {"config": header.config, "streams": header.streams, "tensors": header.tensors}
    return canonical_json(fields).encode()


def decode_header(data: bytes) -> Header:
    """Read a header; ValueError for anything that `encode_header` does not write."""
    fields = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(fields, dict) or set(fields) != {"config", "streams", "tensors"}:
        raise ValueError("its header does not hold config, streams and tensors")
    streams = [StreamLine(*_line(line, (str, int, int, int))) for line in _typed(fields["streams"], list)]
    tensors = []
    for line in _typed(fields["tensors"], list):
        name, layout, bits, shape = _line(line, (str, str, int, list))
        tensors.append(TensorLine(name, layout, bits, tuple(_typed(size, int) for size in shape)))
    for names in ([line.name for line in streams], [line.name for line in tensors]):
        if names != sorted(set(names)):
            raise ValueError("its header repeats a name or has names out of order")
    if any(size < 0 for line in streams for size in line[1:]) or any(
        min(line.shape, default=0) < 0 for line in tensors
    ):
        raise ValueError("its header holds a negative size")
    return Header(_typed(fields["config"], dict), streams, tensors)


def _line(line: Any, kinds: tuple[type, ...]) -> list[Any]:
    if not isinstance(line, list) or len(line) != len(kinds):
        raise ValueError(f"its header has the odd line {str(line)[:80]}")
    return [_typed(value, kind) for value, kind in zip(line, kinds, strict=True)]


def _typed(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:  # isinstance would take true for 1
        raise ValueError(f"its header has {str(value)[:80]} where {kind.__name__} belongs")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("its header repeats a key")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"its header holds {name}, which is no JSON number")
