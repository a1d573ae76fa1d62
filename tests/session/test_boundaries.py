"""One finished run: every boundary is there, and every number that was written down is true."""

from typing import Any

import pytest
import torch
from torch import Tensor

from golf.checkpoint import boundaries, load_checkpoint
from golf.checkpoint_manifest import Manifest
from golf.data.shards import Dataset
from golf.files import read_json, sha256_file
from golf.log import read_events
from golf.model.gpt import GPT
from golf.profiles import gamma_of_width
from golf.schedule import moment
from tests.session_tools import CPU, SHADOW_STEPS, STEPS, Place, golf, watch_visits, weights_of


def manifests(place: Place, run: str = "done") -> dict[str, Manifest]:
    return {manifest.boundary: manifest for manifest in boundaries(place.run(run))}


def events(place: Place, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(place.run("done") / "events.jsonl") if event["event"] == name]


def test_every_boundary_is_hit_at_its_step(finished: Place) -> None:
    assert {name: manifest.step for name, manifest in manifests(finished).items()} == STEPS


def test_boundaries_are_listed_as_training_passed_them(finished: Place) -> None:
    assert [manifest.boundary for manifest in boundaries(finished.run("done"))] == list(STEPS)
    assert [event["name"] for event in events(finished, "boundary")] == list(STEPS)


def test_every_shadow_snapshot_is_taken_at_its_step_and_holds_shadows_alone(finished: Place) -> None:
    found = boundaries(finished.run("done") / "shadows")
    assert {manifest.boundary: manifest.step for manifest in found} == SHADOW_STEPS
    for name in SHADOW_STEPS:
        tensors = load_checkpoint(finished.run("done") / "shadows" / f"{name}.json").all_tensors()
        assert {key.rpartition("/")[0] for key in tensors} == {"shadow/0.05", "shadow/0.1"}


def test_progress_and_rate_are_those_of_the_next_step(finished: Place) -> None:
    for name, manifest in manifests(finished).items():
        now = moment(finished.recipe(), step=STEPS[name], elapsed_seconds=0.0)
        assert (manifest.progress, manifest.lr_multiplier) == (STEPS[name] / 20, now.lr_multiplier)
        assert manifest.optimizer["momentum"] == now.momentum
    rates = {name: round(manifest.lr_multiplier, 12) for name, manifest in manifests(finished).items()}
    assert rates["frac_50"] == 1.0
    assert rates["warmdown_start"] == 0.9
    assert rates["pre_qat"] == 0.4
    assert rates["lr_floor"] == rates["final_raw"] == 0.25


def test_the_loop_flag_is_that_of_the_graph_the_weights_were_trained_in(finished: Place) -> None:
    off = [name for name, manifest in manifests(finished).items() if not manifest.looping]
    assert off == ["init", "momentum_full", "step_4", "pre_loop"]


def test_the_training_loss_of_a_boundary_is_that_of_its_last_step(finished: Place) -> None:
    logged = {event["step"]: event["train_loss"] for event in events(finished, "train")}
    for name in ("momentum_full", "step_4", "pre_qat", "final_raw"):
        assert manifests(finished)[name].metrics == {"train_loss": logged[STEPS[name]]}
    assert manifests(finished)["init"].metrics == {}


def test_the_loader_of_a_boundary_stands_at_its_step(finished: Place) -> None:
    assert {name: manifest.loader["step"] for name, manifest in manifests(finished).items()} == STEPS


def test_a_boundary_holds_everything_that_a_resume_needs(finished: Place) -> None:
    tensors = load_checkpoint(finished.run("done") / "pre_qat.json").all_tensors()
    model = {name.removeprefix("model/") for name in tensors if name.startswith("model/")}
    for prefix in ("ema/", "swa/", "shadow/0.05/", "shadow/0.1/"):
        assert {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)} == model
    matrices = {name for name in model if f"optim/muon/{name}/momentum" in tensors}
    adam = {name for name in model if f"optim/adam/{name}/exp_avg_sq" in tensors}
    assert matrices | adam == model
    assert matrices & adam == set()


def test_the_averages_of_a_boundary_are_described(finished: Place) -> None:
    averages = manifests(finished)["final_raw"].averages
    assert averages["ema"] == {"kind": "exponential", "decay": 0.8, "step": 20}
    assert averages["swa"] == {"kind": "mean", "of": "ema", "count": 2}  # after steps 18 and 20
    assert averages["shadow/0.1"]["gamma"] == gamma_of_width(0.1)


def test_the_finished_weights_are_the_average_of_the_last_state(finished: Place) -> None:
    ema = load_checkpoint(finished.run("done") / "final_raw.json").tensors("ema/")
    final = weights_of(finished.run("done"), "final_ema")
    assert final.keys() == ema.keys()
    assert all(torch.equal(final[name], ema[name].to(final[name].dtype)) for name in final)


def test_a_checkpoint_names_those_it_was_made_from(place: Place) -> None:
    made = manifests(place)
    assert made["final_ema"].parents == [made["final_raw"].data_sha256]
    assert made["final_raw"].parents == []
    place.resume("done@pre_qat", force=True)
    assert manifests(place)["final_raw"].parents == [made["pre_qat"].data_sha256]


def test_the_average_follows_its_recursion_from_one_boundary_to_the_next(finished: Place) -> None:
    before, after = (load_checkpoint(finished.run("done") / f"{name}.json") for name in ("momentum_full", "step_4"))
    ema, weights = before.tensors("ema/"), after.tensors("model/")
    for name, value in after.tensors("ema/").items():
        torch.testing.assert_close(value, 0.8 * ema[name] + 0.2 * weights[name], rtol=1e-6, atol=1e-7)


def test_the_summary_is_complete_and_agrees_with_the_files(finished: Place) -> None:
    folder, recipe = finished.run("done"), finished.recipe()
    final, last = read_json(folder / "final.json"), manifests(finished)["final_ema"]
    artifact = final["artifact"]
    assert final["run"] == "done"
    assert (final["recipe"], final["recipe_digest"], final["seed"]) == ("pico", recipe.digest, 1)
    assert final["dataset_digest"] == Dataset.open(finished.data).digest()
    assert (final["boundary"], final["checkpoint_sha256"], final["steps"]) == ("final_ema", last.data_sha256, 20)
    assert final["train_seconds"] == last.elapsed_seconds
    assert final["quantization_gap_bpb"] == final["quantized"]["val_bpb"] - final["unquantized"]["val_bpb"]
    assert artifact["sha256"] == sha256_file(folder / artifact["file"])
    assert artifact["model_bytes"] == (folder / artifact["file"]).stat().st_size
    assert artifact["total_bytes"] == artifact["model_bytes"] + artifact["code_bytes"]
    assert artifact["headroom_bytes"] == 16_000_000 - artifact["total_bytes"]
    assert artifact["fits"] is True
    assert artifact["code_bytes"] > 10_000
    assert final["world_size"] == 1
    assert final["versions"]["torch"] == torch.__version__
    assert final["peak_memory_bytes"] > 2**20


def test_the_summary_is_the_last_event(finished: Place) -> None:
    last = read_events(finished.run("done") / "events.jsonl")[-1]
    final = read_json(finished.run("done") / "final.json")
    assert {key: last[key] for key in final if key != "versions"} == {
        key: value for key, value in final.items() if key != "versions"
    }


@pytest.mark.parametrize(("flags", "part"), [((), "unquantized"), (("--artifact",), "quantized")])
def test_scoring_again_gives_exactly_what_the_summary_says(
    finished: Place, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], part: str
) -> None:
    said = golf(capsys, "evaluate", "done", "--root", finished.root, "--json", *flags)
    assert said.code == 0
    summary = read_json(finished.run("done") / "final.json")
    assert said.json == summary[part] | {name: summary[name] for name in ("kernels", "attention")}


def test_a_run_stores_its_resolved_recipe_and_where_its_data_was(finished: Place) -> None:
    from golf.run_folder import RunFolder

    folder = RunFolder(finished.run("done"))
    assert folder.load_recipe() == finished.recipe()
    assert folder.data_folder() == finished.data
    assert manifests(finished)["init"].recipe == finished.recipe().to_dict()


def test_nothing_temporary_is_left(finished: Place) -> None:
    names = {path.name for path in finished.run("done").rglob("*") if path.is_file()}
    pairs = [*STEPS, *SHADOW_STEPS]
    known = {f"{name}{suffix}" for name in pairs for suffix in (".json", ".safetensors")}
    assert names - known == {".lock", "artifact.golf", "events.jsonl", "final.json", "recipe.toml", "started.toml"}


def test_training_is_recorded_at_the_first_steps_and_every_log_every(finished: Place) -> None:
    assert [event["step"] for event in events(finished, "train")] == [1, 2, 3, 4, 5, 8, 12, 16, 20]
    assert [event["step"] for event in events(finished, "train") if event["looping"]] == [8, 12, 16, 20]
    assert [event["step"] for event in events(finished, "train") if event["late_qat"]] == [20]
    assert str(CPU) == events(finished, "start")[0]["device"]


def test_the_loop_runs_from_its_boundary_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    visits = watch_visits(monkeypatch)
    place.start("watched")
    rehearsed, trained = visits[:3], visits[3:]
    assert rehearsed == [4, 6, 6]  # the last with fake-quantized weights
    assert trained == 7 * [4] + 13 * [6]


def test_late_quantization_runs_from_its_boundary_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[bool] = []
    plain = GPT.forward

    def watched(model: GPT, *args: Any, **values: Any) -> Tensor:
        if torch.is_grad_enabled():
            rounded.append(not isinstance(model.get_submodule("blocks.0.mlp.fc").weight, torch.nn.Parameter))
        return plain(model, *args, **values)

    monkeypatch.setattr(GPT, "forward", watched)
    place.start("watched")
    rehearsed, trained = rounded[:3], rounded[3:]
    assert rehearsed == [False, False, True]
    assert trained == 16 * [False] + 4 * [True]


def test_a_step_in_several_micro_batches_is_the_step_in_one(place: Place) -> None:
    place.start("micro", "run.rows_per_micro_batch=2", "schedule.late_qat_below=0")
    place.start("whole", "schedule.late_qat_below=0")
    micro, whole = (weights_of(place.run(name), "final_raw") for name in ("micro", "whole"))
    for name, value in whole.items():
        assert float((micro[name] - value).abs().max() / value.abs().max()) < 1e-5
    micro_loss, loss = (manifests(place, name)["final_raw"].metrics["train_loss"] for name in ("micro", "whole"))
    assert micro_loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("own_clocks", [(), ("compat.clock=rank", "schedule.max_seconds=900")])
def test_the_ranks_weights_are_compared_at_every_boundary_unless_each_has_a_clock(
    place: Place, monkeypatch: pytest.MonkeyPatch, own_clocks: tuple[str, ...]
) -> None:
    compared: list[set[str]] = []
    monkeypatch.setattr("golf.saver.check_replicas", lambda tensors, world: compared.append(set(tensors)))
    place.start("checked", *own_clocks)
    saved = load_checkpoint(place.run("checked") / "init.json").tensors("model/")
    saves = {manifest.step for name, manifest in manifests(place, "checked").items() if name != "final_ema"}
    assert len(compared) == (0 if own_clocks else len(saves))
    assert len(saves) > 2
    assert all(found == set(saved) for found in compared)
