"""Checkpoints: what is saved is loaded, what is not sound is refused, what was finished survives a kill."""

import itertools
import json
import random
import resource
import threading
import time
from dataclasses import asdict, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.checkpoint import CheckpointWriter, boundaries, find_checkpoint, load_checkpoint, save_checkpoint
from golf.checkpoint_manifest import FORMAT_VERSION, Manifest, manifest_paths
from golf.errors import BadFileError, EnvironmentUnfitError, ResourceError, UsageError
from golf.files import remove_stale, sha256_file, write_bytes
from tests.children import drain, exit_code_of, running


def manifest(boundary: str = "final_raw", step: int = 7) -> Manifest:
    return Manifest(
        boundary=boundary,
        step=step,
        elapsed_seconds=12.5,
        progress=0.35,
        lr_multiplier=1.0,
        looping=True,
        recipe={"model": {"num_layers": 11}},
        recipe_digest="ab" * 32,
        loader={"step": step, "shard": 0, "cursor": 1024},
        seed=42,
        world_size=8,
        averages={"ema": {"kind": "exponential", "decay": 0.9965, "count": step}},
        optimizer={"adam_step": step},
        metrics={"train_loss": 3.25},
        parents=["cd" * 32],
        versions={"torch": "2.13.0"},
    )


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "model/blocks.0.attn.c_q.weight": torch.full((3, 423), value, dtype=torch.bfloat16),
        "ema/blocks.0.attn.c_q.weight": torch.full((3, 423), value / 2),
        "shadow/0.05/blocks.0.attn.c_q.weight": torch.full((3, 423), value / 4),
    }


def value_of(path: Path) -> float:
    """Load a checkpoint made of `tensors(value)` and return the value."""
    return float(load_checkpoint(path).tensors("model/")["blocks.0.attn.c_q.weight"][0, 0])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, manifest(), tensors=tensors())
    loaded = load_checkpoint(tmp_path / "final_raw.json")
    assert loaded.manifest == saved
    given = {field.name for field in fields(Manifest) if not field.name.startswith("data_")}
    assert {key: value for key, value in asdict(saved).items() if key in given} == {
        key: value for key, value in asdict(manifest()).items() if key in given
    }
    for prefix, expected in (("model/", 1.0), ("ema/", 0.5), ("shadow/0.05/", 0.25)):
        read = loaded.tensors(prefix)["blocks.0.attn.c_q.weight"]
        assert torch.equal(read, torch.full((3, 423), expected, dtype=read.dtype))


def test_the_manifest_describes_its_data_file(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, manifest(), tensors=tensors())
    path = tmp_path / "final_raw.safetensors"
    assert (saved.data_file, saved.data_bytes) == (path.name, path.stat().st_size)
    assert saved.data_sha256 == sha256_file(path)


def test_a_checkpoint_is_loaded_by_its_data_file_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    assert load_checkpoint(tmp_path / "final_raw.safetensors").path == tmp_path / "final_raw.json"


def test_boundaries_of_one_step_share_a_data_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("momentum_full"), tensors=tensors(3.0), also=["frac_50"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "frac_50.json",
        "momentum_full.json",
        "momentum_full.safetensors",
    ]
    first, second = boundaries(tmp_path)
    assert (first.boundary, second.boundary) == ("frac_50", "momentum_full")
    assert replace(first, boundary="momentum_full") == second
    assert value_of(tmp_path / "frac_50.json") == 3.0


def test_replacing_a_boundary_spares_the_data_that_another_shares(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("momentum_full"), tensors=tensors(3.0), also=["frac_50"])
    save_checkpoint(tmp_path, manifest("momentum_full"), tensors=tensors(4.0))
    assert value_of(tmp_path / "frac_50.json") == 3.0
    assert value_of(tmp_path / "momentum_full.json") == 4.0


def test_replacing_leaves_one_data_file(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 2.0, 3.0, 1.0):
        save_checkpoint(tmp_path, manifest("a"), tensors=tensors(value), also=["b"])
        assert value_of(tmp_path / "b.json") == value
        assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_replaced_while_it_is_held_never_gives_the_new_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors(1.0))
    held = load_checkpoint(tmp_path / "a.json")
    for value in (2.0, 3.0, 4.0):
        save_checkpoint(tmp_path, manifest("a"), tensors=tensors(value))
        with pytest.raises(BadFileError, match=r"a\.safetensors"):
            held.tensors("model/")


def test_tensors_left_over_by_a_kill_are_removed_and_foreign_files_are_not(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a-0123abcd.safetensors", "hessians.safetensors", "a-notes.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors())
    names = ["a-notes.safetensors", "a.json", "a.safetensors", "hessians.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_manifest_that_cannot_be_read_keeps_all_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors())
    (tmp_path / "b.json").write_text("{")
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors(2.0))
    assert len(list(tmp_path.glob("a*.safetensors"))) == 2


def test_tensors_of_a_data_file_without_a_manifest_are_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    (tmp_path / "final_raw.json").unlink()
    with pytest.raises(BadFileError, match="never finished"):
        load_checkpoint(tmp_path / "final_raw.safetensors")


@pytest.mark.parametrize("name", ["../a", "a.b", "a-b", "", "a/b", "a@b"])
def test_a_boundary_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="boundary"):
        save_checkpoint(tmp_path, manifest(name), tensors=tensors())


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs tensors"):
        save_checkpoint(tmp_path, manifest(), tensors={})


def test_averages_alone_make_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("shadow_1"), tensors={"shadow/0.05/w": torch.full((3,), 2.0)})
    assert load_checkpoint(tmp_path / "shadow_1.json").all_tensors()["shadow/0.05/w"].tolist() == [2.0] * 3


def test_the_summary_of_a_run_is_no_manifest_and_no_boundary(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors())
    (tmp_path / "final.json").write_text('{"val_bpb": 1.06}')
    assert manifest_paths(tmp_path) == [tmp_path / "a.json"]
    assert [found.boundary for found in boundaries(tmp_path)] == ["a"]
    with pytest.raises(ValueError, match="not be 'final'"):
        save_checkpoint(tmp_path, manifest("final"), tensors=tensors())
    with pytest.raises(UsageError, match="no boundary 'final'"):
        find_checkpoint(f"{tmp_path}@final", root=tmp_path / "elsewhere")


def test_a_metric_that_is_no_number_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(tmp_path, replace(manifest(), metrics={"loss": float("nan")}), tensors=tensors())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_prefix_is_named_on_demand(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    with pytest.raises(BadFileError, match="no tensors under optim/"):
        load_checkpoint(tmp_path / "final_raw.json", require=["model/", "optim/"])
    with pytest.raises(BadFileError, match="no tensors under optim/"):
        load_checkpoint(tmp_path / "final_raw.json").tensors("optim/")


def test_a_prefix_needs_its_slash(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    with pytest.raises(ValueError, match="slash"):
        load_checkpoint(tmp_path / "final_raw.json").tensors("ema")


@pytest.mark.parametrize("where", [0, 8, 9, 500, -1])
def test_a_flipped_bit_anywhere_in_the_data_is_refused(tmp_path: Path, where: int) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    path = tmp_path / "final_raw.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="digest"):
        load_checkpoint(tmp_path / "final_raw.json")


def test_data_cut_short_is_refused_with_both_sizes(tmp_path: Path) -> None:
    size = save_checkpoint(tmp_path, manifest(), tensors=tensors()).data_bytes
    path = tmp_path / "final_raw.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFileError, match=f"{size - 1:,} bytes instead of {size:,}"):
        load_checkpoint(tmp_path / "final_raw.json")


def test_hostile_data_with_the_right_digest_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"model/../../x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    write_bytes(tmp_path / "a.safetensors", len(header).to_bytes(8, "little") + header + b"x")
    digest = sha256_file(tmp_path / "a.safetensors")
    hostile = replace(manifest("a"), data_file="a.safetensors", data_bytes=len(header) + 9, data_sha256=digest)
    (tmp_path / "a.json").write_text(json.dumps(asdict(hostile)))
    with pytest.raises(BadFileError, match="forbidden name"):
        load_checkpoint(tmp_path / "a.json")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "future": (
        {"format_version": FORMAT_VERSION + 1, "new_field": 1},
        "is of format version 2, this golf reads up to 1",
    ),
    "extra": ({"extra": 1}, "lacks or should not have the field 'extra'"),
    "missing": ({"seed": None}, "lacks or should not have the field 'seed'"),
    "text for a number": ({"step": "7"}, "field 'step' is of the wrong kind"),
    "fraction for a whole": ({"step": 7.5}, "field 'step' is of the wrong kind"),
    "truth for a number": ({"seed": True}, "field 'seed' is of the wrong kind"),
    "number for a truth": ({"looping": 1}, "field 'looping' is of the wrong kind"),
    "list in metrics": ({"metrics": {"loss": []}}, "field 'metrics' is of the wrong kind"),
    "number among parents": ({"parents": [1]}, "field 'parents' is of the wrong kind"),
    "another name": ({"boundary": "init"}, "is the manifest of 'init' by another name"),
    "path": ({"data_file": "../final_raw.safetensors"}, "which is no tensor file of its run"),
    "missing data": ({"data_file": "init.safetensors"}, "is missing"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_that_is_not_right_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    save_checkpoint(tmp_path, manifest(), tensors=tensors())
    path = tmp_path / "final_raw.json"
    changes, reason = CHANGES[case]
    values = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(BadFileError, match=reason):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"step": NaN}', '{"step": 1, "step": 2}', "[" * 100_000, '{"a":' * 100_000, "\x00" * 9],
)
def test_a_manifest_that_is_no_sound_json_is_a_bad_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "final_raw.json").write_text(text)
    with pytest.raises(BadFileError, match=r"final_raw\.json"):
        load_checkpoint(tmp_path / "final_raw.json")


def test_a_manifest_of_bytes_that_are_no_text_is_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "final_raw.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadFileError, match="not sound JSON"):
        load_checkpoint(tmp_path / "final_raw.json")


@pytest.mark.parametrize("name", ["a.pt", "folder", "nowhere.json", "nowhere.safetensors"])
def test_a_path_that_is_no_checkpoint_is_a_bad_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadFileError, match=name):
        load_checkpoint(tmp_path / name)


def save_run(root: Path, run: str, *moments: tuple[str, int]) -> None:
    for boundary, step in moments:
        save_checkpoint(root / run, manifest(boundary, step), tensors=tensors())


@pytest.mark.parametrize("average", ["final_ema", "final_swa"])
def test_boundaries_are_sorted_by_step_and_the_final_average_comes_last(tmp_path: Path, average: str) -> None:
    save_run(tmp_path, "r", (average, 90), ("init", 0), ("final_raw", 90), ("step_100", 90), ("frac_50", 45))
    names = [found.boundary for found in boundaries(tmp_path / "r")]
    assert names == ["init", "frac_50", "step_100", "final_raw", average]


def test_files_still_being_written_are_no_boundaries(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0))
    (tmp_path / "r" / ".golf-tmp-1-ab-final.json").write_text("{")
    assert len(boundaries(tmp_path / "r")) == 1


def test_a_boundary_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0))
    (tmp_path / "r" / "broken.json").write_text("{")
    with pytest.raises(BadFileError, match=r"broken\.json"):
        boundaries(tmp_path / "r")


def test_a_boundary_without_its_data_is_an_error_with_its_name(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0))
    (tmp_path / "r" / "init.safetensors").unlink()
    with pytest.raises(BadFileError, match="manifest of 'init'"):
        boundaries(tmp_path / "r")


def test_a_run_stands_for_its_latest_boundary(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("final_ema", 90), ("init", 0), ("final_raw", 90))
    assert find_checkpoint("r", root=tmp_path) == tmp_path / "r" / "final_ema.json"


def test_a_run_and_a_boundary_stand_for_that_one_even_beside_a_broken_one(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0), ("final_raw", 90))
    (tmp_path / "r" / "broken.json").write_text("{")
    assert find_checkpoint("r@init", root=tmp_path) == tmp_path / "r" / "init.json"


def test_paths_stand_for_themselves(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0), ("final_raw", 90))
    folder, root = tmp_path / "r", tmp_path / "elsewhere"
    assert find_checkpoint(str(folder), root=root) == folder / "final_raw.json"
    assert find_checkpoint(f"{folder}@init", root=root) == folder / "init.json"
    assert find_checkpoint(str(folder / "init.safetensors"), root=root) == folder / "init.safetensors"


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    save_run(tmp_path, "b", ("init", 0))
    save_run(tmp_path, "a", ("init", 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no run 'c' in .*; runs there: a, b$"):
        find_checkpoint("c", root=tmp_path)


def test_an_unknown_boundary_is_refused_with_those_there_are(tmp_path: Path) -> None:
    save_run(tmp_path, "r", ("init", 0), ("final_raw", 90))
    with pytest.raises(UsageError, match=r"no boundary 'final' in .*; boundaries there: final_raw, init$"):
        find_checkpoint("r@final", root=tmp_path)


@pytest.mark.parametrize("spec", ["", "@", "@init", "r"])
def test_where_there_are_no_runs_any_name_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="there are no runs"):
        find_checkpoint(spec, root=tmp_path / "nowhere")


def test_the_writer_writes_what_was_submitted_and_counts_it(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path) as writer:
        writer.submit(manifest("init", 0), tensors=tensors(1.0))
        writer.submit(manifest("final_raw", 9), tensors=tensors(2.0), also=["final_ema"])
    assert [value_of(tmp_path / f"{found.boundary}.json") for found in boundaries(tmp_path)] == [1.0, 2.0, 2.0]
    assert writer.bytes_written == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert writer.seconds_writing > 0


def test_submitting_returns_while_the_writing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(*args: object, **values: object) -> Manifest:
        release.wait(30)
        return save_checkpoint(*args, **values)  # type: ignore[arg-type]  # passes on what it was given

    monkeypatch.setattr("golf.checkpoint.save_checkpoint", slow)
    with CheckpointWriter(tmp_path) as writer:
        writer.submit(manifest("init"), tensors=tensors())
        assert not (tmp_path / "init.json").exists()
        release.set()
    assert (tmp_path / "init.json").exists()


def test_an_error_of_the_writer_surfaces_at_the_next_submit_and_only_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with CheckpointWriter(tmp_path / "file") as writer:
        writer.submit(manifest("init"), tensors=tensors())
        with pytest.raises(EnvironmentUnfitError, match="cannot be written"):
            writer.submit(manifest("final_raw"), tensors=tensors())


def test_a_settled_writer_has_written_and_goes_on(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path) as writer:
        for boundary in ("init", "final_raw"):
            writer.submit(manifest(boundary), tensors=tensors())
            writer.settle()
            assert value_of(tmp_path / f"{boundary}.json") == 1.0


def test_an_error_of_the_writer_surfaces_at_close(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = CheckpointWriter(tmp_path / "file")
    writer.submit(manifest("init"), tensors=tensors())
    with pytest.raises(EnvironmentUnfitError, match="cannot be written"):
        writer.close()


def save_on_a_small_disk(folder: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save_checkpoint(folder, manifest("a"), tensors={"model/w": torch.full((100_000,), 2.0)})


@pytest.mark.parametrize("limit", [0, 100, 4096, 399_999])
def test_a_full_disk_exits_5_and_leaves_the_old_checkpoint_alone(tmp_path: Path, limit: int) -> None:
    save_checkpoint(tmp_path, manifest("a"), tensors=tensors(5.0))
    assert exit_code_of(save_on_a_small_disk, tmp_path, limit) == 5
    assert value_of(tmp_path / "a.json") == 5.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_disk_with_room_for_the_tensors_but_not_for_the_manifest_keeps_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise ResourceError("no space left")

    save_checkpoint(tmp_path, manifest("a"), tensors=tensors(5.0))
    monkeypatch.setattr("golf.checkpoint.write_json", full)
    with pytest.raises(ResourceError):
        save_checkpoint(tmp_path, manifest("a"), tensors=tensors(6.0))
    assert value_of(tmp_path / "a.json") == 5.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def save_for_ever(folder: Path, reports: Connection) -> None:
    """Write three boundaries over and over; report each (boundary, step) that is finished."""
    torch.set_num_threads(1)
    with CheckpointWriter(folder) as writer:
        submitted: list[tuple[str, int]] = []
        for step in itertools.count():
            writer.submit(manifest(f"b{step % 3}", step), tensors={"model/w": torch.full((30_000,), float(step))})
            for finished in submitted:
                reports.send(finished)
            submitted = [(f"b{step % 3}", step)]


def read_whole(path: Path) -> int:
    """Load a checkpoint of `save_for_ever`, compare its tensor with its step, and return the step."""
    checkpoint = load_checkpoint(path)
    weight = checkpoint.tensors("model/")["w"]
    assert torch.equal(weight, torch.full((30_000,), float(checkpoint.manifest.step)))
    return checkpoint.manifest.step


def test_whatever_was_finished_survives_a_kill_at_any_instant(tmp_path: Path, kills: int) -> None:
    chance = random.Random(1)
    for kill in range(kills):
        folder = tmp_path / str(kill)
        with running(save_for_ever, folder) as reports:
            end = time.monotonic() + chance.uniform(0.0, 0.15)
            while time.monotonic() < end:
                load_checkpoint(folder / "b0.json")  # it is finished and being replaced: no reader sees half of it
        finished = dict(drain(reports))
        assert finished
        for boundary, step in finished.items():
            assert read_whole(folder / f"{boundary}.json") >= step
        for path in folder.glob("b*.json"):
            read_whole(path)  # what is there is whole, reported or not
        remove_stale(folder)
        assert list(folder.glob(".*")) == []
        for name in ("b0", "b1", "b2"):  # the resumed run passes them again, and what was left over goes
            save_checkpoint(folder, manifest(name, 0), tensors={"model/w": torch.zeros(30_000)})
        named = {found.data_file for found in boundaries(folder)}
        assert {path.name for path in folder.glob("*.safetensors")} == named
