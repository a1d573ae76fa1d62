"""The workbench: what it scores is the artifact, on any number of ranks."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from golf.artifact.container import unpack_bytes
from golf.data.shards import Dataset
from golf.distributed import World, single_world
from golf.log import Log
from golf.model.parts.ternary import TernaryLinear
from golf.quant.pipeline import dequantize_weights
from golf.quant.scheme import QuantizedTensor
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


def test_heads_that_only_training_needs_are_in_no_artifact(tmp_path: Path) -> None:
    recipe, log = pico_recipe("model.multi_token={heads=2,weight=0.3}"), Log(rank=1)
    bench = Workbench.build(recipe, pico_dataset(tmp_path / "data"), ALONE, looping=True)
    weights = bench.load(pico_model(recipe).state_dict())
    assert weights.keys() == pico_model(RECIPE).state_dict().keys()
    outcome = bench.quantize(weights, bench.hessians(log, recipe.quant), recipe.quant)
    assert unpack_bytes(outcome.artifact).tensors.keys() == weights.keys()


def test_an_untied_head_is_quantized_with_its_input_and_the_embedding_without(tmp_path: Path) -> None:
    recipe, log = pico_recipe("model.tie_embeddings=false", "optim.head_lr=0.008"), Log(rank=1)
    bench = Workbench.build(recipe, pico_dataset(tmp_path / "data"), ALONE, looping=True)
    weights = bench.load(pico_model(recipe).state_dict())
    outcome = bench.quantize(weights, bench.hessians(log, recipe.quant), recipe.quant)
    stored = unpack_bytes(outcome.artifact).tensors
    for name in ("head.weight", "tok_emb.weight"):
        assert isinstance(stored[name], QuantizedTensor)
    embedding = stored["tok_emb.weight"].dequantize()
    step = weights["tok_emb.weight"].abs().amax(dim=1, keepdim=True) / 127
    assert bool(((embedding - weights["tok_emb.weight"]).abs() <= 0.51 * step).all())  # to nearest: no error passed on


def test_a_pruned_artifact_fits_its_limit_and_is_what_is_scored(tmp_path: Path) -> None:
    bench = Workbench.build(RECIPE, pico_dataset(tmp_path / "data"), ALONE, looping=True)
    weights, log = bench.load(pico_model(RECIPE).state_dict()), Log(rank=1)
    hessians = bench.hessians(log, RECIPE.quant)
    plain = bench.quantize(weights, hessians, RECIPE.quant)
    limit = len(plain.artifact) - 50
    pruned = bench.quantize(weights, hessians, replace(RECIPE.quant, prune_to_bytes=limit))
    assert len(pruned.artifact) <= limit
    assert pruned.score != plain.score


def test_a_ternary_artifact_acts_to_the_bit_as_the_weights_it_was_made_of(tmp_path: Path) -> None:
    recipe, log = pico_recipe("model.ternary.group=8", "schedule.late_qat_below=0"), Log(rank=1)
    bench = Workbench.build(recipe, pico_dataset(tmp_path / "data"), ALONE, looping=True)
    weights = bench.load(pico_model(recipe).state_dict())
    layers = [module for module in bench.model.modules() if isinstance(module, TernaryLinear)]
    before = [layer.acting_weight().detach().clone() for layer in layers]
    bench.quantize(weights, bench.hessians(log, recipe.quant), recipe.quant)
    assert len(layers) == 24
    assert all(torch.equal(layer.acting_weight(), acted) for layer, acted in zip(layers, before, strict=True))
    assert not torch.equal(layers[0].weight, weights["blocks.0.attn.c_q.weight"])


def artifact_of(world: World, folder: Path) -> tuple[bytes, float]:
    outcome, _ = outcome_of(world, folder)
    return outcome.artifact, outcome.score.loss_sum


def test_two_ranks_make_and_score_the_artifact_of_one(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data")
    (alone,) = run_ranks(1, tmp_path, artifact_of, tmp_path / "data")
    assert run_ranks(2, tmp_path, artifact_of, tmp_path / "data") == [alone, alone]
