"""One model and one validation stream through which every set of weights of a recipe is scored and quantized.

Weights -> codes -> artifact bytes -> weights -> score: what every quantized number goes through. The model is built
once; weights are swapped in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from golf.artifact.container import load_artifact, pack_bytes, unpack_bytes
from golf.checkpoint import Checkpoint
from golf.config import Recipe
from golf.data.bytes import byte_counter
from golf.data.shards import Dataset, read_shard
from golf.distributed import World
from golf.errors import BadFileError
from golf.evaluate import Score, TokenLosses, ValidationStream, evaluate
from golf.log import Log
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan, plan_layers
from golf.quant.calibration import CalibrationSet, collect_hessians
from golf.quant.pipeline import dequantize_weights, needs_hessians, quantize_weights
from golf.quant.prune import pack_within
from golf.quant_config import QuantConfig
from golf.recording import can_record
from golf.roles import is_exported
from golf.run_model import build_run_model, known_lengths


@dataclass(frozen=True, slots=True)
class Outcome:
    """One quantization: the artifact's bytes and the score of the weights read back from them."""

    artifact: bytes
    score: Score


@dataclass(frozen=True, slots=True)
class Workbench:
    """One model, one validation stream and one plan: what scoring any set of weights of a recipe needs."""

    recipe: Recipe
    dataset: Dataset
    world: World
    model: GPT
    plan: LayerPlan
    losses: TokenLosses
    stream: ValidationStream

    @classmethod
    def build(cls, recipe: Recipe, dataset: Dataset, world: World, *, looping: bool) -> "Workbench":
        """Build the model once; weights are swapped in place afterwards."""
        model = build_run_model(recipe, world)
        plan = plan_layers(recipe.model, looping=looping)
        losses = TokenLosses(model, plan, records=can_record(recipe.run, model.kernels, world.device))
        return cls(recipe, dataset, world, model, plan, losses, validation_stream(recipe, dataset))

    def load(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put `weights` into the model; return those that an artifact holds on its device, apart from it.

        What only training needs may be missing.
        """
        self.model.load_state_dict(self.model.state_dict() | dict(weights))
        return {name: tensor.clone() for name, tensor in exported(self.model.state_dict()).items()}

    def score(self, log: Log, label: str, *, limit_batches: int | None = None) -> Score:
        """Score the weights that the model holds."""
        with log.progress(len(self.stream), label) as bar:
            return evaluate(
                self.losses,
                self.stream,
                world=self.world,
                limit_batches=limit_batches,
                advance=lambda count: bar.advance(count * self.world.size),
            )

    def hessians(self, log: Log, config: QuantConfig) -> dict[str, Tensor]:
        """Collect the Hessians of the weights that the model holds; none if the method of `config` looks at none."""
        if not needs_hessians(config):
            return {}
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
        quick: bool = False,
    ) -> Outcome:
        """Quantize `weights`, pack them, load what the bytes say into the model, and score it.

        A `quick` one compresses with the least effort: its size says nothing.

        Rank 0 quantizes and packs; every rank decodes the same bytes, so all score the artifact itself. The model keeps
        the dequantized weights.
        """
        data = b""
        if self.world.is_main:
            ternary = self.recipe.model.ternary
            stored = quantize_weights(weights, hessians, config, ternary_group=ternary.group if ternary else None)
            header = {"model": self.recipe.to_dict()["model"], "run": {"dtype": self.recipe.run.dtype}}
            pack = partial(pack_bytes, config=header, codec=config.codec, quick=quick)
            data = pack_within(stored, config.prune_to_bytes, pack)
        data = self.world.share_bytes(data)
        self.load(dequantize_weights(unpack_bytes(data).tensors, exported(self.model.state_dict())))
        return Outcome(data, evaluate(self.losses, self.stream, world=self.world, limit_batches=limit_batches))


def validation_stream(recipe: Recipe, dataset: Dataset) -> ValidationStream:
    """Open the validation tokens of `dataset` with their byte counter."""
    counter = byte_counter(dataset, recipe.model.vocab_size)
    return ValidationStream(
        dataset.val_tokens(),
        counter,
        recipe.eval,
        dataset.bos_id,
        cross_documents=recipe.model.cross_documents,
        rounds_logits=recipe.compat.eval_logits_bf16,
        lengths=known_lengths(recipe.run),
    )


def artifact_weights(path: Path, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read an artifact's weights as the exported part of a state dict like `template`.

    Raises BadFileError if it is of another model.
    """
    try:
        return dequantize_weights(load_artifact(path).tensors, exported(template))
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


def exported(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what only training needs."""
    return {name: tensor for name, tensor in weights.items() if is_exported(name)}


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None
