"""golf evaluate: one score, its numerator and its denominator; the graph is the one the weights belong to."""

import math
from typing import Any

import pytest
import tomli_w

from golf.checkpoint_manifest import manifest_paths
from golf.data.shards import Dataset
from golf.evaluate import Score
from golf.files import read_json, write_json
from golf.workbench import Workbench
from tests.pico import pico_dataset
from tests.session_tools import Place, golf


def test_the_score_is_bits_over_bytes_of_the_whole_validation_stream(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    score = golf(capsys, "evaluate", "done", "--root", finished.root, "--json").json
    dataset = Dataset.open(finished.data)
    sidecar = dataset.val_bytes()
    assert sidecar is not None
    assert score["tokens"] == len(dataset.val_tokens()) - 1
    assert score["bytes"] == int(sidecar[1:].sum())
    assert score["val_bpb"] == score["bits"] / score["bytes"]
    assert score["val_loss"] == pytest.approx(score["bits"] * math.log(2) / score["tokens"], rel=1e-12)


def test_the_terminal_says_what_was_scored_and_the_same_numbers(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    score = golf(capsys, "evaluate", "done@pre_qat", "--root", finished.root, "--json").json
    said = golf(capsys, "evaluate", "done@pre_qat", "--root", finished.root)
    assert f"scored    {finished.run('done') / 'pre_qat.json'}" in said.out
    assert f"val_loss  {score['val_loss']:.6f} nats per token over {score['tokens']:,} tokens" in said.out
    assert f"val_bpb   {score['val_bpb']:.6f} = {score['bits']:,.1f} bits / {score['bytes']:,} bytes" in said.out


def test_weights_can_be_scored_by_other_kernels_than_they_were_trained_by(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "done", "--root", finished.root, "--json")
    score = golf(capsys, *words).json
    again = golf(capsys, *words, "--set", "run.dtype=bfloat16", "--set", "run.kernels=plain").json
    assert score["kernels"] == again["kernels"] == "plain PyTorch"
    assert again["val_loss"] != score["val_loss"]  # the dtype was another
    assert again["val_loss"] == pytest.approx(score["val_loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ("run.attention=fa3", 4, 'attention "fa3" cannot be used'),
        ("model.logit_softcap=20", 2, "only run.… can be --set for weights that are there"),
        ("run.colour=red", 2, "colour"),
        ("run.kernels", 2, "write table.key=value"),
    ],
)
def test_what_cannot_be_computed_otherwise_is_refused(
    finished: Place, capsys: pytest.CaptureFixture[str], change: str, code: int, sentence: str
) -> None:
    said = golf(capsys, "evaluate", "done", "--root", finished.root, "--set", change)
    assert said.code == code
    assert sentence in said.err


@pytest.mark.parametrize(
    ("words", "looping"),
    [(["done@init"], False), (["done@pre_loop"], False), (["done@frac_50"], True), (["done"], True)],
)
def test_weights_are_scored_in_the_graph_they_were_trained_in(
    finished: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    looping: bool,
) -> None:
    plans: list[list[int]] = []
    score = Workbench.score

    def watched(bench: Workbench, *rest: Any) -> Score:
        plans.append(bench.plan.encoder)
        return score(bench, *rest)

    monkeypatch.setattr(Workbench, "score", watched)
    assert golf(capsys, "evaluate", *words, "--root", finished.root).code == 0
    assert plans == [[0, 1, 2] if looping else [0, 1]]


def test_the_artifact_is_scored_as_it_was_made_though_the_latest_boundary_is_another(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".json", ".safetensors"):
        (place.run("done") / f"final_raw{suffix}").unlink()
    said = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root, "--json")
    summary = read_json(place.run("done") / "final.json")
    assert said.json == summary["quantized"] | {name: summary[name] for name in ("kernels", "attention")}


def test_the_artifact_is_scored_without_any_checkpoint(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    expected = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root, "--json").json
    for path in (*manifest_paths(place.run("done")), *place.run("done").glob("*.safetensors")):
        path.unlink()
    (place.run("done") / "events.jsonl").unlink()
    for spec in ("done", str(place.run("done"))):
        assert golf(capsys, "evaluate", spec, "--artifact", "--root", place.root, "--json").json == expected


@pytest.mark.parametrize("looping", [True, False])
def test_the_artifact_is_scored_in_the_graph_of_the_finished_weights(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, looping: bool
) -> None:
    plans: list[list[int]] = []

    def watched(bench: Workbench, *rest: Any) -> Score:
        plans.append(bench.plan.encoder)
        return Score(1.0, 1, 1)

    monkeypatch.setattr(Workbench, "score", watched)
    write_final(place, looping=looping)
    golf(capsys, "evaluate", "done", "--artifact", "--root", place.root, "--json")
    assert plans == [[0, 1, 2] if looping else [0, 1]]


def test_the_artifact_of_a_run_of_an_earlier_golf_is_scored_by_its_manifest(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    write_final(place, looping=None)
    for path in place.run("done").glob("*.safetensors"):
        path.unlink()
    said = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root, "--json")
    assert said.json["val_bpb"] == read_json(place.run("done") / "final.json")["quantized"]["val_bpb"]
    (place.run("done") / "final_ema.json").unlink()
    said = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root)
    assert said.code == 3
    assert "final_ema.json: cannot be read" in said.err


def write_final(place: Place, *, looping: bool | None) -> None:
    """Let final.json say something else of the last graph, or nothing."""
    path = place.run("done") / "final.json"
    values = read_json(path)
    del values["looping"]
    write_json(path, values if looping is None else values | {"looping": looping})


def test_an_artifact_beside_another_recipe_exits_3(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.run("done") / "recipe.toml").write_text(tomli_w.dumps(place.recipe("eval.batch_tokens=512").to_dict()))
    said = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root)
    assert said.code == 3
    assert "recipe.toml: it is not the recipe that final.json tells of; restore it from a copy" in said.err


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ("done@init", "an artifact is made of a run's finished weights; leave the boundary out"),
        ("begun", "run 'begun' is not finished, so it has no artifact; golf train --resume begun"),
        ("nothing", "no run 'nothing' in"),
    ],
)
def test_an_artifact_that_there_is_not_exits_2(
    place: Place, capsys: pytest.CaptureFixture[str], run: str, sentence: str
) -> None:
    (place.root / "begun").mkdir()
    for suffix in (".json", ".safetensors"):
        (place.run("begun") / f"init{suffix}").write_bytes((place.run("done") / f"init{suffix}").read_bytes())
    said = golf(capsys, "evaluate", run, "--artifact", "--root", place.root)
    assert said.code == 2
    assert sentence in said.err


def test_an_artifact_of_another_model_exits_3(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.start("other", "model.mlp_mult=2")
    (place.run("other") / "artifact.golf").replace(place.run("done") / "artifact.golf")
    said = golf(capsys, "evaluate", "done", "--artifact", "--root", place.root)
    assert said.code == 3
    assert "artifact.golf: it does not fit the run's model" in said.err


def test_another_data_folder_is_scored_when_it_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    pico_dataset(place.folder / "other", val=100)
    said = golf(capsys, "evaluate", "done", "--root", place.root, "--data", place.folder / "other", "--json")
    assert said.json["tokens"] == 99


@pytest.mark.parametrize("command", ["evaluate", "requant"])
def test_shadows_alone_are_not_scored(finished: Place, capsys: pytest.CaptureFixture[str], command: str) -> None:
    said = golf(capsys, command, finished.run("done") / "shadows" / "shadow_1.json")
    assert said.code == 2
    assert "shadow_1.json: shadows alone cannot be scored or resumed; name a boundary of the run" in said.err
