"""What follows the last training step: score, calibrate, quantize, pack, score again, account for every byte.

A function from a finished checkpoint to an artifact and final.json, so it can be run again alone. A rehearsal of all of
it on fresh weights comes before the training clock starts: half of all lost record runs died after training.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from golf.artifact.budget import byte_ledger
from golf.checkpoint import Checkpoint
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import UsageError, require
from golf.evaluate import Score, evaluate
from golf.files import sha256_bytes, write_bytes, write_json
from golf.log import Log
from golf.model.plan import plan_layers
from golf.quant.qat import fake_quantized_forward
from golf.quant_config import QuantConfig
from golf.ranks import VIRTUAL_RANKS
from golf.run_folder import RunFolder, versions
from golf.train_state import open_loader
from golf.workbench import Workbench, checkpoint_weights


def rehearse(recipe: Recipe, dataset: Dataset, world: World, log: Log) -> None:
    """Run every phase once on fresh weights: a backward of each graph, calibration, artifact, a sliver of evaluation.

    Leaves nothing behind. Raises ValueError if a parameter gets no gradient in any graph, and whatever the phases
    themselves would have raised after training.
    """
    started = time.perf_counter()
    bench = Workbench.build(recipe, dataset, world, looping=recipe.model.loop is not None)
    _rehearse_backward(bench)
    short = _sliver(recipe.quant)
    weights = bench.load(_stirred(bench.model.state_dict()))
    outcome = bench.quantize(weights, bench.hessians(log, short), short, limit_batches=1, quick=True)
    _values(bench, outcome.score, limit_batches=1)
    byte_ledger(outcome.artifact)
    log.event("rehearsal", seconds=round(time.perf_counter() - started, 3))


def finish(
    recipe: Recipe,
    dataset: Dataset,
    world: World,
    *,
    checkpoint: Checkpoint,
    folder: RunFolder,
    log: Log,
    unbuilt: Sequence[str],
) -> dict[str, Any]:
    """Turn a finished checkpoint into an artifact; write it and final.json; return what final.json says.

    `unbuilt` names the recipe's values that no tool acts on, for the summary. Raises UsageError, with the way on, if
    no pruning makes the artifact as small as the recipe wants it.
    """
    started = time.perf_counter()
    bench = Workbench.build(recipe, dataset, world, looping=checkpoint.manifest.looping)
    weights = bench.load(checkpoint_weights(checkpoint, bench.model.state_dict()))
    score = bench.score(log, "evaluate")
    unquantized = _values(bench, score)
    log.event("evaluated", step=checkpoint.manifest.step, weights=checkpoint.manifest.boundary, **unquantized)
    hessians = bench.hessians(log, recipe.quant)
    try:
        outcome = bench.quantize(weights, hessians, recipe.quant)
    except UsageError as error:
        way_on = f"golf requant {folder.path} --try prune_to_bytes=…"
        raise UsageError(f"{error}; the training is kept, find what fits with: {way_on}") from None
    ledger = byte_ledger(outcome.artifact)
    summary: dict[str, Any] = {
        "run": folder.name,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "dataset_digest": dataset.digest(),
        "seed": recipe.run.seed,
        "boundary": checkpoint.manifest.boundary,
        "looping": checkpoint.manifest.looping,
        "checkpoint_sha256": checkpoint.manifest.data_sha256,
        "steps": checkpoint.manifest.step,
        "train_seconds": checkpoint.manifest.elapsed_seconds,
        "world_size": world.size,
        "unquantized": unquantized,
        "quantized": _values(bench, outcome.score),
        "quantization_gap_bpb": outcome.score.val_bpb - score.val_bpb,
        "artifact": {"file": folder.artifact.name, "sha256": sha256_bytes(outcome.artifact), **ledger.to_dict()},
        "posttrain_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(world),
        **bench.model.kernels.names(),
        "versions": versions(),
    }
    if unbuilt:
        summary["unbuilt"] = list(unbuilt)
    if world.is_main:
        write_bytes(folder.artifact, outcome.artifact)
        write_json(folder.final, summary)
    log.event("finished", **{key: value for key, value in summary.items() if key != "versions"})
    return summary


def peak_memory(world: World) -> int:
    """Peak memory of this process so far in bytes: the GPU's if there is one, else resident memory."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _values(bench: Workbench, score: Score, *, limit_batches: int | None = None) -> dict[str, Any]:
    """Return the score of the weights that the model holds, with what the published scripts would say if wanted."""
    values: dict[str, Any] = dict(score.to_dict())
    if bench.recipe.compat.eval_drop_tail:
        stream = replace(bench.stream, whole_batches_of=VIRTUAL_RANKS)
        few = f"compat.eval_drop_tail leaves no target to score: no rank of {VIRTUAL_RANKS} has a whole batch"
        require(len(stream) > 0, f"{few}; lower eval.batch_tokens or switch it off")
        dropped = evaluate(bench.losses, stream, world=bench.world, limit_batches=limit_batches)
        values["drop_tail"] = dropped.to_dict()
    return values


def _rehearse_backward(bench: Workbench) -> None:
    loader = open_loader(bench.recipe, bench.dataset, bench.world)
    batch = loader.next_step()[0].to(bench.world.device)
    loader.close()
    for looping in (False, True):
        plan = plan_layers(bench.recipe.model, looping=looping)
        bench.model(batch, plan=plan, auxiliary=True).mean().backward()
    if bench.recipe.schedule.late_qat_below > 0:
        fake_quantized_forward(bench.model, batch, plan=bench.plan, config=bench.recipe.quant).mean().backward()
    silent = [name for name, parameter in bench.model.named_parameters() if parameter.grad is None]
    bench.model.zero_grad()
    if silent:
        raise ValueError(f"no gradient reaches {', '.join(silent)}; they would never be trained")


def _stirred(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a little noise: what starts at zero would show calibration no activation, as trained weights never do."""
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    return {name: tensor + 0.02 * noise[name].to(tensor) for name, tensor in weights.items()}


def _sliver(config: QuantConfig) -> QuantConfig:
    windows = min(4, config.calibration_windows)
    return replace(config, calibration_batches=1, calibration_windows=windows, prune_to_bytes=None)
