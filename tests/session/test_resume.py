"""Stopped anywhere and resumed: the same bits as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.averaging import Averages
from golf.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from golf.checkpoint_manifest import Manifest, manifest_paths
from golf.data.shards import write_shard
from golf.distributed import single_world
from golf.errors import BadFileError, InterruptedRunError, UsageError
from golf.files import read_json, sha256_file, write_json
from golf.log import read_events
from golf.session import resume_run, start_run
from tests.children import SERVER
from tests.pico import pico_dataset, pico_tokens
from tests.session_tools import CPU, STEPS, Place, cut_back, digests, golf_child, weights_of


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let Ctrl-C be pressed at the end of a step."""

    def arrange(step: int) -> None:
        update = Averages.update

        def pressed(averages: Averages, **values: Any) -> None:
            update(averages, **values)
            if values["step"] == step:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Averages, "update", pressed)

    return arrange


@pytest.mark.parametrize("boundary", STEPS)
def test_resumed_at_a_boundary_everything_later_has_the_same_bits(place: Place, boundary: str) -> None:
    expected = digests(place.run("done"))
    cut_back(place, "done", boundary)
    place.resume("done")
    assert digests(place.run("done")) == expected


@pytest.mark.parametrize("boundary", ["init", "pre_loop", "final_raw"])
def test_a_resumed_run_ends_with_the_same_summary(place: Place, finished: Place, boundary: str) -> None:
    cut_back(place, "done", boundary)
    summary, expected = place.resume("done"), read_json(finished.run("done") / "final.json")
    timed = {"train_seconds", "posttrain_seconds", "peak_memory_bytes"}
    assert summary == read_json(place.run("done") / "final.json")
    assert summary.keys() == expected.keys()
    assert all(summary[key] == expected[key] for key in expected.keys() - timed)


@pytest.mark.parametrize("step", [1, 6, 10, 19])
def test_interrupted_after_any_step_and_resumed_the_bits_are_the_same(
    place: Place, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    stop_after(step)
    with pytest.raises(InterruptedRunError, match=rf"stopped at step {step}; .*--resume .*/again@interrupted$"):
        place.start("again")
    monkeypatch.undo()
    assert load_checkpoint(place.run("again") / "interrupted.json").manifest.step == step
    place.resume("again")
    expected = digests(place.run("done"))
    assert {name: digest for name, digest in digests(place.run("again")).items() if name != "interrupted"} == expected


def test_interrupted_twice_the_later_state_replaces_the_earlier(
    place: Place, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (6, 14):
        stop_after(step)
        with pytest.raises(InterruptedRunError):
            place.start("again") if step == 6 else place.resume("again@interrupted")
        monkeypatch.undo()
    assert load_checkpoint(place.run("again") / "interrupted.json").manifest.step == 14
    place.resume("again")
    assert digests(place.run("again"))["artifact"] == digests(place.run("done"))["artifact"]


def test_the_command_that_an_interruption_names_continues_from_it_even_in_a_finished_run(
    place: Place, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(13)
    with pytest.raises(InterruptedRunError) as told:
        place.resume("done@pre_loop", force=True)
    monkeypatch.undo()
    assert str(told.value).endswith("@interrupted --force")
    spec = str(told.value).split(" ")[-2]
    assert load_checkpoint(find_checkpoint(spec, root=Path("elsewhere"))).manifest.step == 13


def test_killed_at_random_instants_and_restarted_until_done_the_bits_are_the_same(place: Place, kills: int) -> None:
    """Runs are killed up to three times: before the first boundary one is started again, later it is resumed."""
    chance, expected = random.Random(1), digests(place.run("done"))
    for number in range(max(kills // 6, 1)):
        run = place.run(f"victim-{number}")
        start = ["train", place.toml, "--data", place.data, "--root", place.root, "--name", run.name]
        resume = ["train", "--resume", run.name, "--root", place.root]
        for _ in range(3):
            words = resume if manifest_paths(run) else start
            child = SERVER.Process(target=golf_child, args=(place.folder / "said", words))
            child.start()
            wait_for(lambda: bool(manifest_paths(run)) or not child.is_alive())  # noqa: B023 - called at once
            child.join(chance.choice([0.0, 0.02, 0.2]) * chance.uniform(0.0, 1.0))
            child.kill()
            child.join()
            for path in manifest_paths(run):
                load_checkpoint(path)  # whatever is there is whole
        place.resume(run.name)
        assert digests(run) == expected
        assert not list(run.rglob(".golf-tmp-*"))
        read_events(run / "events.jsonl")


def test_what_a_killed_writer_left_half_written_is_removed(place: Place) -> None:
    for folder in ("", "shadows"):
        (place.run("done") / folder / ".golf-tmp-4194304-ab-lr_floor.safetensors").write_bytes(b"half")
    place.resume("done@lr_floor", force=True)
    assert not list(place.run("done").rglob(".golf-tmp-*"))


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_finished_run_is_only_shown(place: Place) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.run("done").rglob("*.*")}
    assert place.resume("done") == read_json(place.run("done") / "final.json")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.run("done").rglob("*.*")} == before


@pytest.mark.parametrize("spec", ["done@pre_loop", "done@final_raw", "done@final_ema", "a file"])
def test_a_finished_run_is_not_replaced_unasked(place: Place, spec: str) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.run("done").rglob("*.*")}
    boundary = spec.partition("@")[2] or "final_ema"
    what = f"going on from {boundary} would replace its artifact and final.json; give --force, or name the run alone"
    with pytest.raises(UsageError, match=rf"^run 'done' is finished, and {what} to see it$"):
        place.resume(spec if "@" in spec else str(place.run("done") / "final_ema.json"))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.run("done").rglob("*.*")} == before


@pytest.mark.parametrize("spec", ["done", "done@final_raw", "done@final_ema"])
def test_by_force_a_finished_run_is_finished_again(place: Place, spec: str) -> None:
    expected = digests(place.run("done"))
    for name in ("final.json", "artifact.golf"):
        (place.run("done") / name).write_text("{}")
    place.resume(spec, force=True)
    assert digests(place.run("done")) == expected
    assert sha256_file(place.run("done") / "artifact.golf") == expected["artifact"]


def test_a_run_that_did_not_finish_goes_on_from_its_last_boundary_unforced(place: Place) -> None:
    (place.run("done") / "final.json").unlink()
    assert place.resume("done@final_ema")["boundary"] == "final_ema"


def test_a_finished_run_that_is_interrupted_while_it_is_finished_again_says_to_force_it_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("golf.workbench.evaluate", lambda *args, **values: signal.raise_signal(signal.SIGINT))
    with pytest.raises(InterruptedRunError, match=r"on disk; start it again with the same command$"):
        place.resume("done@final_ema", force=True)


@pytest.mark.parametrize("boundary", ["pre_loop", "final_ema"])
def test_a_run_does_not_go_on_with_other_data(place: Place, boundary: str) -> None:
    """Of other validation tokens alone, which no loader looks at."""
    cut_back(place, "done", boundary)
    other = pico_dataset(place.folder / "other", val=300).folder
    with pytest.raises(BadFileError, match=r"other: it is not the data of run 'done' \(digest .*; name that data with"):
        resume_run("done", single_world(CPU), root=place.root, data=other)
    assert not (place.run("done") / "final.json").exists()


def test_a_run_goes_on_with_its_data_in_another_folder(place: Place) -> None:
    cut_back(place, "done", "lr_floor")
    moved = place.data.rename(place.folder / "moved")
    assert resume_run("done", single_world(CPU), root=place.root, data=moved)["steps"] == 20


def test_a_checkpoint_from_before_digests_of_data_were_kept_goes_on(place: Place) -> None:
    cut_back(place, "done", "final_ema")
    forget_data(place.run("done") / "final_ema.json")
    assert place.resume("done")["boundary"] == "final_ema"


def forget_data(manifest: Path) -> None:
    """Make a manifest one of an earlier golf."""
    values = read_json(manifest)
    del values["dataset_digest"]
    write_json(manifest, values)


def test_a_finished_run_is_resumed_where_a_boundary_is_named_even_by_its_file(place: Place) -> None:
    for spec in ("done@lr_floor", str(place.run("done") / "lr_floor.json")):
        place.resume(spec, force=True)
    starts = [event["step"] for event in read_events(place.run("done") / "events.jsonl") if event["event"] == "start"]
    assert starts == [0, 18, 18]
    assert digests(place.run("done"))["artifact"] == read_json(place.run("done") / "final.json")["artifact"]["sha256"]


def test_from_the_last_raw_state_the_averaging_is_done_again_and_the_loss_is_kept(place: Place) -> None:
    expected = digests(place.run("done"))
    before = load_checkpoint(place.run("done") / "final_raw.json").manifest
    cut_back(place, "done", "final_raw")
    place.resume("done")
    after = load_checkpoint(place.run("done") / "final_raw.json").manifest
    assert after.metrics == before.metrics != {}
    assert after.looping is before.looping is True
    assert digests(place.run("done")) == expected


def test_a_run_that_uses_its_raw_weights_ends_there_and_resumes_from_there(place: Place) -> None:
    place.start("raw", 'average.use="raw"')
    expected = digests(place.run("raw"))
    assert [path.stem for path in manifest_paths(place.run("raw")) if path.stem.startswith("final")] == ["final_raw"]
    for name in ("final.json", "artifact.golf"):
        (place.run("raw") / name).unlink()
    place.resume("raw")
    assert digests(place.run("raw")) == expected
    assert [e["step"] for e in read_events(place.run("raw") / "events.jsonl") if e["event"] == "start"] == [0]


def test_a_run_that_uses_its_stochastic_average_ends_with_it(place: Place) -> None:
    place.start("swa", 'average.use="swa"')
    swa = load_checkpoint(place.run("swa") / "final_raw.json").tensors("swa/")
    final = weights_of(place.run("swa"), "final_swa")
    assert all(torch.equal(final[name], swa[name]) for name in swa)
    assert read_json(place.run("swa") / "final.json")["boundary"] == "final_swa"
    assert find_checkpoint("swa", root=place.root).stem == "final_swa"


def test_a_summary_goes_before_the_weights_it_speaks_of_are_replaced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, at_end = place.run("done") / "final.json", []

    def watched(folder: Path, manifest: Manifest, **values: Any) -> Manifest:
        if manifest.boundary.startswith("final_"):
            at_end.append(final.exists())
        return save_checkpoint(folder, manifest, **values)

    monkeypatch.setattr("golf.checkpoint.save_checkpoint", watched)
    place.resume("done@lr_floor", force=True)
    assert at_end == [False, False]
    assert final.exists()


def test_a_shadow_snapshot_is_on_disk_before_a_boundary_from_which_it_would_not_be_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """frac_50 and shadow_2 both fall on step 10, and shadow_1 on step 5 is still being written at pre_loop."""
    there: dict[str, bool] = {}

    def watched(folder: Path, manifest: Manifest, **values: Any) -> Manifest:
        if folder.name == "shadows":
            time.sleep(0.2)
        for name, shadow in (("pre_loop", "shadow_1"), ("frac_50", "shadow_2")):
            if manifest.boundary == name:
                there[shadow] = (folder / "shadows" / f"{shadow}.json").exists()
        return save_checkpoint(folder, manifest, **values)

    monkeypatch.setattr("golf.checkpoint.save_checkpoint", watched)
    place.start("slow")
    assert there == {"shadow_1": True, "shadow_2": True}


def test_what_a_boundary_holds_is_not_changed_by_the_training_that_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*args: Any, **values: Any) -> Manifest:
        time.sleep(0.1)
        return save_checkpoint(*args, **values)

    monkeypatch.setattr("golf.checkpoint.save_checkpoint", late)
    place.start("late")
    expected = digests(place.run("done"))
    assert digests(place.run("late")) == expected


def test_a_run_is_not_started_over_its_checkpoints(place: Place) -> None:
    before = digests(place.run("done"))
    with pytest.raises(UsageError, match=r"run 'done' exists in .*; continue it with --resume done"):
        place.start("done")
    assert digests(place.run("done")) == before


def test_by_force_nothing_of_the_earlier_run_can_pass_for_the_new_one(
    place: Place, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.run("done") / "notes.txt").write_text("mine")
    stop_after(4)
    with pytest.raises(InterruptedRunError):
        place.start("done", "model.num_layers=3", "model.value_embedding.layers=[2]", force=True)
    monkeypatch.undo()
    there = {path.stem for path in manifest_paths(place.run("done"))}
    assert there == {"init", "momentum_full", "step_4", "interrupted"}
    assert list((place.run("done") / "shadows").iterdir()) == []
    assert [e["event"] for e in read_events(place.run("done") / "events.jsonl")].count("rehearsal") == 1
    assert (place.run("done") / "notes.txt").read_text() == "mine"
    summary = place.resume("done")  # not that of the earlier run
    assert summary["recipe_digest"] == place.recipe("model.num_layers=3", "model.value_embedding.layers=[2]").digest


def test_a_name_whose_run_never_began_can_be_used_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("golf.session.rehearse", lambda *args: (_ for _ in ()).throw(UsageError("no")))
        with pytest.raises(UsageError, match=r"^no$"):
            place.start("again")
    place.start("again")
    assert digests(place.run("again")) == digests(place.run("done"))


@pytest.mark.parametrize("name", ["a@b", "../a", "a/b", ".a", "-a", "a b", "."])
def test_a_name_that_could_not_be_resumed_by_is_refused(place: Place, name: str) -> None:
    with pytest.raises(UsageError, match=r"run name .* may hold letters, digits, _ . and - only"):
        place.start(name)
    assert os.listdir(place.root) == ["done"]


def test_a_new_run_gets_the_first_free_number(place: Place) -> None:
    (place.root / "pico-1").mkdir()
    recipe = place.recipe("schedule.iterations=1", "schedule.late_qat_below=0")
    summary = start_run(recipe, single_world(CPU), root=place.root, data=place.data)
    assert summary["run"] == "pico-2"


def test_a_checkpoint_of_another_model_is_a_bad_file(place: Place) -> None:
    checkpoint = load_checkpoint(place.run("done") / "pre_qat.json")
    other = replace(checkpoint.manifest, recipe=place.recipe("model.mlp_mult=2").to_dict(), boundary="other")
    save_checkpoint(place.run("done"), other, tensors=checkpoint.all_tensors())
    with pytest.raises(BadFileError, match=r"other\.json: its tensors do not fit its recipe .*; use a checkpoint of"):
        place.resume("done@other", force=True)


def test_a_checkpoint_without_an_average_that_its_recipe_keeps_is_a_bad_file(place: Place) -> None:
    checkpoint = load_checkpoint(place.run("done") / "pre_qat.json")
    tensors = {name: tensor for name, tensor in checkpoint.all_tensors().items() if not name.startswith("swa/")}
    save_checkpoint(place.run("done"), replace(checkpoint.manifest, boundary="poor"), tensors=tensors)
    with pytest.raises(BadFileError, match="has no tensors under swa/"):
        place.resume("done@poor", force=True)


def test_other_shards_than_those_of_the_checkpoint_are_refused(place: Place) -> None:
    write_shard(place.data / "pico_train_000002.bin", pico_tokens(800, seed=7))
    with pytest.raises(BadFileError, match="it is not the data of run 'done'"):
        place.resume("done@pre_loop", force=True)


def test_other_shards_are_refused_by_the_loader_where_the_checkpoint_names_no_data(place: Place) -> None:
    forget_data(place.run("done") / "pre_loop.json")
    write_shard(place.data / "pico_train_000002.bin", pico_tokens(800, seed=7))
    with pytest.raises(UsageError, match="files differ"):
        place.resume("done@pre_loop", force=True)


def test_late_quantization_that_had_begun_goes_on_whatever_the_rate(place: Place) -> None:
    checkpoint = load_checkpoint(place.run("done") / "pre_loop.json")
    began = replace(checkpoint.manifest, boundary="began", optimizer=checkpoint.manifest.optimizer | {"late_qat": True})
    save_checkpoint(place.run("done"), began, tensors=checkpoint.all_tensors())
    place.resume("done@began", force=True)
    events = read_events(place.run("done") / "events.jsonl")
    after = events[max(number for number, event in enumerate(events) if event["event"] == "start") :]
    assert {event["late_qat"] for event in after if event["event"] == "train"} == {True}


def test_averages_are_restored_with_their_number_of_snapshots(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    update = Averages.update

    def watched(averages: Averages, **values: Any) -> None:
        counts.append(averages.swa_count)
        update(averages, **values)

    monkeypatch.setattr(Averages, "update", watched)
    place.resume("done@lr_floor", force=True)
    assert counts == [1, 1]  # the snapshot after step 18 was there before steps 19 and 20
