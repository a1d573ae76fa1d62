"""The workbench: what it scores is the artifact, on any number of ranks."""

from pathlib import Path

import torch
from torch import Tensor

from golf.artifact.container import unpack_bytes
from golf.data.shards import Dataset
from golf.distributed import World, single_world
from golf.log import Log
from golf.quant.pipeline import dequantize_weights
from golf.workbench import Outcome, Workbench
from tests.pico import pico_dataset, pico_model, pico_recipe
from tests.ranks import run_ranks

RECIPE = pico_recipe()
ALONE = single_world(torch.device("cpu"))


def outcome_of(world: World, folder: Path) -> tuple[Outcome, dict[str, Tensor]]:
    """Calibrate, quantize and score the pico model; return the weights that the model was left with."""
    bench = Workbench.build(RECIPE, Dataset.open(folder), world, looping=True)
    weights, log = bench.load(pico_model(RECIPE).state_dict()), Log(rank=1)
    outcome = bench.quantize(weights, bench.hessians(log, RECIPE.quant), RECIPE.quant)
    assert outcome.score == bench.score(log, "again")
    return outcome, dict(bench.model.state_dict())


def test_what_is_scored_is_what_the_artifact_says(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data")
    outcome, scored = outcome_of(ALONE, tmp_path / "data")
    artifact = unpack_bytes(outcome.artifact)
    assert artifact.config == {"model": RECIPE.to_dict()["model"], "run": {"dtype": RECIPE.run.dtype}}
    read_back = dequantize_weights(artifact.tensors, scored)
    assert all(torch.equal(tensor, scored[name]) for name, tensor in read_back.items())
    assert outcome.score.tokens == 300


def artifact_of(world: World, folder: Path) -> tuple[bytes, float]:
    outcome, _ = outcome_of(world, folder)
    return outcome.artifact, outcome.score.loss_sum


def test_two_ranks_make_and_score_the_artifact_of_one(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data")
    (alone,) = run_ranks(1, tmp_path, artifact_of, tmp_path / "data")
    assert run_ranks(2, tmp_path, artifact_of, tmp_path / "data") == [alone, alone]
