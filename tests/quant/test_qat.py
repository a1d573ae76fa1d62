"""Late quantization-aware training: another loss, the same gradient path, and no trace when off."""

import pytest
import torch
from torch import Tensor

from golf.config import QuantConfig
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from golf.quant.primitives import dequantize, quantize
from golf.quant.qat import fake_quantize, fake_quantized_forward
from golf.quant.sdclip import choose_scale
from golf.roles import role_of
from tests.pico import pico_batch, pico_model, pico_recipe

RECIPE = pico_recipe("quant.matrix_bits=3", "quant.attn_clip_sigmas=3", "quant.mlp_clip_sigmas=4")
PLAN = plan_layers(RECIPE.model, looping=True)
NAME = "blocks.0.attn.c_q.weight"


def rounded(weight: Tensor, *, clip_sigmas: float = 3.0, levels: int = 3) -> Tensor:
    scale = choose_scale(weight, clip_sigmas=clip_sigmas, levels=levels)
    return dequantize(quantize(weight, scale, levels), scale)


def random_weight() -> Tensor:
    return torch.randn(5, 423, generator=torch.Generator().manual_seed(0))


def gradients(model: GPT, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    losses.mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_forward_sees_the_rounded_matrix() -> None:
    weight = random_weight()
    torch.testing.assert_close(fake_quantize(weight, NAME, RECIPE.quant), rounded(weight))
    assert float((rounded(weight) - weight).abs().max()) > 0.3


def test_the_gradient_passes_straight_through() -> None:
    weight = random_weight().requires_grad_()
    incoming = torch.randn(5, 423, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(fake_quantize(weight, NAME, RECIPE.quant), weight, incoming)
    assert torch.equal(found, incoming)


def test_rounding_what_is_rounded_changes_little() -> None:
    weight = rounded(random_weight())
    levels_used = (weight[0] / choose_scale(random_weight(), clip_sigmas=3, levels=3)[0].float()).round().unique()
    assert len(levels_used) == 7  # three bits: -3 to 3


def test_the_loss_differs_from_the_plain_one() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    plain, fake = model(batch, plan=PLAN), fake_quantized_forward(model, batch, plan=PLAN, config=RECIPE.quant)
    assert fake.shape == plain.shape
    assert float((fake - plain).detach().abs().max()) > 0.01


def with_rounded_matrices(config: QuantConfig) -> GPT:
    """The model whose matrices are what the fake-quantized forward sees; nothing else is touched."""
    model = pico_model(RECIPE)
    clips = {"attn": config.attn_clip_sigmas, "mlp": config.mlp_clip_sigmas, "matrix": config.matrix_clip_sigmas}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role = role_of(name, parameter.ndim)
            if role.is_matrix:
                parameter.copy_(rounded(parameter, clip_sigmas=clips[role.value]))
    return model


def test_the_loss_is_that_of_the_model_with_rounded_matrices_and_untouched_tables() -> None:
    batch = pico_batch(2, 23)
    fake = fake_quantized_forward(pico_model(RECIPE), batch, plan=PLAN, config=RECIPE.quant)
    torch.testing.assert_close(fake, with_rounded_matrices(RECIPE.quant)(batch, plan=PLAN), rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_the_gradient_of_the_rounded_model() -> None:
    batch, model, reference = pico_batch(2, 23), pico_model(RECIPE), with_rounded_matrices(RECIPE.quant)
    found = gradients(model, fake_quantized_forward(model, batch, plan=PLAN, config=RECIPE.quant))
    expected = gradients(reference, reference(batch, plan=PLAN))
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm() / gradient.norm())
        assert difference < 1e-3, (name, difference)


def test_the_weights_themselves_stay() -> None:
    model = pico_model(RECIPE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fake_quantized_forward(model, pico_batch(2, 23), plan=PLAN, config=RECIPE.quant).mean().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_the_plain_forward_is_the_same_bits_after_it() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    before = model(batch, plan=PLAN)
    fake_quantized_forward(model, batch, plan=PLAN, config=RECIPE.quant)
    assert torch.equal(model(batch, plan=PLAN), before)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_more_bits_come_nearer_to_the_plain_loss(bits: int) -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    with torch.no_grad():
        plain = model(batch, plan=PLAN)
        errors = [
            float(
                (
                    fake_quantized_forward(
                        model, batch, plan=PLAN, config=pico_recipe(f"quant.matrix_bits={count}").quant
                    )
                    - plain
                ).norm()
            )
            for count in (bits - 1, bits)
        ]
    assert errors[1] < errors[0]
