"""Options together through a whole run: trained, resumed to the same bits, quantized, read back, scored."""

from pathlib import Path

import pytest

from golf.artifact.container import load_artifact
from golf.data.shards import write_shard
from golf.distributed import single_world
from golf.files import read_json
from golf.log import read_events
from golf.recipe import load_recipe, recipe_names
from golf.session import start_run
from tests.narrow import narrow_recipe
from tests.pico import pico_tokens
from tests.session_tools import CPU, Place, cut_back, digests, weights_of

SHARE = ("model.loop=false", "schedule.loop_at=false", "model.share={start=1,end=2,loops=3,position_std=0.01}")
MIXES = {
    "heads and sharing": (
        *SHARE,
        "model.multi_token={heads=2,weight=0.3}",
        "model.tie_embeddings=false",
        "optim.head_lr=0.008",
        "model.activation=swiglu",
        "model.value_residual.form=mix",
        "optim.muon=normuon",
    ),
    "passes with corrections": (
        "model.loop.mlp_lora_rank=2",
        "model.mlp_widths=[1.0,0.5,2.0,1.0]",
        "model.carry={beta=[1.0,1.0],alpha=[[0.0,0.0],[0.0,0.0]],learn=true}",
        "model.lanes.start=3",
        "model.attention_gate={window=5,gain=2.0,source='query'}",
        "optim.muon=mousse",
        "optim.row_normalize=false",
        "optim.lyapunov_window=3",
        "quant.lqer={rank=2,top_k=2,group=8}",
        "quant.codec=zstd",
    ),
    "ternary": ("model.ternary.group=8", "schedule.late_qat_below=0", "data.loader=sequential"),
    "low rank": (
        "model.mlp_rank=3",
        "model.parallel_start=2",
        "data.loader=coprime",
        "quant.method=row_max",
        "quant.scale_floor=unit",
        "run.priming_steps=2",
        "compat.stale_muon_momentum=true",
    ),
    "the lineage of 401": (
        "model.smear=false",
        "model.smear={form='blend'}",
        "model.cross_documents=true",
        "model.rope.scaling={method='ntk',trained_len=8,length=16}",
        "data.loader=shuffled",
        "average.use=swa",
        "quant.method=clip_search",
        "schedule.warmdown_steps=8",
    ),
}

SHORT = (
    "schedule.iterations=4",
    "schedule.max_seconds=0",
    "schedule.reserve_seconds=0",
    "data.batch_tokens=256",
    "data.seq_len=16",
    "eval.seq_len=16",
    "eval.batch_tokens=64",
    "run.priming_steps=1",
    "run.cpu_threads=1",
)


def eight_shards(folder: Path) -> Place:
    """A place with a shard for each virtual rank, as the shuffled loader needs."""
    place = Place.make(folder)
    for number in range(8):
        write_shard(place.data / f"pico_train_{number:06d}.bin", pico_tokens(900, seed=number))
    return place


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "demo"])
def test_a_shipped_recipe_runs_to_its_end_in_bfloat16(tmp_path: Path, name: str) -> None:
    place = eight_shards(tmp_path)
    stride = () if load_recipe(name).eval.sliding_stride is None else ("eval.sliding_stride=8",)
    calibration = ("quant.calibration_batches=2", "quant.calibration_windows=4")
    recipe = narrow_recipe(name, *SHORT, *stride, *calibration)
    final = start_run(recipe, single_world(CPU), root=place.root, name="short", data=place.data)
    assert final["steps"] == 4
    assert final["quantized"]["val_bpb"] > 0
    assert recipe.run.dtype == "bfloat16"


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_runs_to_its_end_and_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    place = eight_shards(tmp_path)
    final = place.start("mix", *MIXES[name])
    assert 0 < final["quantized"]["val_bpb"] < 20
    trained = [name for name in weights_of(place.run("mix"), "final_raw") if name.startswith("multi_token.")]
    assert len(trained) == (2 if "heads" in name else 0)
    assert all(bool(weights_of(place.run("mix"), "final_raw")[name].any()) for name in trained)  # they began at zero
    artifact = load_artifact(place.run("mix") / "artifact.golf")
    assert not any(tensor.startswith("multi_token.") for tensor in artifact.tensors)
    expected = digests(place.run("mix"))
    cut_back(place, "mix", "pre_loop" if "model.loop=false" not in MIXES[name] else "frac_50")
    for path in place.run("mix").glob("final_swa.*"):
        path.unlink()
    place.resume("mix")
    assert digests(place.run("mix")) == expected
    assert read_json(place.run("mix") / "final.json")["quantized"] == final["quantized"]
    assert any(event["event"] == "finished" for event in read_events(place.run("mix") / "events.jsonl"))
