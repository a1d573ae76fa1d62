"""What the MLP does between its matrices, written out again in float64."""

import torch
from torch import Tensor

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.mlp import MLP
from golf.model.plan import plan_layers
from tests.pico import pico_model, pico_recipe


def case(*overrides: str) -> tuple[MLP, Tensor, dict[str, Tensor], Tensor]:
    """The second layer's MLP, an input, its weights in float64 (the last with the gain), and what it puts out."""
    model = pico_model(pico_recipe(*overrides))
    mlp = model.get_submodule("blocks.1.mlp")
    assert isinstance(mlp, MLP)
    n = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weights = {name: p.detach().double() for name, p in mlp.named_parameters()}
    empty = torch.empty(0)
    context = Context(empty, empty, 5, empty, empty, PLAIN, {}, [])
    gain = torch.randn(32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = mlp(n, context, Hooks(), plan_layers(model.config, looping=False).visits[1], gain)
    weights["proj.weight"] = gain.double()[:, None] * weights["proj.weight"]
    return mlp, n.double(), weights, out.double()


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_slope_zero_is_relu_squared() -> None:
    _, n, w, out = case("model.negative_slope=0.0")
    near(out, (n @ w["fc.weight"].T).clamp(min=0) ** 2 @ w["proj.weight"].T)


def test_star_relu_scales_and_shifts_each_channel_of_the_square() -> None:
    _, n, w, out = case("model.activation=star_relu", "model.negative_slope=0.25")
    z = n @ w["fc.weight"].T
    square = torch.where(z > 0, z, 0.25 * z) ** 2
    near(out, (w["activation.scale"] * square + w["activation.bias"]) @ w["proj.weight"].T)


def test_star_relu_starts_as_the_square() -> None:
    from golf.model.parts.activation import StarRelu

    part = StarRelu(pico_recipe().model, 3)
    torch.testing.assert_close(part(torch.tensor([2.0, -2.0, 0.0])), torch.tensor([4.0, 1.0, 0.0]))


def test_swiglu_multiplies_by_a_silu_gate() -> None:
    _, n, w, out = case("model.activation=swiglu")
    gate = n @ w["fc_gate.weight"].T
    near(out, (gate * torch.sigmoid(gate) * (n @ w["fc.weight"].T)) @ w["proj.weight"].T)


def test_the_gated_square_multiplies_by_a_squared_relu() -> None:
    _, n, w, out = case("model.activation=relu_square_gated")
    gate = (n @ w["fc_gate.weight"].T).clamp(min=0) ** 2
    near(out, (gate * (n @ w["fc.weight"].T)) @ w["proj.weight"].T)


def test_gated_forms_take_two_thirds_of_the_width() -> None:
    mlp, *_ = case("model.activation=swiglu", "model.mlp_mult=3.0")
    assert isinstance(mlp, MLP)
    assert mlp.proj.weight.shape == (32, 64)  # 2/3 of 96, so that three matrices cost what two did


def test_layers_may_have_widths_of_their_own() -> None:
    model = pico_model(pico_recipe("model.mlp_widths=[1.0, 0.5, 2.0, 1.0]"))
    assert [len(model.get_parameter(f"blocks.{i}.mlp.fc.weight")) for i in range(4)] == [48, 24, 96, 48]
