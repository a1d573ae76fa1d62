"""What a training run consists of between two steps; what a checkpoint holds and a resume restores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.averaging import Averages
from golf.checkpoint import Checkpoint
from golf.config import Recipe
from golf.data.loader import PackedLoader
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import BadFileError
from golf.model.gpt import GPT
from golf.model.init import build_model
from golf.optim.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything that a checkpoint holds and a resume restores."""

    recipe: Recipe
    model: GPT
    optimizer: Optimizer
    averages: Averages
    loader: PackedLoader

    @classmethod
    def build(cls, recipe: Recipe, dataset: Dataset, world: World) -> "TrainState":
        """Build the state before the first step."""
        world.limit_threads(recipe.run.cpu_threads)
        dtype = getattr(torch, recipe.run.dtype)
        model = build_model(recipe.model, seed=recipe.run.seed, dtype=dtype, device=world.device)
        optimizer = Optimizer(model, recipe.optim, dtype=dtype, world=world)
        return cls(recipe, model, optimizer, Averages(model, recipe.average), open_loader(recipe, dataset, world))

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


def open_loader(recipe: Recipe, dataset: Dataset, world: World) -> PackedLoader:
    """Open the training stream of `dataset` as this rank sees it."""
    return PackedLoader(
        dataset.train,
        batch_tokens=recipe.data.batch_tokens,
        max_doc_len=recipe.data.seq_len,
        bos_id=dataset.bos_id,
        rank=world.rank,
        world_size=world.size,
        rows_per_micro_batch=recipe.run.rows_per_micro_batch,
    )
