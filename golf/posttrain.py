"""What follows the last training step: score, calibrate, quantize, pack, score again, account for every byte.

A function from a finished checkpoint to an artifact and final.json, so it can be run again alone. A rehearsal of all of
it on fresh weights comes before the training clock starts: half of all lost record runs died after training.
"""

import functools
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import golf
from golf.artifact.budget import ByteLedger, code_bytes
from golf.artifact.container import load_artifact
from golf.checkpoint import Checkpoint
from golf.config import QuantConfig, Recipe
from golf.data.bytes import byte_counter
from golf.data.shards import Dataset, read_shard
from golf.distributed import World
from golf.errors import BadFileError
from golf.evaluate import Score, ValidationStream, evaluate
from golf.files import sha256_bytes, write_bytes, write_json
from golf.log import Log
from golf.model.gpt import GPT
from golf.model.init import build_model
from golf.model.plan import LayerPlan, plan_layers
from golf.quant.calibration import CalibrationSet, collect_hessians
from golf.quant.pipeline import Outcome, dequantize_weights, quantize_and_score
from golf.run_folder import RunFolder, versions
from golf.train_state import open_loader


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, one validation stream and one plan: what scoring any set of weights of a recipe needs."""

    recipe: Recipe
    dataset: Dataset
    world: World
    model: GPT
    plan: LayerPlan
    stream: ValidationStream

    @classmethod
    def build(cls, recipe: Recipe, dataset: Dataset, world: World, *, looping: bool) -> "Bench":
        """Build the model once; weights are swapped in place afterwards."""
        world.limit_threads(recipe.run.cpu_threads)
        dtype = getattr(torch, recipe.run.dtype)
        model = build_model(recipe.model, seed=recipe.run.seed, dtype=dtype, device=world.device)
        plan = plan_layers(recipe.model, looping=looping)
        return cls(recipe, dataset, world, model, plan, validation_stream(recipe, dataset))

    def load(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put `weights` into the model; return them on its device, apart from it."""
        self.model.load_state_dict(weights)
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def score(self, log: Log, label: str, *, limit_batches: int | None = None) -> Score:
        """Score the weights that the model holds."""
        with log.progress(len(self.stream), label) as bar:
            return evaluate(
                self.model,
                self.stream,
                plan=self.plan,
                world=self.world,
                limit_batches=limit_batches,
                advance=lambda count: bar.advance(count * self.world.size),
            )

    def hessians(self, log: Log, config: QuantConfig) -> dict[str, Tensor]:
        """Collect the Hessians of the weights that the model holds."""
        sizes = [len(read_shard(path)) for path in self.dataset.train]
        calibration = CalibrationSet.draw(self.dataset.train, sizes, config, self.recipe.data.seq_len)
        with log.progress(len(calibration.units), "calibrate") as bar:
            return collect_hessians(
                self.model,
                calibration,
                plan=self.plan,
                world=self.world,
                advance=lambda count: bar.advance(count * self.world.size),
            )

    def quantize(
        self,
        weights: Mapping[str, Tensor],
        hessians: Mapping[str, Tensor],
        config: QuantConfig,
        *,
        limit_batches: int | None = None,
    ) -> Outcome:
        """Quantize `weights`, score what the artifact says."""
        return quantize_and_score(
            self.model,
            weights,
            hessians,
            self.stream,
            config=config,
            header={"model": self.recipe.to_dict()["model"], "run": {"dtype": self.recipe.run.dtype}},
            plan=self.plan,
            world=self.world,
            limit_batches=limit_batches,
        )


def validation_stream(recipe: Recipe, dataset: Dataset) -> ValidationStream:
    """Open the validation tokens of `dataset` with their byte counter."""
    counter = byte_counter(dataset, recipe.model.vocab_size)
    return ValidationStream(dataset.val_tokens(), counter, recipe.eval, dataset.bos_id)


def artifact_weights(path: Path, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read an artifact's weights as a state dict like `template`; BadFileError if it is of another model."""
    try:
        return dequantize_weights(load_artifact(path).tensors, template)
    except ValueError as error:
        raise BadFileError(path, f"it does not fit the run's model ({error})", "use the artifact of this run") from None


def checkpoint_weights(checkpoint: Checkpoint, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a checkpoint's weights as a state dict like `template`; BadFileError if they are of another model."""
    weights = checkpoint.tensors("model/")
    names = sorted(weights.keys() | template.keys())
    if wrong := [name for name in names if _shape(weights, name) != _shape(template, name)]:
        reason = f"its tensors do not fit its recipe ({wrong[0]})"
        raise BadFileError(checkpoint.path, reason, "use a checkpoint of this recipe")
    return weights


def byte_ledger(artifact: bytes) -> ByteLedger:
    """Account for an artifact and the code that runs it, against 16,000,000 bytes."""
    return ByteLedger(model_bytes=len(artifact), code_bytes=_own_code_bytes())


def ledger_row(ledger: ByteLedger) -> dict[str, Any]:
    """Return the ledger's figures under the names that tables use."""
    return {
        "model_bytes": ledger.model_bytes,
        "code_bytes": ledger.code_bytes,
        "total_bytes": ledger.total_bytes,
        "headroom_bytes": ledger.headroom,
        "fits": ledger.fits,
    }


def rehearse(recipe: Recipe, dataset: Dataset, world: World, log: Log) -> None:
    """Run every phase once on fresh weights: a backward of each graph, calibration, artifact, a sliver of evaluation.

    Leaves nothing behind. Raises ValueError if a parameter gets no gradient in any graph, and whatever the phases
    themselves would have raised after training.
    """
    started = time.perf_counter()
    dataset.check_vocab(recipe.model.vocab_size)
    bench = Bench.build(recipe, dataset, world, looping=recipe.model.loop is not None)
    _rehearse_backward(bench)
    short = _sliver(recipe.quant)
    weights = bench.load(_stirred(bench.model.state_dict()))
    outcome = bench.quantize(weights, bench.hessians(log, short), short, limit_batches=1)
    byte_ledger(outcome.artifact)
    log.event("rehearsal", seconds=round(time.perf_counter() - started, 3), artifact_bytes=len(outcome.artifact))


def finish(
    recipe: Recipe, dataset: Dataset, world: World, *, checkpoint: Checkpoint, folder: RunFolder, log: Log
) -> dict[str, Any]:
    """Turn a finished checkpoint into an artifact; write it and final.json; return what final.json says."""
    started = time.perf_counter()
    bench = Bench.build(recipe, dataset, world, looping=checkpoint.manifest.looping)
    weights = bench.load(checkpoint_weights(checkpoint, bench.model.state_dict()))
    score = bench.score(log, "evaluate")
    log.event("evaluated", step=checkpoint.manifest.step, weights=checkpoint.manifest.boundary, **score.to_dict())
    hessians = bench.hessians(log, recipe.quant)
    outcome = bench.quantize(weights, hessians, recipe.quant)
    ledger = byte_ledger(outcome.artifact)
    summary: dict[str, Any] = {
        "run": folder.name,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "dataset_digest": dataset.digest(),
        "seed": recipe.run.seed,
        "boundary": checkpoint.manifest.boundary,
        "checkpoint_sha256": checkpoint.manifest.data_sha256,
        "steps": checkpoint.manifest.step,
        "train_seconds": checkpoint.manifest.elapsed_seconds,
        "world_size": world.size,
        "unquantized": score.to_dict(),
        "quantized": outcome.score.to_dict(),
        "quantization_gap_bpb": outcome.score.val_bpb - score.val_bpb,
        "artifact": {"file": folder.artifact.name, "sha256": sha256_bytes(outcome.artifact), **ledger_row(ledger)},
        "posttrain_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(world),
        "versions": versions(),
    }
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


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


@functools.cache
def _own_code_bytes() -> int:
    """Pack golf's own modules once a process: a submission today would ship all of them."""
    return code_bytes(sorted(Path(golf.__file__).parent.rglob("*.py")))


def _rehearse_backward(bench: Bench) -> None:
    loader = open_loader(bench.recipe, bench.dataset, bench.world)
    batch = loader.next_step()[0].to(bench.world.device)
    loader.close()
    for looping in (False, True):
        bench.model(batch, plan=plan_layers(bench.recipe.model, looping=looping)).mean().backward()
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
    return replace(config, calibration_batches=1, calibration_windows=min(4, config.calibration_windows))
