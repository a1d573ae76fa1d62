"""The sparse gate on the attention output."""

import torch

from golf.model.parts.gate import AttentionGate
from golf.model_config import GateConfig
from tests.pico import pico_recipe

CONFIG = pico_recipe().model  # 4 heads


def a_gate(weight: torch.Tensor, *, scale: float = 1.0) -> AttentionGate:
    gate = AttentionGate(CONFIG, GateConfig(window=weight.shape[1], scale=scale))
    gate.weight.data = weight
    return gate


def test_it_halves_every_head_while_its_weights_are_zero() -> None:
    y = torch.randn(2, 5, 4, 8)
    assert torch.equal(a_gate(torch.zeros(4, 3))(y, y, torch.randn(2, 5, 32)), 0.5 * y)


def test_each_head_is_scaled_by_a_sigmoid_of_the_first_channels_of_the_normalized_input() -> None:
    generator = torch.Generator().manual_seed(0)
    y, n = torch.randn(2, 5, 4, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    weight = torch.randn(4, 3, generator=generator)
    found = a_gate(weight, scale=0.5)(y, y, n)
    for row, token, head in ((0, 0, 0), (1, 4, 3), (1, 2, 1)):
        dot = sum(float(weight[head, k] * n[row, token, k]) for k in range(3))
        expected = y[row, token, head] / (1 + torch.exp(torch.tensor(-0.5 * dot)))
        torch.testing.assert_close(found[row, token, head], expected)
