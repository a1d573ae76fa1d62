"""What a recipe will do, before it does it."""

from typing import Any

import torch

from golf.config import Recipe
from golf.model.gpt import GPT
from golf.model.init import count_parameters
from golf.model.plan import plan_layers
from golf.schedule import lr_multiplier


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return digest, parameter count, layer order with the loop off and on, and the rates at start, middle and end."""
    states = {"loop off": False, "loop on": True} if recipe.model.loop else {"layers": False}
    plans = {name: plan_layers(recipe.model, looping=looping) for name, looping in states.items()}
    return {
        "digest": recipe.digest,
        "parameters": _parameters(recipe),
        "layers": {name: {"encoder": plan.encoder, "decoder": plan.decoder} for name, plan in plans.items()},
        "schedule": [_rates(recipe, at, progress) for at, progress in (("start", 0.0), ("middle", 0.5), ("end", 1.0))],
    }


def _parameters(recipe: Recipe) -> int:
    """Count without storing: on the meta device a model has shapes alone."""
    with torch.device("meta"):
        return count_parameters(GPT(recipe.model))


def _rates(recipe: Recipe, at: str, progress: float) -> dict[str, Any]:
    multiplier = lr_multiplier(recipe.schedule, progress)
    return {
        "at": at,
        "lr_multiplier": multiplier,
        "matrix_lr": recipe.optim.matrix_lr * multiplier,
        "embed_lr": recipe.optim.embed_lr * multiplier,
        "scalar_lr": recipe.optim.scalar_lr * multiplier,
    }
