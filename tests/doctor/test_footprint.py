"""The footprint: predicted bytes and numbers against those of real states and of a real run."""

import math

import pytest
import torch

from golf.averaging import Averages
from golf.checkpoint import load_checkpoint
from golf.checkpoint_manifest import manifest_paths
from golf.config import Recipe
from golf.distributed import single_world
from golf.doctor.footprint import footprint
from golf.model.init import build_model
from golf.optim.optimizer import Optimizer
from golf.recipe import load_recipe
from tests.pico import RECORD_PARTS, pico_recipe
from tests.session_tools import CPU, SHADOW_STEPS, STEPS, Place


def stored_bytes(recipe: Recipe) -> int:
    """Bytes of everything that a checkpoint after one step holds, from the things themselves."""
    dtype = getattr(torch, recipe.run.dtype)
    model = build_model(recipe.model, seed=1, dtype=dtype, device=CPU)
    optimizer = Optimizer(model, recipe.optim, dtype=dtype, world=single_world(CPU))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lr_multiplier=1.0, momentum=0.9)
    parts = (model.state_dict(), Averages(model, recipe.average).state(), optimizer.state())
    return sum(tensor.nbytes for part in parts for tensor in part.values())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("run.dtype=bfloat16",),
        RECORD_PARTS,
        ("run.dtype=bfloat16", "optim.muon=normuon"),
        ("optim.muon=mousse", "optim.row_normalize=false"),
        ("model.tie_embeddings=false", "optim.head_lr=0.01"),
        (
            "average.swa_every=0",
            "average.swa_below=0.2",
            "average.swa_of=raw",
            "average.shadows=[]",
            "average.shadow_snapshots=0",
        ),
    ],
    ids=lambda overrides: " ".join(overrides)[:40],
)
def test_a_full_checkpoint_has_the_bytes_that_are_predicted(overrides: tuple[str, ...]) -> None:
    recipe = pico_recipe(*overrides)
    assert footprint(recipe).full_bytes == stored_bytes(recipe)


def test_a_run_writes_as_many_checkpoints_as_are_predicted(finished: Place) -> None:
    predicted, folder = footprint(finished.recipe()), finished.run("done")
    files = {load_checkpoint(path).manifest.data_file for path in manifest_paths(folder)}
    assert (predicted.full_count, predicted.shadow_count) == (len(STEPS) - 1, len(SHADOW_STEPS))
    assert len(files) == predicted.full_count + 1


def test_a_run_writes_the_bytes_that_are_predicted(finished: Place) -> None:
    """All but AdamW's state in the first checkpoint, which is not there before the first step."""
    predicted, folder = footprint(finished.recipe()), finished.run("done")
    tensors = {path.stem: load_checkpoint(path).all_tensors() for path in manifest_paths(folder)}
    shadows = {path.stem: load_checkpoint(path).all_tensors() for path in manifest_paths(folder / "shadows")}
    held = {name: sum(tensor.nbytes for tensor in part.values()) for name, part in {**tensors, **shadows}.items()}
    adam = sum(t.nbytes for name, t in tensors["final_raw"].items() if name.startswith("optim/adam/"))
    assert held["init"] == predicted.full_bytes - adam
    assert held["final_raw"] == held["pre_qat"] == predicted.full_bytes
    assert held["final_ema"] == predicted.final_bytes
    assert {held[name] for name in SHADOW_STEPS} == {predicted.shadow_bytes}
    assert sum(held.values()) == predicted.total_bytes - adam


def test_boundaries_of_one_step_share_a_file() -> None:
    alone = footprint(pico_recipe("run.checkpoints=[]")).full_count
    assert footprint(pico_recipe("run.checkpoints=['frac_25', 'step_5']")).full_count == alone + 1


def test_a_run_that_ends_with_its_raw_weights_writes_them_once() -> None:
    assert footprint(pico_recipe("average.use=raw")).final_bytes == 0


def test_a_run_by_the_clock_passes_the_same_phases() -> None:
    steps = pico_recipe()
    clock = pico_recipe("schedule.max_seconds=60", "schedule.reserve_seconds=2")
    one, other = footprint(steps), footprint(clock)
    assert (one.full_count, one.shadow_count) == (other.full_count, other.shadow_count)
    assert (one.seconds, other.seconds) == (0.0, 60.0)


def test_the_record_s_footprint_is_what_its_formula_says() -> None:
    """Weights, three averages in float32, momentum in bfloat16, two moments each; the embedding is in bfloat16."""
    needed = footprint(load_recipe("pr1787"))
    embedding, matrices, all_values = 8192 * 512, 11 * (2 * 512 * 512 + 2 * 512 * 256 + 2 * 512 * 2048), 35_945_658
    scalars = all_values - embedding - matrices
    weights = 2 * embedding + 4 * (all_values - embedding)
    averages = 3 * 4 * all_values
    optimizer = 2 * matrices + 2 * 2 * embedding + 2 * 4 * scalars
    steps_of_adam = needed.full_bytes - weights - averages - optimizer
    assert 0 < steps_of_adam < 4 * 200  # a float32 for each tensor that is not a matrix
    assert needed.final_bytes == weights
    assert needed.full_count == 6  # init, momentum_full, warmdown_start, pre_loop, lr_floor, final_raw
    assert math.isclose(needed.total_bytes, 6 * needed.full_bytes + weights)
    assert needed.seconds == 600.0
