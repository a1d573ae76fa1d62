"""How many bytes a run writes, from its recipe alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.averaging import Averages
from golf.config import Recipe
from golf.model.gpt import GPT
from golf.optim.forms import first_squares
from golf.optim.groups import split_parameters
from golf.roles import role_of
from golf.schedule import Moment, boundaries, moment, shadow_index

_META = torch.device("meta")  # shapes and dtypes alone: nothing is computed or stored


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of the tensors of each kind of checkpoint, and how many of each a run writes."""

    recipe: str
    seconds: float  # of training, by the recipe's clock
    full_bytes: int  # weights, averages and the optimizer's state
    shadow_bytes: int  # the shadows alone
    final_bytes: int  # the averaged weights that the run ends with; 0 if these are the raw ones
    full_count: int
    shadow_count: int

    @property
    def total_bytes(self) -> int:
        """All checkpoints of one run."""
        return self.full_bytes * self.full_count + self.shadow_bytes * self.shadow_count + self.final_bytes


def footprint(recipe: Recipe) -> Footprint:
    """Count what `recipe` writes when every phase it names is reached."""
    model = _shapes(recipe)
    averages = Averages(model, recipe.average)
    weights = _nbytes(model.state_dict())
    shadows = sum(map(_nbytes, averages.shadows.values()))
    kept = weights + _nbytes(averages.ema) + _nbytes(averages.swa) + shadows
    full_count, shadow_count = _count_files(recipe)
    return Footprint(
        recipe=recipe.name,
        seconds=recipe.schedule.max_seconds,
        full_bytes=kept + _optimizer_bytes(recipe, model),
        shadow_bytes=shadows,
        final_bytes=0 if recipe.average.use == "raw" else weights,
        full_count=full_count,
        shadow_count=shadow_count,
    )


def _shapes(recipe: Recipe) -> GPT:
    """Build the model without values, in the dtypes in which it trains."""
    with _META:
        model = GPT(recipe.model)
    for name, parameter in model.named_parameters():
        is_lookup = role_of(name, parameter.ndim).is_lookup
        parameter.data = parameter.data.to(_dtype(recipe) if is_lookup else torch.float32)
    return model


def _optimizer_bytes(recipe: Recipe, model: GPT) -> int:
    """Count Muon's momentum and mean squares, AdamW's two moments and step; the clip's few norms are left out."""
    groups = split_parameters(model)
    total = 0
    for matrix in groups.matrix.values():
        rows, columns = matrix.shape
        total += matrix.numel() * _dtype(recipe).itemsize
        total += _nbytes(first_squares(recipe.optim.muon, (1, rows, columns), _META))
    for group in (groups.embed, groups.scalar, groups.head):
        total += sum(2 * parameter.nbytes + torch.float32.itemsize for parameter in group.values())
    return total


def _count_files(recipe: Recipe) -> tuple[int, int]:
    """Walk the schedule through all its iterations; boundaries that fall on one step share a file."""
    schedule = recipe.schedule
    training_seconds = schedule.max_seconds - schedule.reserve_seconds
    full, shadows = 0, 0
    before: Moment | None = None
    for step in range(schedule.iterations + 1):
        elapsed = training_seconds * step / schedule.iterations
        began = before is not None and before.late_qat
        now = moment(recipe, step=step, elapsed_seconds=elapsed, qat_began=began)
        full += bool(boundaries(recipe, before, now))
        shadows += before is not None and shadow_index(recipe, before, now) is not None
        before = now
    return full + 1, shadows  # final_raw


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _dtype(recipe: Recipe) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, recipe.run.dtype)
    return dtype
