"""FlashAttention-3 is found in whichever package carries it, and what cannot be loaded is told."""

import ctypes
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from golf.errors import EnvironmentUnfitError
from golf.kernels import flash3_builds
from golf.kernels.flash import choose_attention
from golf.kernels.flash3_builds import find_flash3
from tests.kernels.flash_stand_ins import hide_modules, place_module


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installed xformers that breaks if it is imported; return its library, which is none."""
    hide_modules(monkeypatch, "flash_attn_interface", "flash_attn")
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    library = tmp_path / "xformers" / "flash_attn_3" / "_C.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "xformers" / "__init__.py").write_text("raise AssertionError('imported')\n")
    library.write_bytes(b"no library")
    monkeypatch.syspath_prepend(tmp_path)
    return library


def test_the_packages_own_interface_comes_first(xformers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_module(monkeypatch, "flash_attn_interface")
    build = find_flash3()
    assert build is not None
    assert build.package == "flash-attn-3"
    assert build.load() is sys.modules["flash_attn_interface"]


def test_xformers_library_is_loaded_without_the_rest_of_it(xformers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(flash3_builds, "_installed_cuda_runtime", lambda: None)
    build = find_flash3()
    assert build is not None
    assert build.package == "xformers"
    build.load()
    assert loaded == [str(xformers)]


def test_a_newer_xformers_without_the_library_is_none(xformers: Path) -> None:
    xformers.unlink()
    assert find_flash3() is None


def test_the_cuda_runtime_is_loaded_before_what_needs_it(xformers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    runtime = xformers.parent / "libcudart.so.12"
    monkeypatch.setattr(flash3_builds, "_installed_cuda_runtime", lambda: runtime)
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    build = find_flash3()
    assert build is not None
    build.load()
    assert loaded == [str(runtime), str(xformers)]


def test_the_runtime_is_that_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "nvidia_cuda_runtime_cu12-12.8.90.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cuda-runtime-cu12\nVersion: 12.8.90\n")
    folder = tmp_path / "nvidia/cuda_runtime/lib"
    folder.mkdir(parents=True)
    for name in ("libcudart.so.12", "other.so"):
        (folder / name).touch()  # from Python 3.12 on, files that are not there are not listed
    (info / "RECORD").write_text("nvidia/cuda_runtime/lib/other.so,,\nnvidia/cuda_runtime/lib/libcudart.so.12,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert flash3_builds._installed_cuda_runtime() == folder / "libcudart.so.12"


def test_without_the_package_the_linker_is_left_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert flash3_builds._installed_cuda_runtime() is None


def test_a_library_that_cannot_be_loaded_is_told_with_the_remedy(
    xformers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(EnvironmentUnfitError, match=r"flash_attn_3 is installed but broken \(OSError: .*; pip install"):
        choose_attention(torch.device("cuda", 0), torch.bfloat16, wanted="fa3")
