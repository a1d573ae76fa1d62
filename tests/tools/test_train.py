"""golf train as a command: what it prints."""

import pytest

from golf.checkpoint import boundaries, load_checkpoint
from golf.files import read_json
from golf.run_folder import RunFolder
from tests.session_tools import Place, golf

_CHANGES = ("schedule.iterations=2", "schedule.late_qat_below=0")
SHORT = tuple(f"--set={change}" for change in _CHANGES)


def test_it_prints_the_summary_as_one_document(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", place.toml, "--data", place.data, "--root", place.root, "--name", "new", "--json")
    said = golf(capsys, *words, "--set", "schedule.iterations=4", "--set", "schedule.late_qat_below=0")
    assert said.code == 0
    assert said.json == read_json(place.run("new") / "final.json")
    assert said.json["steps"] == 4
    assert RunFolder(place.run("new")).load_recipe().schedule.iterations == 4


def test_a_finished_run_is_shown_in_words(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "train", "--resume", "done", "--root", finished.root)
    final = read_json(finished.run("done") / "final.json")
    assert said.out.splitlines() == [
        "run             done",
        f"unquantized     {final['unquantized']['val_bpb']:.5f} bpb",
        f"quantized       {final['quantized']['val_bpb']:.5f} bpb  (gap {final['quantization_gap_bpb']:+.5f})",
        f"artifact        {final['artifact']['model_bytes']:,} model + {final['artifact']['code_bytes']:,} code bytes",
        f"headroom        {final['artifact']['headroom_bytes']:,} bytes to 16,000,000",
    ]


def test_an_error_is_one_document_too(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", finished.toml, "--data", finished.data, "--root", finished.root, "--name", "done", "--json")
    said = golf(capsys, *words)
    assert said.code == said.json["exit_code"] == 2
    assert "run 'done' exists" in said.json["error"]


def test_a_forced_run_replaces_the_earlier_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", place.toml, "--data", place.data, "--root", place.root, "--name", "done", "--force", "--json")
    said = golf(capsys, *words, *SHORT)
    assert said.json["steps"] == 2
    found = {manifest.boundary: manifest.step for manifest in boundaries(place.run("done"))}
    assert found["final_ema"] == 2
    assert max(found.values()) == 2


def test_it_says_on_stderr_that_it_rehearses_and_what_no_tool_acts_on_yet(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", place.toml, "--data", place.data, "--root", place.root, "--name", "new", "--json")
    said = golf(capsys, *words, *SHORT, "--set", "eval.sliding_stride=4")
    lines = said.err.splitlines()
    assert lines[0].endswith("the scores are without: eval.sliding_stride")
    assert lines[1] == "rehearsing every phase before the training"
    assert said.json["unbuilt"] == ["eval.sliding_stride"]


def test_a_recipe_of_which_everything_is_built_says_nothing_of_it(finished: Place) -> None:
    assert "unbuilt" not in read_json(finished.run("done") / "final.json")


def test_a_finished_run_says_on_stderr_that_it_is(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert golf(capsys, "train", "--resume", "done", "--root", finished.root).err == "done: already finished\n"


def test_with_force_a_finished_run_goes_on_from_the_named_boundary(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.run("done") / "artifact.golf").unlink()
    said = golf(capsys, "train", "--force", "--resume", "done@lr_floor", "--root", place.root, "--json")
    assert said.code == 0
    assert said.json == read_json(place.run("done") / "final.json")
    assert (place.run("done") / "artifact.golf").exists()


@pytest.mark.parametrize(("below", "count"), [(0.3, 1), (0.45, 2)])
def test_too_few_snapshots_for_a_stochastic_average_are_told(
    place: Place, capsys: pytest.CaptureFixture[str], below: float, count: int
) -> None:
    place.start("swa", 'average.use="swa"', f"average.swa_below={below}")
    manifest = load_checkpoint(place.run("swa") / "final_raw.json").manifest
    assert manifest.averages["swa"]["count"] == count
    sentence = f"average.use is swa, but snapshots taken: {count}; the result is its source (ema) instead"
    assert (sentence in capsys.readouterr().err) == (count == 1)
