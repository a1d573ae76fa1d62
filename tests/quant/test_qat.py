"""Late quantization-aware training: another loss, the same gradient path, and no trace when off."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from golf.quant.nearest import row_max_scale
from golf.quant.pipeline import scheme_of
from golf.quant.primitives import dequantize, quantize
from golf.quant.qat import fake_quantize, fake_quantized_forward
from golf.quant.rotation import hadamard
from golf.quant.sdclip import choose_scale
from golf.quant_config import QuantConfig
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


NEAREST = pico_recipe("quant.method=row_max", "quant.matrix_bits=3").quant


def on_the_grid(weight: Tensor, *, floor: float = 0.0) -> Tensor:
    """clip(round(w / s), -4, 3) s with s = max(max|w| / 3, floor): the fake quantization of the older records."""
    wide = weight.double()
    scale = (wide.abs().amax(1, keepdim=True) / 3).clamp_min(floor)
    return ((wide / scale).round().clamp(-4, 3) * scale).float()


@pytest.mark.parametrize("method", ["row_max", "clip_search", "row_clip_search"])
def test_without_hessians_the_forward_sees_the_row_max_grid(method: str) -> None:
    config = pico_recipe(f"quant.method={method}", "quant.matrix_bits=3").quant
    weight = random_weight()
    torch.testing.assert_close(fake_quantize(weight, NAME, config), on_the_grid(weight), rtol=1e-6, atol=1e-6)


def test_the_unit_floor_holds_for_the_fake_quantized_matrix() -> None:
    config = pico_recipe("quant.method=row_max", "quant.matrix_bits=3", "quant.scale_floor=unit").quant
    weight = random_weight() * 0.2
    found = fake_quantize(weight, NAME, config)
    torch.testing.assert_close(found, on_the_grid(weight, floor=1 / 3), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, on_the_grid(weight))


@pytest.mark.parametrize("method", ["gptq", "row_max"])
def test_with_rotation_it_is_the_rotated_matrix_that_is_rounded(method: str) -> None:
    options = (f"quant.method={method}", "quant.matrix_bits=3", "quant.attn_clip_sigmas=3")
    weight = torch.cat([random_weight(), random_weight()[:3]])  # eight rows
    found = fake_quantize(weight, NAME, pico_recipe(*options, "quant.rotate=true").quant)
    inside = fake_quantize(hadamard(weight), NAME, pico_recipe(*options).quant)
    torch.testing.assert_close(found, hadamard(inside), rtol=1e-5, atol=1e-5)


def test_a_matrix_that_stays_float16_is_not_fake_quantized() -> None:
    weight = random_weight()
    config = pico_recipe(f"quant.float16_below={weight.numel()}").quant
    assert fake_quantize(weight, NAME, config) is weight


def test_the_gradient_passes_straight_through_the_row_max_grid() -> None:
    weight = random_weight().requires_grad_()
    incoming = torch.randn(5, 423, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(fake_quantize(weight, NAME, NEAREST), weight, incoming)
    assert torch.equal(found, incoming)


def test_what_only_training_minimizes_is_still_minimized() -> None:
    model, batch = pico_model(pico_recipe("model.multi_token={heads=2,weight=0.5}")), pico_batch(2, 23)
    found = gradients(model, fake_quantized_forward(model, batch, plan=PLAN, config=RECIPE.quant))
    assert all(bool(found[f"multi_token.heads.{head}.weight"].any()) for head in (0, 1))


class ReadBacks(TorchDispatchMode):
    """Counts how often a value of a tensor is handed to Python, for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_late_qat_reads_back_nothing_that_the_plain_forward_does_not() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    with ReadBacks() as plain:
        model(batch, plan=PLAN).mean().backward()
    with ReadBacks() as fake:
        fake_quantized_forward(model, batch, plan=PLAN, config=RECIPE.quant).mean().backward()
    with ReadBacks() as counting:
        quantize(random_weight(), torch.ones(5), 3)
    assert fake.count == plain.count
    assert counting.count == 2  # the post-training quantizer looks


METHODS = ["gptq", "row_max", "clip_search", "row_clip_search"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [(), ("quant.rotate=true",), ("quant.attn_clip_sigmas=0",)])
def test_a_matrix_is_fake_quantized_without_a_look_at_its_values(method: str, options: tuple[str, ...]) -> None:
    """A tensor of the device "meta" has none; a look at them is an error."""
    weight = torch.empty(8, 423, device="meta")
    found = fake_quantize(weight, NAME, pico_recipe(f"quant.method={method}", *options).quant)
    assert found.shape == weight.shape


@pytest.mark.parametrize("method", ["gptq", "row_max"])
@pytest.mark.parametrize("clip_sigmas", [0.0, 3.0])
def test_unchecked_the_matrix_has_the_same_bits(method: str, clip_sigmas: float) -> None:
    weight = random_weight()
    weight[2] = 0.0
    config = pico_recipe(f"quant.method={method}", "quant.matrix_bits=3", f"quant.attn_clip_sigmas={clip_sigmas}").quant
    scheme = scheme_of(NAME, weight, config)
    if method == "gptq":
        scale = choose_scale(weight, clip_sigmas=clip_sigmas, levels=3, floor=scheme.floor)
    else:
        scale = row_max_scale(weight, scheme)
    checked = weight + (dequantize(quantize(weight, scale, 3), scale) - weight)
    assert torch.equal(fake_quantize(weight, NAME, config), checked)


@pytest.mark.parametrize("method", ["gptq", "row_max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_is_left_to_the_loss(method: str, value: float) -> None:
    """3e38 gives a scale beyond float16."""
    recipe = pico_recipe(f"quant.method={method}", "quant.attn_clip_sigmas=3")
    model = pico_model(recipe)
    with torch.no_grad():
        model.get_parameter(NAME)[1, 2] = value
    losses = fake_quantized_forward(model, pico_batch(2, 23), plan=PLAN, config=recipe.quant)
    assert not math.isfinite(float(losses.detach().mean()))
