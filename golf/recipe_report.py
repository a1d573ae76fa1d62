"""What a recipe will do, before it does it."""

import dataclasses
from typing import Any

import torch

from golf.config import Recipe
from golf.model.gpt import GPT
from golf.model.init import count_parameters
from golf.model.plan import plan_layers
from golf.schedule import lr_multiplier

_TABLES = [field.name for field in dataclasses.fields(Recipe)]


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return digest, parameters, layer order with the loop off and on, what is not built, and the predicted rates."""
    states = {"loop off": False, "loop on": True} if recipe.model.loop else {"layers": False}
    plans = {name: plan_layers(recipe.model, looping=looping) for name, looping in states.items()}
    return {
        "digest": recipe.digest,
        "parameters": _parameters(recipe),
        "layers": {name: {"encoder": plan.encoder, "decoder": plan.decoder} for name, plan in plans.items()},
        "unbuilt": unbuilt(recipe),
        "schedule": [_rates(recipe, at, progress) for at, progress in (("start", 0.0), ("middle", 0.5), ("end", 1.0))],
    }


def unbuilt(recipe: Recipe) -> list[str]:
    """Name the values that no tool acts on yet: they belong to the record, whose published score needs them."""
    wanted = {"eval.sliding_stride": recipe.eval.sliding_stride, "ttt": recipe.ttt}
    return [name for name, value in wanted.items() if value is not None]


def diff_recipes(first: Recipe, second: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (table.key, value in `first`, value in `second`) of all that differs; None where a part is off."""
    one, other = flat_values(first), flat_values(second)
    keys = [*one, *(key for key in other if key not in one)]
    pairs = [(key, one.get(key), other.get(key)) for key in keys if key not in ("name", "description")]
    return sorted((row for row in pairs if row[1] != row[2]), key=lambda row: _TABLES.index(row[0].split(".")[0]))


def flat_values(recipe: Recipe) -> dict[str, Any]:
    """Return every value of `recipe` under its dotted path, what is off left out."""
    return _flat(recipe.to_dict())


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Name every value by its dotted path."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _parameters(recipe: Recipe) -> int:
    """Count without storing: on the meta device a model has shapes alone."""
    with torch.device("meta"):
        return count_parameters(GPT(recipe.model))


def _rates(recipe: Recipe, at: str, progress: float) -> dict[str, Any]:
    multiplier = lr_multiplier(recipe.schedule, progress)
    names = ("matrix_lr", "embed_lr", "head_lr", "scalar_lr")
    rates = {name: rate * multiplier for name in names if (rate := getattr(recipe.optim, name)) is not None}
    return {"at": at, "lr_multiplier": multiplier, **rates}
