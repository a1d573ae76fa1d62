"""The recurrent carry."""

from typing import Any

import pytest
import torch

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.parts.carry import Carry
from golf.model.plan import Visit, plan_layers
from golf.part_config import CarryConfig, LoopConfig
from golf.roles import Role, role_of
from tests.pico import pico_batch, pico_model, pico_recipe

LOOP = LoopConfig(start=3, end=5, extra_passes=2)
BETA = (1.56, 1.85, 2.13)
ALPHA = ((0.23, 0.04, 0.03), (0.13, -0.34, 0.01), (0.06, 0.19, -0.02))


def visit(layer: int, pass_index: int) -> Visit:
    return Visit(slot=0, layer=layer, pass_index=pass_index, pushes=False, skip_row=None)


def remembering(memory: dict[str, torch.Tensor]) -> Context:
    unused: Any = None
    return Context(unused, unused, 1, unused, unused, PLAIN, memory, [])


def test_a_first_pass_goes_on_unchanged_and_is_remembered_without_its_graph() -> None:
    carry, remembered = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA)), dict[str, torch.Tensor]()
    y = torch.randn(2, 3, 4, requires_grad=True)
    assert carry(y, visit(4, 0), remembering(remembered)) is y
    assert torch.equal(remembered["carry.4"], y)
    assert not remembered["carry.4"].requires_grad


@pytest.mark.parametrize("pass_index", [1, 2])
@pytest.mark.parametrize("layer", [3, 4, 5])
def test_a_later_pass_mixes_in_all_first_passes(layer: int, pass_index: int) -> None:
    carry = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA))
    remembered = {f"carry.{j}": torch.randn(2, 3, 4) for j in (3, 4, 5)}
    before = {j: tensor.clone() for j, tensor in remembered.items()}
    y = torch.randn(2, 3, 4)
    expected = BETA[layer - 3] * y + sum(ALPHA[layer - 3][j - 3] * before[f"carry.{j}"] for j in (3, 4, 5))
    torch.testing.assert_close(carry(y, visit(layer, pass_index), remembering(remembered)), expected)
    assert all(torch.equal(remembered[j], before[j]) for j in before)  # written by first passes only


def test_layers_outside_the_loop_are_left_alone() -> None:
    y, remembered = torch.randn(1, 2, 3), dict[str, torch.Tensor]()
    assert Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA))(y, visit(6, 0), remembering(remembered)) is y
    assert remembered == {}


def test_rounded_to_bfloat16_it_holds_what_the_records_buffers_held() -> None:
    carry = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA, round_to_bfloat16=True))
    assert carry.recur_beta.tolist() == [1.5625, 1.8515625, 2.125]
    assert carry.recur_alpha.tolist() == [
        [0.23046875, 0.0400390625, 0.030029296875],
        [0.1298828125, -0.33984375, 0.010009765625],
        [0.06005859375, 0.1904296875, -0.02001953125],
    ]


def test_learned_it_is_trained_from_the_given_values() -> None:
    more = ("model.carry.learn=true", "model.carry.beta=[1.0,1.0]", "model.carry.alpha=[[0.0,0.0],[0.0,0.0]]")
    model = pico_model(pico_recipe(*more), stir=0.0)
    neutral = pico_model(pico_recipe(), stir=0.0)
    batch, plan = pico_batch(2, 23), plan_layers(model.config, looping=True)
    assert torch.equal(model(batch, plan=plan), neutral(batch, plan=plan))
    model = pico_model(pico_recipe(*more))  # stirred: a fresh model's silent branches hide the loop from its head
    model(batch, plan=plan).mean().backward()
    trained = dict(model.named_parameters())
    for name in ("carry.recur_beta", "carry.recur_alpha"):
        gradient = trained[name].grad
        assert gradient is not None
        assert bool((gradient != 0).all())
        assert role_of(name, trained[name].ndim) is Role.SCALAR


def test_frozen_it_is_no_parameter() -> None:
    model = pico_model(pico_recipe("model.carry.beta=[1.25,0.75]", "model.carry.alpha=[[0.5,-0.25],[0.125,0.375]]"))
    assert not any(name.startswith("carry.") for name, _ in model.named_parameters())
    assert {name for name, _ in model.named_buffers()} == {"carry.recur_beta", "carry.recur_alpha"}
