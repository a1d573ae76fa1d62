"""Ternary weights: their codes and scales, what acts, and the gradient."""

import torch

from golf.model.parts.ternary import TernaryLinear, expand_ternary, ternarize
from golf.model.plan import plan_layers
from golf.part_config import TernaryConfig
from tests.pico import pico_batch, pico_model, pico_recipe


def test_codes_round_to_the_mean_magnitude_of_their_group() -> None:
    weight = torch.tensor([[0.1, -0.5, 0.9, -0.1, 3.0, 1.0, -2.0, 0.0]])
    codes, scale = ternarize(weight, 4)
    assert torch.equal(scale, torch.tensor([[0.4, 1.5]]).half().float())
    assert codes.tolist() == [[0, -1, 1, 0, 1, 1, -1, 0]]
    assert codes.dtype == torch.int8


def test_a_group_of_zeros_is_zero() -> None:
    codes, scale = ternarize(torch.zeros(2, 6), 3)
    assert not expand_ternary(codes, scale).any()


def test_the_map_multiplies_by_codes_times_scales() -> None:
    linear = TernaryLinear(8, 5, TernaryConfig(group=4))
    codes, scale = ternarize(linear.weight.detach(), 4)
    x = torch.randn(3, 8)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for out in range(5):
        for i in range(8):
            expected[:, out] += x[:, i].double() * int(codes[out, i]) * float(scale[out, i // 4])
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_what_acts_is_ternary_to_the_bit() -> None:
    linear = TernaryLinear(8, 5, TernaryConfig(group=4))
    codes, scale = ternarize(linear.weight.detach(), 4)
    assert torch.equal(linear.acting_weight(), expand_ternary(codes, scale))


def test_the_gradient_passes_straight_through() -> None:
    linear, x, up = TernaryLinear(8, 5, TernaryConfig(group=4)), torch.randn(3, 8), torch.randn(3, 5)
    linear(x).backward(up)
    torch.testing.assert_close(linear.weight.grad, up.T @ x)


def test_attention_and_mlp_act_ternary_and_nothing_else_does() -> None:
    model = pico_model(pico_recipe("model.ternary.group=8", "schedule.late_qat_below=0"))
    ternary = {name for name, module in model.named_modules() if isinstance(module, TernaryLinear)}
    matrices = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    assert ternary == {f"blocks.{layer}.{matrix}" for layer in range(4) for matrix in matrices}


def test_small_changes_of_a_weight_change_nothing() -> None:
    model, batch = pico_model(pico_recipe("model.ternary.group=8", "schedule.late_qat_below=0")), pico_batch(2, 23)
    plan = plan_layers(model.config, looping=True)
    with torch.no_grad():
        before = model(batch, plan=plan)
        weight = model.get_parameter("blocks.1.mlp.fc.weight")
        flat = weight.view(-1, 8)
        flat[:, 0], flat[:, 1] = flat[:, 0].abs() + 3.0, flat[:, 1].abs() + 3.0  # both codes 1
        base = model(batch, plan=plan)
        flat[:, 0] += 0.25
        flat[:, 1] -= 0.25  # the mean magnitude of the group stays
        after = model(batch, plan=plan)
    assert not torch.equal(base, before)
    torch.testing.assert_close(after, base, rtol=1e-5, atol=1e-5)
