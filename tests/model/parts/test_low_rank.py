"""Thin matrices: a low-rank MLP, and a correction for every pass over a looped layer."""

import pytest
import torch

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.init import build_model
from golf.model.mlp import MLP
from golf.model.parts.low_rank import LowRank
from golf.model.plan import plan_layers
from tests.pico import pico_batch, pico_model, pico_recipe

CPU = torch.device("cpu")


def test_it_is_the_product_of_its_matrices() -> None:
    part = LowRank(7, 5, 2, tap="t")
    x = torch.randn(3, 7)
    product = part.up.weight.double() @ part.down.weight.double()
    torch.testing.assert_close(part(x, Hooks()).double(), x.double() @ product.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_stream", [True, False])
def test_its_product_is_scaled_and_added_to_a_stream(has_stream: bool) -> None:
    part, gain, x = LowRank(7, 5, 2, tap="t"), torch.randn(5), torch.randn(3, 7)
    stream = torch.randn(3, 5) if has_stream else None
    found = part.add_to(stream, x, gain, PLAIN, hooks=Hooks())
    expected = gain * part(x, Hooks()) + (0 if stream is None else stream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Seen:
    """Remembers which taps were shown what shape."""

    def __init__(self) -> None:
        self.shapes: dict[str, int] = {}

    def see(self, tap: str, x: torch.Tensor) -> None:
        self.shapes[tap] = x.shape[-1]


def test_an_observer_sees_the_input_of_both_matrices() -> None:
    seen = Seen()
    LowRank(7, 5, 2, tap="t")(torch.randn(3, 7), Hooks(observer=seen))
    assert seen.shapes == {"t": 7, "t.up": 2}


def test_a_low_rank_mlp_has_two_thin_matrices_for_each_full_one() -> None:
    model = pico_model(pico_recipe("model.mlp_rank=3"))
    shapes = {name: tuple(p.shape) for name, p in model.get_submodule("blocks.0.mlp").named_parameters()}
    assert shapes == {
        "fc.down.weight": (3, 32),
        "fc.up.weight": (48, 3),
        "proj.down.weight": (3, 48),
        "proj.up.weight": (32, 3),
    }


def test_a_low_rank_mlp_starts_silent_and_orthogonal() -> None:
    model = build_model(pico_recipe("model.mlp_rank=3").model, seed=1, dtype=torch.float32, device=CPU)
    fc_down, fc_up, proj_down, proj_up = (
        model.get_parameter(f"blocks.1.mlp.{name}.weight") for name in ("fc.down", "fc.up", "proj.down", "proj.up")
    )
    assert not proj_up.any()
    for weight in (fc_down, fc_up.T, proj_down):
        torch.testing.assert_close(weight @ weight.T, torch.eye(3), rtol=1e-5, atol=1e-5)


LORA = "model.loop.mlp_lora_rank=2"


def test_only_looped_layers_have_corrections_one_a_pass() -> None:
    plain = {name for name, _ in pico_model().named_parameters()}
    added = sorted(name for name, _ in pico_model(pico_recipe(LORA)).named_parameters() if name not in plain)
    assert added == [
        f"blocks.{layer}.mlp.{matrix}_passes.{index}.{factor}.weight"
        for layer in (1, 2)
        for matrix in ("fc", "proj")
        for index in (0, 1)
        for factor in ("down", "up")
    ]


def test_corrections_are_silent_at_first() -> None:
    with_corrections = build_model(pico_recipe(LORA).model, seed=1, dtype=torch.float32, device=CPU)
    names = [
        name for name, _ in with_corrections.named_parameters() if "_passes." in name and name.endswith("up.weight")
    ]
    assert len(names) == 8
    assert not any(with_corrections.get_parameter(name).any() for name in names)


def test_each_pass_has_a_correction_of_its_own() -> None:
    model, batch = pico_model(pico_recipe(LORA)), pico_batch(2, 23)
    on, off = (plan_layers(model.config, looping=looping) for looping in (True, False))
    with torch.no_grad():
        before = model(batch, plan=off), model(batch, plan=on)
        model.get_parameter("blocks.2.mlp.fc_passes.1.up.weight").add_(1.0)  # of the second pass alone
        after = model(batch, plan=off), model(batch, plan=on)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


@torch.no_grad()
@pytest.mark.parametrize("changes", [LORA, "model.mlp_rank=3"])
def test_the_branchs_gain_scales_all_of_the_branch(changes: str) -> None:
    config = pico_recipe(changes).model
    mlp, empty = MLP(config, 1), torch.empty(0)
    context = Context(empty, empty, 4, empty, empty, PLAIN, {}, [])
    visit = plan_layers(config, looping=True).visits[1]
    n, gain = torch.randn(2, 4, 32), torch.rand(32) + 1
    whole = mlp(n, context, Hooks(), visit, torch.ones(32))
    torch.testing.assert_close(mlp(n, context, Hooks(), visit, gain), gain * whole, rtol=1e-5, atol=1e-6)
    stream = torch.randn(2, 4, 32)
    found = mlp(n, context, Hooks(), visit, gain, onto=stream)
    torch.testing.assert_close(found, stream + gain * whole, rtol=1e-5, atol=1e-6)
