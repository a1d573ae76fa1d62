"""The tools behind a training on several processes: what they print is what one process prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.session_tools import Place, golf


def on_two(place: Place, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "golf", *map(str, words), "--gpus", "2"]
    return subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("more", [(), ("--artifact",)])
def test_a_score_is_the_same(finished: Place, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    words: tuple[str | Path, ...] = ("evaluate", "done", "--root", finished.root, "--json", *more)
    found = on_two(finished, *words)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == golf(capsys, *words).json
    assert found.stderr.count("plain PyTorch") == 1  # rank 0 alone speaks


def test_a_table_is_the_same_and_is_written_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("requant", "done", "--root", place.root, "--try", "matrix_bits=5", "--json", "--out")
    found, expected = on_two(place, *words, place.folder / "two.csv"), golf(capsys, *words, place.folder / "one.csv")
    assert found.returncode == 0, found.stderr
    for row, other in zip(json.loads(found.stdout), expected.json, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    assert len((place.folder / "two.csv").read_text().splitlines()) == 1 + 2
    refused = on_two(place, *words, place.folder / "two.csv")
    assert refused.returncode == 2
    assert "two.csv exists; name another file or give --force" in refused.stderr
    assert on_two(place, *words, place.folder / "two.csv", "--force").returncode == 0
