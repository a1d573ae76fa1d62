"""What can go wrong in a session: the exit code, a sentence that names the culprit, and nothing finished is lost."""

import math
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from golf.averaging import Averages
from golf.checkpoint import boundaries, find_checkpoint, load_checkpoint, save_checkpoint
from golf.data.shards import write_shard
from golf.errors import NumericalFaultError, UsageError
from golf.log import read_events
from tests.children import SERVER
from tests.session_tools import Place, digests, golf, golf_child


@pytest.fixture
def break_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str, float], None]:
    """Put a value into one weight at the end of a step."""

    def arrange(step: int, name: str, value: float) -> None:
        update = Averages.update

        def broken(averages: Averages, **values: Any) -> None:
            if values["step"] == step:
                averages.live[name].view(-1)[0] = value
            update(averages, **values)

        monkeypatch.setattr(Averages, "update", broken)

    return arrange


def train(capsys: pytest.CaptureFixture[str], place: Place, *more: str | Path) -> Any:
    return golf(capsys, "train", place.toml, "--data", place.data, "--root", place.root, "--name", "new", *more)


def test_a_nan_in_a_weight_exits_6_at_the_next_boundary_and_names_tensor_and_step(
    place: Place, capsys: pytest.CaptureFixture[str], break_after: Callable[[int, str, float], None]
) -> None:
    break_after(11, "blocks.1.mlp.fc.weight", math.nan)
    said = train(capsys, place)
    assert said.code == 6
    assert "Error: model/blocks.1.mlp.fc.weight holds NaN or infinity at step 11; nothing was saved" in said.err
    assert not (place.run("new") / "final.json").exists()
    assert not (place.run("new") / "artifact.golf").exists()
    expected = digests(place.run("done"))
    for manifest in boundaries(place.run("new")):
        load_checkpoint(place.run("new") / f"{manifest.boundary}.json")
        assert (manifest.step, manifest.data_sha256) <= (10, expected[manifest.boundary])
    read_events(place.run("new") / "events.jsonl")


def test_a_nan_between_boundaries_exits_6_at_the_next_report_and_names_tensor_and_step(
    place: Place, capsys: pytest.CaptureFixture[str], break_after: Callable[[int, str, float], None]
) -> None:
    break_after(13, "blocks.2.attn.c_v.weight", math.inf)
    said = train(capsys, place, "--set", "run.log_every=1")
    assert said.code == 6
    assert "train_loss is nan at step 14, and " in said.err
    assert "hold NaN or infinity; start again with lower rates" in said.err


def test_a_nan_in_the_last_step_is_found_before_anything_is_published(
    place: Place, break_after: Callable[[int, str, float], None]
) -> None:
    break_after(20, "tok_emb.weight", math.nan)
    with pytest.raises(NumericalFaultError, match=r"tok_emb\.weight holds NaN or infinity at step 20"):
        place.start("new")
    assert {m.boundary for m in boundaries(place.run("new"))} & {"final_raw", "final_ema"} == set()


def test_a_nan_that_only_an_average_holds_is_not_saved(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Averages.update

    def broken(averages: Averages, **values: Any) -> None:
        update(averages, **values)
        if values["step"] == 20:
            averages.ema["tok_emb.weight"][0] = math.nan

    monkeypatch.setattr(Averages, "update", broken)
    with pytest.raises(NumericalFaultError, match=r"ema/tok_emb\.weight holds NaN or infinity at step 20"):
        place.start("new")


def test_weights_that_are_not_finite_are_not_scored(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(place.run("done") / "final_ema.json")
    tensors = checkpoint.all_tensors()
    tensors["model/blocks.0.mlp.fc.weight"][0, 0] = math.nan
    save_checkpoint(place.run("done"), replace(checkpoint.manifest, boundary="broken"), tensors=tensors)
    said = golf(capsys, "evaluate", "done@broken", "--root", place.root)
    assert said.code == 6
    assert "not finite" in said.err


def golf_child_on_a_small_disk(said: Path, limit: int, words: list[str | Path]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    golf_child(said, words)


def test_a_disk_that_fills_up_exits_5_and_leaves_the_earlier_checkpoints(place: Place, finished: Place) -> None:
    """The first boundary has no AdamW state yet, so there is a size at which it alone fits."""
    sizes = [(finished.run("done") / f"{name}.safetensors").stat().st_size for name in ("init", "momentum_full")]
    words = ["train", place.toml, "--data", place.data, "--root", place.root, "--name", "full"]
    said = place.folder / "said"
    child = SERVER.Process(target=golf_child_on_a_small_disk, args=(said, sum(sizes) // 2, words))
    child.start()
    child.join(60)
    assert child.exitcode == 5
    assert "momentum_full.safetensors: no space left to write it" in said.read_text()
    assert [manifest.boundary for manifest in boundaries(place.run("full"))] == ["init"]
    assert (
        load_checkpoint(place.run("full") / "init.json").manifest.data_sha256 == digests(finished.run("done"))["init"]
    )
    assert {path.name for path in place.run("full").glob("*.safetensors")} == {"init.safetensors"}
    assert not list(place.run("full").glob(".golf-tmp-*"))
    read_events(place.run("full") / "events.jsonl")
    place.resume("full")
    assert digests(place.run("full")) == digests(finished.run("done"))


def forbidden_folder(folder: Path) -> Path:
    """A folder in which this user may make nothing: root may everywhere but in the kernel's own."""
    if os.getuid() == 0:
        return Path("/sys")
    folder.mkdir()
    folder.chmod(0o555)
    return folder


def test_a_folder_that_may_not_be_written_exits_4(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = forbidden_folder(tmp_path / "closed")
    said = golf(capsys, "train", place.toml, "--data", place.data, "--root", root, "--name", "x")
    assert said.code == 4
    assert f"Error: {root / 'x'}: cannot be written (" in said.err
    assert not (root / "x").exists()


def test_a_root_that_is_a_file_exits_4(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "train", place.toml, "--data", place.data, "--root", place.toml, "--name", "x")
    assert said.code == 4
    assert f"{place.toml / 'x'}: cannot be written" in said.err


@pytest.mark.parametrize(
    "words", [("--resume", "done@pre_loop", "--force"), ("pico.toml", "--name", "done", "--force")]
)
def test_a_run_that_another_process_writes_exits_4(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(place.folder)
    before = digests(place.run("done"))
    with FileLock(place.run("done") / ".lock"):
        said = golf(capsys, "train", *words)
    assert said.code == 4
    assert "Error: run 'done' is being written by another process; wait for it" in said.err
    assert digests(place.run("done")) == before


def test_a_token_beyond_the_vocabulary_exits_3_and_names_shard_and_remedy(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = np.full(800, 60)
    tokens[0], tokens[700] = 1, 61
    write_shard(place.data / "pico_train_000001.bin", tokens)
    said = train(capsys, place)
    assert said.code == 3
    assert "pico_train_000001.bin: it holds token id 61, but the vocabulary has 61 ids; use the recipe and" in said.err
    assert not place.run("new").exists()


def test_another_document_start_than_the_recipes_exits_3_and_names_the_remedy(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    said = train(capsys, place, "--set", "model.bos_id=2")
    assert said.code == 3
    assert "its documents start with id 1, the recipe's with 2; add --set model.bos_id=1" in said.err


@pytest.mark.parametrize(
    ("dataset", "remedy"),
    [
        ("demo", "golf data demo --out "),
        ("mine", "golf data prepare --out "),
        ("fineweb10B_sp8192", "golf data fetch sp8192 --out "),
    ],
)
def test_missing_data_exits_2_and_names_the_remedy(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dataset: str, remedy: str
) -> None:
    monkeypatch.chdir(place.folder)
    said = golf(capsys, "train", "pico.toml", "--set", f"data.dataset={dataset}")
    assert said.code == 2
    assert f"no data in data/{dataset}; " in said.err
    assert f"with: {remedy}data/{dataset}" in said.err
    assert [path.name for path in place.root.iterdir()] == ["done"]


def test_data_that_is_a_file_is_called_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "train", "demo", "--root", place.root, "--data", place.toml)
    assert said.code == 2
    assert said.err == f"Error: {place.toml} is a file; name the folder of its shards with --data\n"


def test_an_empty_name_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "train", place.toml, "--root", place.root, "--data", place.data, "--name", "")
    assert said.code == 2
    assert "run name '' may hold" in said.err
    assert [path.name for path in place.root.iterdir()] == ["done"]


def test_a_size_that_no_pruning_reaches_keeps_the_training_and_names_the_way_on(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"prune_to_bytes is 1, .*; the training is kept") as told:
        place.start("tight", "quant.prune_to_bytes=1")
    assert find_checkpoint("tight", root=place.root).stem == "final_ema"
    command = str(told.value).rpartition("find what fits with: golf ")[2].replace("…", "30000").split()
    said = golf(capsys, *command, "--json")
    assert [row["name"] for row in said.json if "val_bpb" in row] == ["prune_to_bytes=30000"]


def test_a_run_whose_data_is_gone_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.data.rename(place.folder / "moved")
    said = golf(capsys, "evaluate", "done", "--root", place.root)
    assert said.code == 2
    assert f"no data in {place.data}" in said.err
    assert golf(capsys, "evaluate", "done", "--root", place.root, "--data", place.folder / "moved").code == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--force", "--resume", "done@pre_loop"),
        ("evaluate", "done@pre_loop"),
        ("requant", "done@pre_loop"),
        ("inspect", "done@pre_loop"),
        ("inspect", "done"),
    ],
)
def test_a_damaged_checkpoint_exits_3_and_names_the_file(
    place: Place, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(place.run("done") / "pre_loop.safetensors")
    said = golf(capsys, *words, "--root", place.root)
    assert said.code == 3
    assert "pre_loop.safetensors: " in said.err
    assert "restore it from a copy or use another boundary" in said.err


def test_a_damaged_artifact_exits_3_and_names_the_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    flip(place.run("done") / "artifact.golf")
    for words in (
        ("evaluate", "done", "--artifact", "--root", place.root),
        ("inspect", place.run("done") / "artifact.golf"),
    ):
        said = golf(capsys, *words)
        assert said.code == 3
        assert "artifact.golf: " in said.err


def test_a_checkpoint_with_a_recipe_of_another_golf_exits_3(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(place.run("done") / "pre_qat.json")
    recipe = checkpoint.manifest.recipe | {"telepathy": {"range": 3}}
    other = replace(checkpoint.manifest, recipe=recipe, boundary="other")
    save_checkpoint(place.run("done"), other, tensors=checkpoint.all_tensors())
    said = golf(capsys, "evaluate", "done@other", "--root", place.root)
    assert said.code == 3
    assert "other.json: its recipe is not one of this golf (unknown key telepathy" in said.err


@pytest.mark.parametrize("words", [("train", "--force", "--resume"), ("evaluate",), ("requant",)])
def test_a_checkpoint_of_another_model_exits_3(
    place: Place, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    checkpoint = load_checkpoint(place.run("done") / "pre_qat.json")
    other = replace(checkpoint.manifest, recipe=place.recipe("model.mlp_mult=2").to_dict(), boundary="other")
    save_checkpoint(place.run("done"), other, tensors=checkpoint.all_tensors())
    said = golf(capsys, *words, "done@other", "--root", place.root)
    assert said.code == 3
    assert "other.json: its tensors do not fit its recipe" in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "model.nun_layers=3"], "unknown key model.nun_layers; did you mean num_layers?"),
        (["--set", "modle.num_layers=3"], "unknown key modle; did you mean model?"),
        (["--set", "model.num_layers=three"], "model.num_layers must be of type int"),
        (["--gpus", "3"], "3 processes: use 1, 2, 4 or 8"),
    ],
)
def test_a_wrong_setting_exits_2_before_any_process_starts(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    def started(*args: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("golf.launch.run_together", started)
    said = golf(capsys, "train", place.toml, "--root", place.root, "--gpus", "2", *words)
    assert said.code == 2
    assert sentence in said.err
    assert [path.name for path in place.root.iterdir()] == ["done"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a RECIPE to start or --resume RUN to continue"),
        (["demo", "--resume", "done"], "give a RECIPE to start or --resume RUN to continue"),
        (["--resume", "done", "--set", "run.seed=2"], "--resume continues the stored recipe"),
        (["--resume", "done", "--name", "x"], "--resume continues the stored recipe"),
        (["--resume", "done", "--name", ""], "--resume continues the stored recipe"),
        (["--resume", "done", "--data", "elsewhere"], "run 'done' is already finished and looks at no data"),
        (["--resume", "done@final_ema"], "run 'done' is finished, and going on from final_ema would replace"),
        (["--resume", "done@"], "done@: no boundary is named after the @; name one or leave the @ out"),
        (["--resume", "begun"], "nothing was saved yet; start it again or name another run"),
        ([""], "no recipe ''"),
        (["--resume", "nothing"], "no run 'nothing' in"),
        (["--resume", "done@nothing"], "no boundary 'nothing' in"),
        (["dmeo"], "no recipe 'dmeo'; did you mean demo?"),
    ],
)
def test_a_command_that_cannot_be_meant_exits_2(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    (place.root / "begun").mkdir()  # and stopped before its first checkpoint
    said = golf(capsys, "train", *words, "--root", place.root)
    assert said.code == 2
    assert sentence in said.err


def test_memory_that_runs_out_in_training_exits_5(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*args: object, **values: object) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(Averages, "update", hungry)
    said = train(capsys, place)
    assert said.code == 5
    assert "out of memory" in said.err
    assert load_checkpoint(place.run("new") / "init.json").manifest.step == 0
