"""Both layouts do the same: the same weights and gradients go in, the same step comes out."""

import pytest
import torch
from torch import Tensor

from golf.bench import layout
from golf.bench.layout import time_layouts
from golf.distributed import single_world
from golf.model.init import build_model
from golf.optim.groups import split_parameters
from tests.pico import pico_recipe

WORLD = single_world(torch.device("cpu"))
RECIPE = pico_recipe("optim.row_normalize=false")
F32 = torch.float32


@pytest.fixture
def matrices() -> dict[str, Tensor]:
    model = build_model(RECIPE.model, seed=0, dtype=F32, device=WORLD.device)
    return {name: parameter.detach() for name, parameter in split_parameters(model).matrix.items()}


def test_every_part_of_both_layouts_is_timed() -> None:
    found = time_layouts(RECIPE, WORLD, seconds=0.01)
    parts = [f"layout/{name}/{part}" for name in ("layers", "banks") for part in ("weights", "optimizer")]
    assert [one.name for one in found.measurements] == parts
    assert all(one.seconds > 0 for one in found.measurements)


def test_a_step_of_both_layouts_gives_the_same_weights(matrices: dict[str, Tensor]) -> None:
    used = [name for name in matrices if name.startswith("blocks.1.")] * 2 + list(matrices)
    results = []
    for made in (layout._by_layer(matrices, RECIPE, F32, WORLD), layout._by_shape(matrices, RECIPE, F32)):
        for step in range(2):
            torch.manual_seed(step)  # other gradients each time, or momentum and gradient would have one direction
            layout._use(made, used, F32)()
            made.step()
        results.append({name: made.weight(name).detach() for name in matrices})
    for name, weight in results[0].items():
        assert not torch.equal(weight, matrices[name])
        torch.testing.assert_close(weight, results[1][name], rtol=1e-5, atol=1e-6)
