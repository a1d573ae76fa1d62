"""What a training run consists of between two steps; what a checkpoint holds and a resume restores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.averaging import Averages
from golf.checkpoint import Checkpoint
from golf.config import Recipe
from golf.data.loader import Loader, Stream
from golf.data.packed import PackedStream
from golf.data.sampled import SampledStream
from golf.data.sequential import SequentialStream
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import BadFileError
from golf.gradient import StepGradient
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.optim.optimizer import Optimizer
from golf.ranks import VIRTUAL_RANKS
from golf.run_model import build_run_model, known_lengths


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything that a checkpoint holds and a resume restores."""

    recipe: Recipe
    model: GPT
    optimizer: Optimizer
    averages: Averages
    loader: Loader
    gradient: StepGradient

    @classmethod
    def build(cls, recipe: Recipe, dataset: Dataset, world: World) -> "TrainState":
        """Build the state before the first step."""
        model, dtype = build_run_model(recipe, world), getattr(torch, recipe.run.dtype)
        optimizer = Optimizer(model, recipe.optim, dtype=dtype, world=world, clip=recipe.compat.clip)
        averages, loader = Averages(model, recipe.average), open_loader(recipe, dataset, world)
        return cls(recipe, model, optimizer, averages, loader, StepGradient(model, recipe))

    def forward_backward(self, plan: LayerPlan, *, late_qat: bool) -> Tensor:
        """Make the parameters' `.grad` that of the next step's mean loss; return this rank's mean loss ()."""
        return self.gradient.of(self.loader.next_step(), plan, late_qat=late_qat)

    def tensors(self) -> dict[str, Tensor]:
        """Return CPU copies of all tensors under model/, ema/, swa/, shadow/ and optim/. A collective."""
        model = {f"model/{name}": t.to("cpu", copy=True) for name, t in self.model.state_dict().items()}
        optim = {f"optim/{name}": tensor for name, tensor in self.optimizer.state().items()}
        return {**model, **self.averages.state(), **optim}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, written by any number of ranks. Raises BadFileError if it is of another model."""
        try:
            self.model.load_state_dict(checkpoint.tensors("model/"))
            kept = [key for key in ("ema", "swa") if getattr(self.averages, key)] + list(
                self.averages.shadow_sections()
            )
            saved = {f"{key}/{name}": t for key in kept for name, t in checkpoint.tensors(f"{key}/").items()}
            self.averages.load_state(saved, swa_count=int(checkpoint.manifest.averages.get("swa", {}).get("count", 0)))
            self.optimizer.load_state(checkpoint.tensors("optim/"))
        except (KeyError, RuntimeError) as error:
            reason = f"its tensors do not fit its recipe ({str(error).splitlines()[0]})"
            raise BadFileError(checkpoint.path, reason, "use a checkpoint of this recipe") from error
        self.loader.restore(checkpoint.manifest.loader)


def open_loader(recipe: Recipe, dataset: Dataset, world: World) -> Loader:
    """Open the training stream of `dataset` as this rank sees it."""
    return Loader(
        _open_stream(recipe, dataset, world),
        bos_id=dataset.bos_id,
        max_doc_len=recipe.data.seq_len,
        rank=world.rank,
        world_size=world.size,
        rows_per_micro_batch=recipe.run.rows_per_micro_batch,
        cross_documents=recipe.model.cross_documents,
        lengths=known_lengths(recipe.run),
    )


def _open_stream(recipe: Recipe, dataset: Dataset, world: World) -> Stream:
    paths, tokens, seq_len = dataset.train, recipe.data.batch_tokens, recipe.data.seq_len
    match recipe.data.loader:
        case "packed":
            group = world.size if recipe.compat.loader_group == "world" else VIRTUAL_RANKS
            return PackedStream.open(paths, batch_tokens=tokens, bos_id=dataset.bos_id, group_ranks=group)
        case "sequential":
            return SequentialStream.open(paths, batch_tokens=tokens, seq_len=seq_len)
        case "shuffled":
            return SampledStream.shuffled(paths, batch_tokens=tokens, seq_len=seq_len)
        case "coprime":
            return SampledStream.coprime(paths, batch_tokens=tokens, seq_len=seq_len)
