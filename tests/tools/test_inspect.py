"""golf inspect: what it says of a run, a checkpoint and an artifact is so."""

from pathlib import Path

import pytest

from golf.artifact.container import load_artifact
from golf.checkpoint import load_checkpoint
from golf.files import read_json, sha256_file
from golf.quant.scheme import QuantizedTensor
from tests.session_tools import STEPS, Place, golf


def test_a_run_lists_its_boundaries_and_its_result(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    report = golf(capsys, "inspect", "done", "--root", finished.root, "--json").json
    final = read_json(finished.run("done") / "final.json")
    assert (report["run"], report["recipe"]) == ("done", "pico")
    assert report["recipe_digest"] == finished.recipe().digest[:16]
    assert report["unquantized_bpb"] == final["unquantized"]["val_bpb"]
    assert report["quantized_bpb"] == final["quantized"]["val_bpb"]
    assert report["total_bytes"] == final["artifact"]["total_bytes"]
    assert {row["name"]: row["step"] for row in report["boundaries"]} == STEPS
    for row in report["boundaries"]:
        manifest = load_checkpoint(finished.run("done") / f"{row['name']}.json").manifest
        assert row["bytes"] == (finished.run("done") / manifest.data_file).stat().st_size
        assert row["progress"] == STEPS[row["name"]] / 20
        assert row["loop"] is manifest.looping
        assert row["lr"] == pytest.approx(manifest.lr_multiplier, abs=5e-5)
        assert row["train_loss"] == manifest.metrics.get("train_loss")


def test_an_unfinished_run_has_no_result(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.run("done") / "final.json").unlink()
    report = golf(capsys, "inspect", "done", "--root", place.root, "--json").json
    assert report.keys() == {"run", "recipe", "recipe_digest", "boundaries"}


@pytest.mark.parametrize("how", ["name", "manifest", "tensors"])
def test_a_checkpoint_tells_where_it_stood_and_what_it_holds(
    finished: Place, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path = finished.run("done") / "pre_qat.json"
    tensor_file = path.with_suffix(".safetensors")
    specs: dict[str, str | Path] = {"name": "done@pre_qat", "manifest": path, "tensors": tensor_file}
    report = golf(capsys, "inspect", specs[how], "--root", finished.root, "--json").json
    assert (report["boundary"], report["step"], report["progress"], report["loop"]) == ("pre_qat", 16, 0.8, True)
    assert (report["recipe"], report["loader_step"]) == ("pico", 16)
    assert report["sha256"] == sha256_file(tensor_file)
    tensors = load_checkpoint(path).all_tensors()
    for row in report["sections"]:
        own = [tensor for name, tensor in tensors.items() if name.startswith(f"{row['name']}/")]
        assert row["tensors"] == len(own)
        assert row["values"] == sum(tensor.numel() for tensor in own)
        assert row["bytes"] == sum(tensor.nbytes for tensor in own)
        assert row["dtypes"] == "float32"
    names = [row["name"] for row in report["sections"]]
    assert names == ["ema", "model", "optim/adam", "optim/muon", "shadow/0.05", "shadow/0.1", "swa"]
    assert sum(row["tensors"] for row in report["sections"]) == len(tensors)


def test_a_shadow_snapshot_can_be_looked_at(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished.run("done") / "shadows" / "shadow_2.json"
    report = golf(capsys, "inspect", path, "--json").json
    assert report["step"] == 10
    assert [row["name"] for row in report["sections"]] == ["shadow/0.05", "shadow/0.1"]


def test_an_artifact_lists_its_tensors_as_they_are_stored(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished.run("done") / "artifact.golf"
    report = golf(capsys, "inspect", path, "--json").json
    assert report["bytes"] == path.stat().st_size
    assert report["sha256"] == read_json(finished.run("done") / "final.json")["artifact"]["sha256"]
    tensors = load_artifact(path).tensors
    assert [row["name"] for row in report["tensors"]] == list(tensors)
    for row in report["tensors"]:
        tensor = tensors[row["name"]]
        assert row["shape"] == "x".join(map(str, tensor.shape))
        assert row["stored"] == (f"int{tensor.bits}" if isinstance(tensor, QuantizedTensor) else "float16")
    stored = {row["name"]: row["stored"] for row in report["tensors"]}
    assert (stored["tok_emb.weight"], stored["blocks.0.mlp.fc.weight"]) == ("int8", "int6")


@pytest.mark.parametrize("what", ["done", "done@init", "artifact"])
def test_the_terminal_gets_a_table(finished: Place, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = finished.run("done") / "artifact.golf"
    said = golf(capsys, "inspect", path if what == "artifact" else what, "--root", finished.root)
    assert said.code == 0
    assert "name" in said.out.split("\n\n")[1].splitlines()[0]


@pytest.mark.parametrize(("what", "code"), [("nothing", 2), ("done@nothing", 2), ("nothing.golf", 3), ("pico.toml", 3)])
def test_what_there_is_not_or_is_something_else_is_refused(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    monkeypatch.chdir(finished.folder)
    assert golf(capsys, "inspect", what).code == code
