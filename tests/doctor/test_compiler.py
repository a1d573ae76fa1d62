"""What compiled kernels need: caches that can be kept, a C compiler, Python's header."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from golf.doctor import compiler as under_test
from golf.doctor.compiler import check_cache, check_compiler, examine_compiler
from golf.doctor.mounts import Mount


def cache(form: str | None = "ext4", **changes: Any) -> tuple[str, str]:
    mount = None if form is None else Mount(Path("/"), form, "x")
    values: dict[str, Any] = {"free": 2**31, "is_writable": True, **changes}
    check = check_cache("inductor cache", Path("/a"), mount, **values)
    return check.verdict, check.remedy


@pytest.mark.parametrize(
    ("form", "changes", "verdict"),
    [
        ("ext4", {}, "ok"),
        (None, {}, "ok"),
        ("tmpfs", {}, "ok"),
        ("nfs", {}, "warn"),
        ("ext4", {"free": 2**29}, "warn"),
        ("ext4", {"is_writable": False}, "fail"),
    ],
)
def test_compiled_code_is_kept_on_a_local_disk_with_room(form: str, changes: dict[str, Any], verdict: str) -> None:
    assert cache(form, **changes)[0] == verdict


def test_the_remedy_names_the_variable_of_the_cache() -> None:
    assert "TORCHINDUCTOR_CACHE_DIR" in cache("nfs")[1]
    check = check_cache("triton cache", Path("/a"), None, free=0, is_writable=False)
    assert "TRITON_CACHE_DIR" in check.remedy


def test_the_caches_are_where_torch_and_triton_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "one"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    checks = {check.name: check.value for check in examine_compiler([], gpus=0)}
    assert checks["inductor cache"].startswith(f"{tmp_path / 'one'} on a disk of unknown kind, ")
    assert checks["triton cache"].startswith(f"{tmp_path / 'other'} on a disk of unknown kind, ")


def test_a_cache_that_does_not_exist_yet_is_judged_by_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def access(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(os, "access", access)
    mounts = [Mount(Path("/"), "overlay", "x"), Mount(tmp_path.resolve(), "nfs", "y")]
    check = {check.name: check for check in examine_compiler(mounts, gpus=0)}["triton cache"]
    assert asked[-1] == (tmp_path.resolve(), os.W_OK | os.X_OK)
    assert (check.verdict, " on nfs, " in check.value) == ("fail", True)


def test_a_cache_below_a_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "a"))
    check = {check.name: check for check in examine_compiler([], gpus=0)}["triton cache"]
    assert (check.verdict, check.value.endswith(", cannot be written")) == ("fail", True)


def test_a_cache_that_cannot_be_asked_for_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "cache_dir", lambda: 1 / 0)
    verdicts = {check.name: check.verdict for check in examine_compiler([], gpus=0)}
    assert verdicts == {"inductor cache": "fail", "triton cache": "ok"}


def test_triton_needs_a_compiler_and_python_s_header(tmp_path: Path) -> None:
    header = tmp_path / "Python.h"
    assert check_compiler("/usr/bin/gcc", header).verdict == "fail"
    header.write_text("")
    assert check_compiler(None, header).verdict == "warn"
    assert (check_compiler("/usr/bin/gcc", header).verdict, check_compiler("/usr/bin/gcc", header).value) == (
        "ok",
        "/usr/bin/gcc",
    )


@pytest.mark.parametrize(("there", "found"), [({"gcc", "clang"}, "gcc"), ({"clang"}, "clang"), (set(), None)])
def test_gcc_comes_before_clang_where_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: set[str], found: str | None
) -> None:
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(under_test, "_header", lambda: tmp_path / "Python.h")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    check = examine_compiler([], gpus=1)[-1]
    assert (check.name, check.verdict) == ("c compiler", "ok" if found else "warn")
    assert found is None or check.value == f"/bin/{found}"


def test_without_a_gpu_no_compiler_is_asked_for() -> None:
    assert [check.name for check in examine_compiler([], gpus=0)] == ["inductor cache", "triton cache"]
