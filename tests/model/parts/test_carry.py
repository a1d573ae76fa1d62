"""The frozen recurrent carry."""

import pytest
import torch

from golf.model.parts.carry import Carry
from golf.model.plan import Visit
from golf.model_config import CarryConfig, LoopConfig

LOOP = LoopConfig(start=3, end=5, extra_passes=2)
BETA = (1.56, 1.85, 2.13)
ALPHA = ((0.23, 0.04, 0.03), (0.13, -0.34, 0.01), (0.06, 0.19, -0.02))


def visit(layer: int, pass_index: int) -> Visit:
    return Visit(slot=0, layer=layer, pass_index=pass_index, pushes=False, skip_row=None)


def test_a_first_pass_goes_on_unchanged_and_is_remembered_without_its_graph() -> None:
    carry, remembered = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA)), dict[int, torch.Tensor]()
    y = torch.randn(2, 3, 4, requires_grad=True)
    assert carry(y, visit(4, 0), remembered) is y
    assert torch.equal(remembered[4], y)
    assert not remembered[4].requires_grad


@pytest.mark.parametrize("pass_index", [1, 2])
@pytest.mark.parametrize("layer", [3, 4, 5])
def test_a_later_pass_mixes_in_all_first_passes(layer: int, pass_index: int) -> None:
    carry = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA))
    remembered = {j: torch.randn(2, 3, 4) for j in (3, 4, 5)}
    before = {j: tensor.clone() for j, tensor in remembered.items()}
    y = torch.randn(2, 3, 4)
    expected = BETA[layer - 3] * y + sum(ALPHA[layer - 3][j - 3] * before[j] for j in (3, 4, 5))
    torch.testing.assert_close(carry(y, visit(layer, pass_index), remembered), expected)
    assert all(torch.equal(remembered[j], before[j]) for j in before)  # written by first passes only


def test_layers_outside_the_loop_are_left_alone() -> None:
    y, remembered = torch.randn(1, 2, 3), dict[int, torch.Tensor]()
    assert Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA))(y, visit(6, 0), remembered) is y
    assert remembered == {}


def test_rounded_to_bfloat16_it_holds_what_the_records_buffers_held() -> None:
    carry = Carry(LOOP, CarryConfig(beta=BETA, alpha=ALPHA, round_to_bfloat16=True))
    assert carry.recur_beta.tolist() == [1.5625, 1.8515625, 2.125]
    assert carry.recur_alpha.tolist() == [
        [0.23046875, 0.0400390625, 0.030029296875],
        [0.1298828125, -0.33984375, 0.010009765625],
        [0.06005859375, 0.1904296875, -0.02001953125],
    ]
