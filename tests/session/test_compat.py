"""The switches for what the published scripts do otherwise: each changes what it says, and only where it can."""

from pathlib import Path
from typing import Any

import pytest
import torch

from golf.config import CompatConfig
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import UsageError
from golf.files import read_json
from golf.log import read_events
from golf.model.plan import plan_layers
from golf.train_state import TrainState, open_loader
from golf.workbench import validation_stream
from tests.pico import pico_recipe
from tests.ranks import run_ranks
from tests.session_tools import CPU, Place

FULL_MOMENTUM = ("optim.momentum_warmup_steps=0", "optim.momentum_start=0.95")
SHORT = ("schedule.iterations=2", "schedule.late_qat_below=0", "average.shadow_snapshots=0", *FULL_MOMENTUM)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["compat.clip=local", "optim.grad_clip_norm=0"], r"clip 'local' does nothing without optim\.grad_clip_norm"),
        (["compat.clock=rank"], r"clock 'rank' does nothing without schedule\.max_seconds"),
        (["compat.loader_group=world", "data.loader=coprime"], "loader_group 'world' does nothing without"),
        (["compat.stale_muon_momentum=true"], r"without run\.priming_steps"),
        (["compat.eval_logits_bf16=false"], r"without run\.dtype 'bfloat16'"),
        (["data.loader=sequential", "data.batch_tokens=264"], r"multiple of 8 data\.seq_len unless"),
        (["run.priming_steps=-1"], "priming_steps must be at least 0"),
        (["schedule.warmdown_steps=-1"], "warmdown_steps must be at least 0"),
    ],
)
def test_a_switch_that_cannot_act_is_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        pico_recipe(*overrides)


def test_a_recipe_without_the_table_has_golfs_ways() -> None:
    assert pico_recipe().compat == CompatConfig()
    assert pico_recipe().compat.clip == "global"


def first_norm(world: World, place: Place, clip: str) -> float:
    """The gradient norm that the first step reports."""
    recipe, dataset = place.recipe(f"compat.clip={clip}"), Dataset.open(place.data)
    state = TrainState.build(recipe, dataset, world)
    state.forward_backward(plan_layers(recipe.model, looping=False), late_qat=False)
    norm = state.optimizer.step(lr_multiplier=1.0, momentum=0.9)
    state.loader.close()
    return float(norm)


def norms_and_run(world: World, folder: Path) -> list[float]:
    Place(folder).start("two", "compat.train_loss=rank0", *SHORT, world=world)
    return [first_norm(world, Place(folder), clip) for clip in ("global", "local")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[float]]:
    """A place with a run of two processes, and what they say of the first gradient under the two clips."""
    folder = tmp_path_factory.mktemp("compat")
    place = Place.make(folder / "place")
    norms, others = run_ranks(2, folder, norms_and_run, place.folder)
    assert norms == others
    return place, norms


def test_the_local_clip_sees_each_ranks_own_gradient(two: tuple[Place, list[float]]) -> None:
    together, apart = two[1]
    assert apart > 1.01 * together  # the mean of norms is above the norm of the mean


def train_events(place: Place, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(place.run(name) / "events.jsonl") if event["event"] == "train"]


def test_rank_0s_own_loss_is_logged_beside_the_mean(two: tuple[Place, list[float]], finished: Place) -> None:
    place, _ = two
    recipe, dataset = place.recipe(), Dataset.open(place.data)
    state = TrainState.build(recipe, dataset, World(0, 2, 0, CPU))
    expected = state.forward_backward(plan_layers(recipe.model, looping=False), late_qat=False)
    state.loader.close()
    event = train_events(place, "two")[0]
    assert event["train_loss_rank0"] == pytest.approx(float(expected), rel=1e-6)
    assert event["train_loss"] != pytest.approx(event["train_loss_rank0"], rel=1e-4)
    assert "train_loss_rank0" not in train_events(finished, "done")[0]


def test_a_group_of_the_real_ranks_reads_further_into_a_shard(finished: Place) -> None:
    dataset, world = Dataset.open(finished.data), World(0, 1, 0, CPU)
    steps = {}
    for group in ("virtual", "world"):
        loader = open_loader(finished.recipe(f"compat.loader_group={group}"), dataset, world)
        steps[group] = [loader.next_step()[0].tokens for _ in range(4)]
        loader.close()
    same = [torch.equal(ours, theirs) for ours, theirs in zip(steps["virtual"], steps["world"], strict=True)]
    assert same == [True, True, True, False]


def test_the_score_without_dropped_tails_is_reported_beside_golfs(place: Place) -> None:
    """301 tokens are 18 sequences of 16; of 8 ranks six have 2 and two have 3, and batches hold 2."""
    drop = ("compat.eval_drop_tail=true", "eval.batch_tokens=32")
    place.start("dropped", *drop, *SHORT)
    final = read_json(place.run("dropped") / "final.json")
    for part in ("unquantized", "quantized"):
        assert (final[part]["tokens"], final[part]["drop_tail"]["tokens"]) == (300, 8 * 2 * 16)
        assert final[part]["drop_tail"]["bytes"] < final[part]["bytes"]
        assert final[part]["drop_tail"]["val_bpb"] == pytest.approx(final[part]["val_bpb"], rel=0.1)
    assert final["unquantized"]["drop_tail"]["bits"] != final["quantized"]["drop_tail"]["bits"]
    assert "drop_tail" not in read_json(place.run("done") / "final.json")["unquantized"]


def test_dropping_all_there_is_is_refused_before_the_training(place: Place) -> None:
    with pytest.raises(UsageError, match="eval_drop_tail leaves no target to score: no rank of 8 has a whole batch"):
        place.start("dropped", "compat.eval_drop_tail=true")
    assert not (place.run("dropped") / "init.json").exists()


def test_the_recipe_says_how_validation_reads_and_rounds(finished: Place) -> None:
    dataset = Dataset.open(finished.data)
    stream = validation_stream(finished.recipe(), dataset)
    other = validation_stream(
        finished.recipe("run.dtype=bfloat16", "compat.eval_logits_bf16=false", "model.cross_documents=true"), dataset
    )
    assert (stream.cross_documents, stream.rounds_logits) == (False, True)
    assert (other.cross_documents, other.rounds_logits) == (True, False)
