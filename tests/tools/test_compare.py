"""golf compare: two runs' losses at the same steps, and their ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from golf.files import read_json
from tests.session_tools import Place, golf


def write_run(folder: Path, losses: dict[int, float], final: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    lines = [{"event": "start", "step": 0}]
    lines += [{"event": "train", "step": s, "train_loss": x, "elapsed_seconds": 0.5 * s} for s, x in losses.items()]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if final is not None:
        (folder / "final.json").write_text(json.dumps(final))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", {1: 4.0, 2: 3.0, 3: 2.5, 5: 2.0})
    write_run(tmp_path / "b", {2: 3.25, 3: 2.375, 4: 9.0, 5: 2.0})
    return tmp_path


def test_the_steps_that_both_logged_are_compared(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "compare", "a", "b", "--root", two, "--json")
    assert said.code == 0
    assert [(row["step"], row["difference"]) for row in said.json["steps"]] == [(2, 0.25), (3, -0.125), (5, 0.0)]
    assert said.json["steps"][0] | {"a": 3.0, "b": 3.25, "a seconds": 1.0, "b seconds": 1.0} == said.json["steps"][0]
    assert said.json["summary"] == {
        "steps_compared": 3,
        "mean_difference": 0.125,
        "largest_difference": 0.25,
        "at_step": 2,
    }


def test_a_step_logged_again_counts_as_the_later_one(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (two / "b" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "train", "step": 2, "train_loss": 3.0, "elapsed_seconds": 9.0}) + "\n")
    said = golf(capsys, "compare", "a", "b", "--root", two, "--json")
    assert said.json["summary"]["largest_difference"] == 0.125


def test_a_folder_will_do_for_a_name_and_a_run_for_both(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "compare", two / "a", two / "a", "--json")
    assert said.json["summary"]["largest_difference"] == 0.0
    assert set(said.json["steps"][0]) == {"step", "a (1)", "a (2)", "difference", "a (1) seconds", "a (2) seconds"}


def test_a_finished_run_is_the_same_as_itself(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    summary = golf(capsys, "compare", "done", "done", "--root", finished.root, "--json").json["summary"]
    final = read_json(finished.run("done") / "final.json")
    assert summary["same_checkpoint"] is summary["same_artifact"] is True
    assert summary["quantized_bpb"] == 2 * [final["quantized"]["val_bpb"]]


def test_other_ends_are_told(tmp_path: Path, finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    final = read_json(finished.run("done") / "final.json")
    other = json.loads(json.dumps(final))
    other["artifact"]["sha256"] = "0"
    write_run(tmp_path / "a", {1: 2.0}, final)
    write_run(tmp_path / "b", {1: 2.0}, other)
    said = golf(capsys, "compare", "a", "b", "--root", tmp_path)
    assert "same_checkpoint     yes" in said.out
    assert "same_artifact       no" in said.out


@pytest.mark.parametrize(("limit", "code"), [("0.25", 0), ("0.2", 1)])
def test_a_difference_above_the_limit_is_a_failure(
    two: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    said = golf(capsys, "compare", "a", "b", "--root", two, "--fail-above", limit)
    assert said.code == code
    assert ("failed: the losses are 0.250000 apart at step 2" in said.err) == bool(code)


def test_table_and_picture_are_written_once(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = ("compare", "a", "b", "--root", two, "--out", two / "t.csv", "--plot", two / "p.png")
    assert golf(capsys, *words).code == 0
    assert (two / "t.csv").read_text().splitlines()[0] == "step,a,b,difference,a seconds,b seconds"
    assert (two / "p.png").stat().st_size > 1000
    said = golf(capsys, *words)
    assert said.code == 2
    assert "t.csv exists; name another file or give --force" in said.err
    assert golf(capsys, *words, "--force").code == 0


def test_what_cannot_be_compared_is_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "compare", "a", "c", "--root", two)
    assert said.code == 2
    assert "no run 'c'" in said.err
    write_run(two / "c", {7: 1.0})
    said = golf(capsys, "compare", "a", "c", "--root", two)
    assert said.code == 2
    assert "a and c logged no step in common" in said.err
    assert golf(capsys, "compare", "a", "b", "--root", two, "--out", two / "t.txt").code == 2
    assert golf(capsys, "compare", "a", "b", "--root", two, "--fail-above", "inf").code == 2
    assert golf(capsys, "compare", "a", "b", "--root", two, "--out", two / "t.md", "--plot", two / "p.gif").code == 2
    assert not (two / "t.md").exists()
