"""Named tensors in one safetensors file, written straight from their memory and read from strangers.

Written here rather than by the safetensors library, whose writers hold the interpreter while they copy (another thread
stood still for 1.2 s at 315 MB, here for 0.02 s; 2 cores) and neither sync the file nor respect the umask. The bytes
are the same.

Read by the library, which refuses overlaps, holes and unknown dtypes but lets duplicate keys, names like ../../x and a
header of 99 MB pass; those are refused here. It keeps no checksum: whoever names the file keeps its digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from golf.errors import BadFileError
from golf.files import atomic_path

HEADER_CAP = 8 * 2**20  # bytes; that of a 36M-parameter run with two averages and its optimizer has about 40 kB

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*")
_RESTORE = "restore it from a copy or make it again"
_DTYPES = {  # in the order of the file: by descending alignment, so that every tensor is aligned
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = list(_DTYPES)


def tensor_parts(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """Lay out named CPU tensors as the parts of a file: its header, then each tensor's own memory, not copied.

    Tied tensors and views are stored in full. The same tensors give the same bytes.
    """
    entries: dict[str, dict[str, Any]] = {}
    parts: list[memoryview] = []
    offset = 0
    for name in sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype), name)):
        if not _NAME.fullmatch(name):
            raise ValueError(f"tensor name {name!r} may hold letters, digits, _ . / - only, and no '..'")
        tensor = tensors[name].detach().contiguous()
        part = tensor.reshape(-1).view(torch.uint8).numpy().data
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + part.nbytes],
        }
        parts.append(part)
        offset += part.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [memoryview(len(header).to_bytes(8, "little") + header), *parts]


def parts_digest(parts: Sequence[memoryview]) -> str:
    """Hex SHA-256 of the file that these parts make."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_parts(path: Path, parts: Sequence[memoryview]) -> None:
    """Write the parts as one file, atomically; other threads run on meanwhile."""
    with atomic_path(path) as temp, temp.open("wb") as file:
        file.writelines(parts)


def tensor_names(path: Path) -> list[str]:
    """Name the tensors of a file after checking its header and layout; BadFileError if anything is wrong."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, HEADER_CAP + 1))
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", _RESTORE) from None
    if not header.startswith(b"{"):
        raise BadFileError(path, "is not a safetensors file", _RESTORE)
    names = [name for name in parse_header(header, path) if name != "__metadata__"]
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise BadFileError(path, f"holds a tensor with the forbidden name {wrong[0]!r}", _RESTORE)
    with _open(path):
        return names  # opening checks the layout: no holes, no overlaps, known dtypes


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose name begins with `prefix`, on the CPU and named without it."""
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - the handle is no dict
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def parse_header(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object of at most HEADER_CAP bytes, without duplicate keys, NaN or bottomless nesting."""
    if len(data) > HEADER_CAP:
        raise BadFileError(path, f"its header is over {HEADER_CAP:,} bytes", _RESTORE)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once_each, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"its header is not sound JSON ({error})", _RESTORE) from None
    if not isinstance(value, dict):
        raise BadFileError(path, "its header is not a JSON object", _RESTORE)
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _open(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # RuntimeError: torch cannot map the file
        raise BadFileError(path, f"is not a sound safetensors file ({error})", _RESTORE) from None
