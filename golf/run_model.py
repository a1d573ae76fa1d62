"""The model of a recipe as a run computes with it: its kernels chosen, compiled if the recipe wants it."""

import torch

from golf.compilation import compile_model
from golf.config import Recipe, RunConfig
from golf.data.documents import LENGTHS
from golf.distributed import World
from golf.errors import EnvironmentUnfitError
from golf.kernels.table import PLAIN, choose_kernels
from golf.model.gpt import GPT
from golf.model.init import build_model


def build_run_model(recipe: Recipe, world: World) -> GPT:
    """Build the model with its first weights on this rank's device.

    Raises EnvironmentUnfitError if the recipe names an attention that is not installed, or wants to compile one that
    looks at its sizes on the way, as the padded one does.
    """
    world.limit_threads(recipe.run.cpu_threads)
    dtype = getattr(torch, recipe.run.dtype)
    kernels = choose_kernels(world.device, dtype, wanted=recipe.run.kernels, attention=recipe.run.attention)
    if recipe.run.compile != "off" and kernels.attention is PLAIN.attention:
        told = f"run.compile is {recipe.run.compile!r}, but the attention here is {kernels.attention_description}"
        raise EnvironmentUnfitError(f"{told}, which does not compile; set run.compile=off")
    model = build_model(recipe.model, seed=recipe.run.seed, dtype=dtype, device=world.device, kernels=kernels)
    compile_model(model, recipe.run.compile)
    return model


def known_lengths(config: RunConfig) -> int:
    """Return how many lengths of segment boundaries a run may see: one if it compiles, which takes long for each."""
    return LENGTHS if config.compile == "off" else 1
