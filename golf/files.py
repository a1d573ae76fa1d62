"""Whole files or none: atomic writes, digests, and the clean-up of what a killed process left behind.

Every file a user could lose is written by `atomic_path`: temporary name in the same folder, fsync, rename, fsync of
the folder. A reader sees the old content or the new, never half.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golf.errors import BadFileError, EnvironmentUnfitError, GolfError, ResourceError, UsageError

_TEMP_MARK = ".golf-tmp-"  # .golf-tmp-<pid>-<random>-<final name>
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, otherwise it disappears.

    Raises what `write_errors_told` does.
    """
    temp = path.parent / f"{_TEMP_MARK}{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    try:
        with write_errors_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp
            _fsync(temp)
            temp.replace(path)
            _fsync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors_told(path: Path) -> Iterator[None]:
    """Raise ResourceError for an OSError of a full disk, EnvironmentUnfitError for any other, naming `path`."""
    try:
        yield
    except OSError as error:
        raise _told(error, path) from error


def check_free(path: Path, *, force: bool) -> None:
    """Raise UsageError if there is a file at `path`, unless `force`; worth asking before a long computation."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists; name another file or give --force")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temp, temp.open("wb") as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; BadFileError if it is missing, not UTF-8 or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFileError(path, "no such file", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(path, f"not readable as JSON ({error})", "restore or remove it") from None


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no blanks. Digests of settings are taken over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def remove_stale(folder: Path) -> list[Path]:
    """Delete temporary files under `folder` whose writing process no longer lives; return them."""
    if not folder.is_dir():
        return []
    stale = [path for path in folder.rglob(f"{_TEMP_MARK}*") if not _writer_lives(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _writer_lives(temp: Path) -> bool:
    pid = temp.name.removeprefix(_TEMP_MARK).split("-", 1)[0]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _told(error: OSError, path: Path) -> GolfError:
    if error.errno in _FULL:
        free = shutil.disk_usage(_existing(path)).free
        return ResourceError(f"{path}: no space left to write it ({free:,} bytes free); free some space and run again")
    if error.errno in _FORBIDDEN:
        return EnvironmentUnfitError(f"{path}: not allowed to write here; choose another folder or its permissions")
    return EnvironmentUnfitError(f"{path}: cannot be written ({error.strerror}); choose another folder")


def _existing(path: Path) -> Path:
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())
