"""Fused kernels write a layer's sums in the place of its stream: no stream that anyone keeps is overwritten by that."""

import pytest
import torch
from torch import Tensor

from golf.kernels import add_product, square_mlp
from golf.kernels.add_product import can_take
from golf.kernels.table import PLAIN, Kernels, fused_kernels
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from tests.kernels.interpreter import needs_interpreter
from tests.model.test_hooks import Deltas, Inputs
from tests.model.test_options import CARRY, OPTIONS, model_with
from tests.pico import pico_batch, pico_model, pico_recipe

pytestmark = needs_interpreter
RESID = "model.resid_mix=false"  # so that a layer reads the very stream that came in
KEPT = {
    "skips": (RESID,),
    "carry": (RESID, "model.skips=false", *CARRY),
    "first output": (RESID, "model.skips=false", "model.value_residual.form=input"),
    "mixed with the first output": ("model.value_residual.form=input",),
    "nothing between layers": (RESID, "model.skips=false"),
    "lanes": (RESID, "model.lanes.start=3"),
    "parallel": (RESID, "model.parallel_start=2"),
}


def losses_and_gradients(model: GPT, kernels: Kernels, adapters: Deltas | None = None) -> dict[str, Tensor]:
    model.kernels = kernels
    model.zero_grad()
    plan = plan_layers(model.config, looping=True)
    losses: Tensor = model(pico_batch(1, 17), plan=plan, adapters=adapters, auxiliary=True)
    losses.mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses.detach(), **gradients}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    whole = torch.stack([value.norm() for name, value in expected.items() if name != "losses"]).norm()
    for name, value in expected.items():  # a scalar's gradient may be a small difference of large sums
        assert float((found[name] - value).norm()) <= 2e-5 * float(value.norm()) + 1e-7 * float(whole), name


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_losses_and_gradients_of_the_plain_model(name: str) -> None:
    model = model_with(name)
    assert_near(losses_and_gradients(model, fused_kernels()), losses_and_gradients(model, PLAIN))


@pytest.mark.parametrize("name", KEPT)
def test_whatever_keeps_streams_has_the_losses_and_gradients_of_the_plain_model(name: str) -> None:
    model = pico_model(pico_recipe(*KEPT[name]))
    assert_near(losses_and_gradients(model, fused_kernels()), losses_and_gradients(model, PLAIN))


@torch.no_grad()
@pytest.mark.parametrize("name", KEPT)
def test_no_block_overwrites_a_stream_that_it_was_given_or_that_a_block_gave(name: str) -> None:
    model = pico_model(pico_recipe(*KEPT[name]))
    model.kernels = fused_kernels()
    kept: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: kept.extend((x, x.clone()) for x in given[0]))
        block.register_forward_hook(lambda _, __, given: kept.extend((x, x.clone()) for x in given))
    plan = plan_layers(model.config, looping=True)
    model(pico_batch(1, 17), plan=plan)
    assert len(kept) >= 2 * len(plan.visits)
    assert all(torch.equal(x, before) for x, before in kept)


@pytest.mark.parametrize("gradients", [True, False])
def test_every_sum_of_a_record_is_made_in_place(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def watch(*arguments: Tensor) -> bool:
        made.append(can_take(*arguments))
        return made[-1]

    for place in (add_product, square_mlp):
        monkeypatch.setattr(place, "can_take", watch)
    model, plan = pico_model(), plan_layers(pico_recipe().model, looping=True)
    model.kernels = fused_kernels()
    with torch.set_grad_enabled(gradients):
        model(pico_batch(1, 17), plan=plan)
    assert made == [True] * 2 * len(plan.visits)  # of the attention and of the MLP


@pytest.mark.parametrize("kernels", [PLAIN, fused_kernels()], ids=lambda kernels: kernels.description)
def test_an_adapter_adds_to_the_sum_what_it_adds_to_the_branch(kernels: Kernels) -> None:
    """The gains of attention and MLP scale it: the gradient of a delta is theirs."""
    model = pico_model()
    found = losses_and_gradients(model, kernels, Deltas(0.3))
    expected = losses_and_gradients(model, PLAIN, Deltas(0.3))
    assert_near(found, expected)
    assert not torch.equal(found["losses"], losses_and_gradients(model, kernels)["losses"])


@torch.no_grad()
def test_what_is_shown_is_not_overwritten_and_is_what_the_plain_model_shows() -> None:
    model, shown = pico_model(pico_recipe("model.lanes.start=3")), []
    for kernels in (PLAIN, fused_kernels()):
        kept = Inputs()
        model.kernels = kernels
        model(pico_batch(1, 17), plan=plan_layers(model.config, looping=True), adapters=kept, observer=kept)
        shown.append([*kept.sites, *kept.taps])
    for (name, found), (other, expected) in zip(*shown, strict=True):
        assert name == other
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
