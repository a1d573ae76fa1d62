"""What compiled kernels need: folders in which compiled code is kept, and a C compiler for Triton's launchers."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir

from golf.doctor.check import Check, guarded, in_gib
from golf.doctor.mounts import Mount, existing, mount_of, obstacle

_ROOM_BYTES = 2**30  # compiled code of a few recipes
_COMPILERS = ("gcc", "clang")  # those that Triton looks for, unless the variable CC names one


def examine_compiler(mounts: Sequence[Mount], *, gpus: int) -> list[Check]:
    """Check the caches of compiled code and, where there are GPUs to compile for, the C compiler."""
    checks = guarded("inductor cache", lambda: _examine_cache("inductor cache", Path(cache_dir()), mounts))
    if importlib.util.find_spec("triton") is None:
        return checks  # PyTorch has none for this machine, or the checks of packages say so
    checks += guarded("triton cache", lambda: _examine_cache("triton cache", _triton_folder(), mounts))
    if gpus:
        found = next(filter(None, map(shutil.which, _COMPILERS)), None)
        checks += guarded("c compiler", partial(check_compiler, found, _header()))
    return checks


def check_cache(name: str, folder: Path, mount: Mount | None, *, free: int, is_writable: bool) -> Check:
    """Check that compiled code can be kept in `folder`, which is on `mount` with so many `free` bytes."""
    value = f"{folder} on {mount.form if mount else 'a disk of unknown kind'}, {in_gib(free)} free"
    if not is_writable:
        return Check(name, "fail", f"{value}, cannot be written", f"{_variable(name)} to a folder that can be")
    if mount is not None and mount.kind == "network":  # ranks then read what another has half replaced
        return Check(name, "warn", f"{value}, a network file system", f"{_variable(name)} to a folder on a local disk")
    if free < _ROOM_BYTES:
        return Check(name, "warn", value, f"free some space, or {_variable(name)} to a folder on another disk")
    return Check(name, "ok", value)


def check_compiler(compiler: str | None, header: Path) -> Check:
    """Check that Triton finds a C compiler and Python's `header`."""
    if not header.is_file():
        return Check("c compiler", "fail", f"{header} is missing", "install Python's headers (python3-dev)")
    if compiler is None:
        remedy = "install gcc, unless the variable CC names a compiler"
        return Check("c compiler", "warn", f"neither {' nor '.join(_COMPILERS)} is found", remedy)
    return Check("c compiler", "ok", compiler)


def _examine_cache(name: str, folder: Path, mounts: Sequence[Mount]) -> Check:
    there = existing(folder)
    is_writable = obstacle(folder) is None and os.access(there, os.W_OK | os.X_OK)
    return check_cache(
        name, folder, mount_of(there, mounts), free=shutil.disk_usage(there).free, is_writable=is_writable
    )


def _triton_folder() -> Path:
    from triton import knobs  # not on every machine

    return Path(knobs.cache.dir)


def _header() -> Path:
    """Name the header as Triton includes it; Debian's own scheme has the folder of packages from pip instead."""
    scheme = sysconfig.get_default_scheme()
    folder = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    return Path(folder) / "Python.h"


def _variable(name: str) -> str:
    return f"set {'TRITON_CACHE_DIR' if name == 'triton cache' else 'TORCHINDUCTOR_CACHE_DIR'}"
