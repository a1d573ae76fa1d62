"""The value embedding: one projected table, scaled once for all layers and once for each."""

import torch

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.parts.value_embedding import AddValueEmbedding, ValueEmbedding
from golf.part_config import ValueEmbeddingConfig
from tests.pico import pico_recipe

TOKENS = torch.tensor([[3, 1, 3], [0, 60, 7]])


def part() -> ValueEmbedding:
    return ValueEmbedding(pico_recipe().model, ValueEmbeddingConfig(dim=8, layers=(3,)))


@torch.no_grad()
def test_a_token_is_its_scaled_projected_row() -> None:
    table = part()
    found = table(TOKENS, Hooks())
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(found[1, 1], 0.1 * table.proj.weight @ table.table.weight[60])
    assert torch.equal(found[0, 0], found[0, 2])


@torch.no_grad()
def test_the_layers_scale_multiplies_what_is_added_to_each_head() -> None:
    shared = part()(TOKENS, Hooks())
    v = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    add = AddValueEmbedding()
    add.scale.fill_(-2.0)
    empty = torch.empty(0)
    found = add(v, Context(empty, empty, 3, empty, empty, PLAIN, {}, [], shared))
    torch.testing.assert_close(found[:, :, 0], v[:, :, 0] - 2 * shared[..., :8])
    torch.testing.assert_close(found[:, :, 1], v[:, :, 1] - 2 * shared[..., 8:])
