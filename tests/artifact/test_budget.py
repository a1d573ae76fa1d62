"""Bytes against the limit."""

import subprocess
import sys
from pathlib import Path

import pytest

from golf.artifact.budget import LIMIT, ByteLedger, code_bundle, code_bytes
from golf.errors import BadFileError, UsageError

SOURCES = {"train.py": 'print("µ")\n', "golf/model/gpt.py": "class GPT:\n    '''x\\n'''\n", "golf/__init__.py": ""}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for name, text in SOURCES.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("model", "fits", "headroom"), [(15_999_000, True, 1), (15_999_001, True, 0), (15_999_002, False, -1)]
)
def test_the_limit_is_16_million_bytes_of_model_and_code(model: int, fits: bool, headroom: int) -> None:
    ledger = ByteLedger(model_bytes=model, code_bytes=999)
    assert LIMIT == 16_000_000
    assert (ledger.total_bytes, ledger.fits, ledger.headroom) == (model + 999, fits, headroom)


def test_the_bundle_is_a_script_that_writes_the_sources(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = tmp_path / "bundle.py"
    script.write_bytes(code_bundle(files))
    subprocess.run([sys.executable, str(script)], cwd=tmp_path / "out", check=True)
    written = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.py")}
    assert {name: path.read_bytes().decode() for name, path in written.items()} == SOURCES


def test_code_bytes_is_the_length_of_that_script(files: list[Path]) -> None:
    assert code_bytes(files) == len(code_bundle(files)) > 200


def test_order_and_repetition_of_the_files_do_not_count(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.py" for i in range(40)]
    for path in files:
        path.write_text(path.name)
    assert code_bundle([*reversed(files), files[0]]) == code_bundle(files)


def test_the_place_of_the_checkout_does_not_count(files: list[Path], tmp_path: Path) -> None:
    bundle = code_bundle(files)
    (tmp_path / "checkout").rename(tmp_path / "another place")
    assert code_bundle([tmp_path / "another place" / name for name in SOURCES]) == bundle


def test_a_longer_source_costs_more(files: list[Path]) -> None:
    before = code_bytes(files)
    files[0].write_text(f"x = {[i * i % 9973 for i in range(200)]}\n")
    assert code_bytes(files) > before + 100


def test_no_files_are_refused() -> None:
    with pytest.raises(UsageError, match="no code files"):
        code_bytes([])


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_a_file_that_cannot_be_read_is_refused(files: list[Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFileError, match="not readable"):
        code_bytes([*files, tmp_path / name])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = 1\0"])
def test_a_file_that_is_no_text_is_refused(files: list[Path], content: bytes) -> None:
    files[0].write_bytes(content)
    with pytest.raises(BadFileError, match="source code"):
        code_bytes(files)
