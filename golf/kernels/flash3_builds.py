"""Where FlashAttention-3's operators come from: several packages build the same library, and one of them is enough.

All register `torch.ops.flash_attn_3`. The hopper folder of FlashAttention's repository installs `flash_attn_interface`;
xformers carries the library up to 0.0.34, then against PyTorch's stable interface, so that newer PyTorch loads it too.
"""

import ctypes
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

_XFORMERS_LIBRARY = "flash_attn_3/_C.so"
_CUDA_RUNTIME = "libcudart.so.12"  # which xformers' library is linked with, whatever PyTorch uses itself


class Flash3Build(NamedTuple):
    """An installed build."""

    package: str  # its distribution
    load: Callable[[], object]  # registers the operators; raises what an import or a linker raises


def find_flash3() -> Flash3Build | None:
    """Return the first build that is installed, without importing it."""
    if find_spec("flash_attn_interface") is not None:
        return Flash3Build("flash-attn-3", lambda: import_module("flash_attn_interface"))
    library = _xformers_library()
    return None if library is None else Flash3Build("xformers", lambda: _load_library(library))


def _xformers_library() -> Path | None:
    """Return the library's place in xformers, which is not imported: nothing else of it is needed."""
    spec = find_spec("xformers")
    folders = () if spec is None else spec.submodule_search_locations or ()
    return next((path for folder in folders if (path := Path(folder, _XFORMERS_LIBRARY)).is_file()), None)


def _load_library(library: Path) -> None:
    runtime = _installed_cuda_runtime()
    if runtime is not None:  # not on the linker's path, but once loaded it is found by its name
        ctypes.CDLL(str(runtime))
    torch.ops.load_library(str(library))


def _installed_cuda_runtime() -> Path | None:
    """Return the CUDA 12 runtime of the package nvidia-cuda-runtime-cu12, if that is installed."""
    try:
        files = metadata.files("nvidia-cuda-runtime-cu12") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == _CUDA_RUNTIME), None)
