"""The size limit of the challenge: model file plus code, in decimal bytes."""

import base64
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golf
from golf.artifact.codecs import compress
from golf.errors import BadFileError, UsageError

LIMIT = 16_000_000
CODE_METHOD = "brotli-11, base85, self-extracting, not minified"

_UNSHIPPED = ("bench", "doctor")  # look at machines; no other module imports them

_HEAD = b"import base64,brotli,pathlib\nt=brotli.decompress(base64.b85decode('"
_TAIL = b"""')).decode().split('\\0')
for n,s in zip(t[::2],t[1::2]):p=pathlib.Path(n);p.parent.mkdir(parents=True,exist_ok=True);p.write_bytes(s.encode())
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteLedger:
    """What counts against LIMIT; the tokenizer and installed libraries do not."""

    model_bytes: int
    code_bytes: int
    code_method: str = CODE_METHOD

    @property
    def total_bytes(self) -> int:
        """Model and code together: the number the limit is about."""
        return self.model_bytes + self.code_bytes

    @property
    def headroom(self) -> int:
        """Bytes left under LIMIT; negative when over it."""
        return LIMIT - self.total_bytes

    @property
    def fits(self) -> bool:
        """Whether the total is within LIMIT, which itself is allowed."""
        return self.headroom >= 0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures under the names that tables use."""
        return {
            "model_bytes": self.model_bytes,
            "code_bytes": self.code_bytes,
            "total_bytes": self.total_bytes,
            "headroom_bytes": self.headroom,
            "fits": self.fits,
        }


def byte_ledger(artifact: bytes) -> ByteLedger:
    """Account for an artifact and for the code that runs it."""
    return ByteLedger(model_bytes=len(artifact), code_bytes=_own_code_bytes())


def code_bytes(files: Sequence[Path]) -> int:
    """Return the size of the self-extracting script that holds `files`."""
    return len(code_bundle(files))


def code_bundle(files: Sequence[Path]) -> bytes:
    """Return a Python script that writes `files` below the working folder, named from their common parent.

    The same files give the same bytes, wherever they lie and in whatever order they are given. Base85 adds 25 % to
    what brotli leaves. Raises UsageError for an empty list and BadFileError for a file that is not readable text.
    """
    paths = sorted({path.resolve() for path in files})
    if not paths:
        raise UsageError("no code files were given, and code is never 0 bytes; name the files the submission needs")
    root = os.path.commonpath([path.parent for path in paths])
    texts = {path.relative_to(root).as_posix(): _source(path) for path in paths}
    bundle = "\0".join(part for pair in texts.items() for part in pair)
    return _HEAD + base64.b85encode(compress("brotli", bundle.encode())) + _TAIL


def _source(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(path, f"not readable as source code ({error})", "correct the list of code files") from None
    if "\0" in text:
        raise BadFileError(path, "holds a NUL byte, so it is no source code", "correct the list of code files")
    return text


def shipped_files() -> list[Path]:
    """Return golf's own modules that a submission today would ship: all that training and scoring could use."""
    folder = Path(golf.__file__).parent
    return [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in _UNSHIPPED]


@functools.cache
def _own_code_bytes() -> int:
    """Pack them, once a process."""
    return code_bytes(shipped_files())
