"""Gates on the attention output."""

import torch
import torch.nn.functional as F

from golf.model.init import build_model
from golf.model.parts.gate import AttentionGate
from golf.part_config import GateConfig
from tests.pico import pico_recipe

CPU = torch.device("cpu")
CONFIG = pico_recipe().model  # 4 heads


def a_gate(weight: torch.Tensor, *, scale: float = 1.0) -> AttentionGate:
    gate = AttentionGate(CONFIG, GateConfig(window=weight.shape[1], scale=scale))
    gate.weight.data = weight
    return gate


def gates_of(gate: AttentionGate, n: torch.Tensor) -> torch.Tensor:
    """The gates for the normalized input n, whose product with the weight attention makes."""
    assert gate.reads_input
    gates: torch.Tensor = gate(torch.empty(0), F.linear(n[..., : gate.weight.shape[1]], gate.weight))
    return gates


def test_it_halves_every_head_while_its_weights_are_zero() -> None:
    assert torch.equal(gates_of(a_gate(torch.zeros(4, 3)), torch.randn(2, 5, 32)), torch.full((2, 5, 4), 0.5))


def test_each_head_is_scaled_by_a_sigmoid_of_the_first_channels_of_the_normalized_input() -> None:
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(2, 5, 32, generator=generator)
    weight = torch.randn(4, 3, generator=generator)
    found = gates_of(a_gate(weight, scale=0.5), n)
    for row, token, head in ((0, 0, 0), (1, 4, 3), (1, 2, 1)):
        dot = sum(float(weight[head, k] * n[row, token, k]) for k in range(3))
        torch.testing.assert_close(found[row, token, head], 1 / (1 + torch.exp(torch.tensor(-0.5 * dot))))


def test_the_output_gate_reads_the_projected_query_and_starts_open() -> None:
    part = GateConfig(window=3, source="query", gain=2.0)
    gate = AttentionGate(CONFIG, part)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 32, generator=generator)
    assert torch.equal(gate(q), torch.ones(2, 5, 4))
    gate.weight.data = torch.randn(4, 3, generator=generator)
    dot = q[1, 2, :3].double() @ gate.weight[3].double()
    torch.testing.assert_close(gate(q)[1, 2, 3].double(), 2 * torch.sigmoid(dot))
    assert not gate.reads_input


def test_the_dense_gate_reads_all_channels_and_may_have_a_bias() -> None:
    gate = AttentionGate(CONFIG, GateConfig(window=32, scale=0.5, bias=4.0))
    n = torch.randn(2, 5, 32)
    torch.testing.assert_close(gates_of(gate, n), torch.full((2, 5, 4), torch.sigmoid(torch.tensor(4.0)).item()))
    gate.weight.data = torch.randn(4, 32)
    dot = 0.5 * n[0, 1].double() @ gate.weight[2].double() + 4.0  # the scale is the weights' alone
    torch.testing.assert_close(gates_of(gate, n)[0, 1, 2].double(), torch.sigmoid(dot))


def test_only_gates_with_a_deviation_start_at_random() -> None:
    still, moved = (
        build_model(pico_recipe("model.attention_gate.window=5", *more).model, seed=1, dtype=torch.float32, device=CPU)
        for more in ((), ("model.attention_gate.init_std=0.01",))
    )
    name = "blocks.2.attn.gate.weight"
    assert not still.get_parameter(name).any()
    assert 0.005 < float(moved.get_parameter(name).detach().std()) < 0.02
