"""From weights to an artifact and back: who is stored how, and that what is scored is what the bytes say."""

import dataclasses

import pytest
import torch
from torch import Tensor

from golf.config import QuantConfig
from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.model.hooks import tap_of
from golf.model.plan import plan_layers
from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.pipeline import (
    dequantize_weights,
    quantize_weights,
    scheme_of,
)
from golf.quant.primitives import absmax_scale, dequantize, quantize
from golf.quant.scheme import QuantizedTensor, TensorScheme
from golf.quant.sdclip import choose_scale
from golf.roles import Role, role_of
from tests.pico import pico_model, pico_recipe
from tests.ranks import CPU

ALONE = World(0, 1, 0, CPU)
RECIPE = pico_recipe(
    "quant.matrix_bits=5",
    "quant.embed_bits=7",
    "quant.attn_clip_sigmas=9",
    "quant.mlp_clip_sigmas=8",
    "quant.matrix_clip_sigmas=7",
    "quant.embed_clip_sigmas=11",
)
PLAN = plan_layers(RECIPE.model, looping=True)


def model_weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pico_model(RECIPE).state_dict().items()}


def hessians(config: QuantConfig = RECIPE.quant) -> dict[str, Tensor]:
    """Random positive definite matrices, one a tap."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in model_weights().items():
        if scheme_of(name, weight, config).kind == "gptq" and tap_of(name) not in found:
            width = weight.shape[1]
            mixed = torch.randn(width, width, generator=generator)
            x = torch.randn(200, width, generator=generator) @ mixed
            found[tap_of(name)] = x.T @ x / 200
    return found


SCHEMES = {
    Role.EMBED: TensorScheme(kind="gptq", bits=7, clip_sigmas=11),
    Role.ATTN: TensorScheme(kind="gptq", bits=5, clip_sigmas=9),
    Role.MLP: TensorScheme(kind="gptq", bits=5, clip_sigmas=8),
    Role.MATRIX: TensorScheme(kind="gptq", bits=5, clip_sigmas=7),
    Role.TABLE: TensorScheme(kind="nearest", bits=8),
    Role.GATE: TensorScheme(kind="nearest", bits=8),
    Role.SCALAR: TensorScheme(kind="float16"),
}


def test_the_scheme_of_a_tensor_follows_its_role() -> None:
    seen = set()
    for name, weight in model_weights().items():
        role = role_of(name, weight.ndim)
        seen.add(role)
        assert scheme_of(name, weight, RECIPE.quant) == SCHEMES[role], name
    assert seen == set(Role)


def test_every_tensor_is_stored_as_its_scheme_says_in_the_models_order() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), RECIPE.quant)
    assert list(stored) == list(weights)
    for name, weight in weights.items():
        scheme, value = SCHEMES[role_of(name, weight.ndim)], stored[name]
        if scheme.kind == "float16":
            assert isinstance(value, Tensor)
            assert torch.equal(value, weight.half())
        else:
            assert isinstance(value, QuantizedTensor)
            assert (value.bits, value.shape) == (scheme.bits, tuple(weight.shape))


@pytest.mark.parametrize("hessian_lambda", [0.0, 0.4])
def test_queries_keys_and_values_rounded_together_are_what_they_are_rounded_apart(hessian_lambda: float) -> None:
    weights, found = model_weights(), hessians()
    config = dataclasses.replace(RECIPE.quant, hessian_lambda=hessian_lambda)
    stored = quantize_weights(weights, found, config)
    for name, weight in weights.items():
        if SCHEMES[role_of(name, weight.ndim)].kind != "gptq":
            continue
        scheme, hessian = scheme_of(name, weight, config), found[tap_of(name)]
        scale = choose_scale(
            weight,
            clip_sigmas=scheme.clip_sigmas,
            levels=scheme.levels,
            hessian_diagonal=damped_diagonal(hessian, damping=config.damping),
            hessian_lambda=hessian_lambda,
        )
        codes = gptq(weight, hessian, scale, levels=scheme.levels, damping=config.damping)
        value = stored[name]
        assert isinstance(value, QuantizedTensor)
        assert torch.equal(value.scale, scale), name
        assert torch.equal(value.codes, codes), name


def test_tables_and_gates_are_rounded_to_nearest_over_their_absmax() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), RECIPE.quant)
    for name in ("stem.bigram.table.weight", "stem.smear.weight"):
        scale, value = absmax_scale(weights[name], levels=127), stored[name]
        assert isinstance(value, QuantizedTensor)
        assert torch.equal(value.codes, quantize(weights[name], scale, 127))


def test_dequantized_weights_are_codes_times_scale_in_the_models_dtypes() -> None:
    weights = model_weights()
    weights["tok_emb.weight"] = weights["tok_emb.weight"].bfloat16()
    stored = quantize_weights(weights, hessians(), RECIPE.quant)
    found = dequantize_weights(stored, weights)
    assert found.keys() == weights.keys()
    for name, value in stored.items():
        exact = dequantize(value.codes, value.scale) if isinstance(value, QuantizedTensor) else value
        assert found[name].dtype == weights[name].dtype
        assert torch.equal(found[name], exact.view_as(weights[name]).to(weights[name].dtype)), name


def test_six_bits_lie_near_the_weights() -> None:
    weights, config = model_weights(), pico_recipe().quant
    found = dequantize_weights(quantize_weights(weights, hessians(), config), weights)
    for name, weight in weights.items():
        if weight.ndim == 2:
            step = 12.85 * float(weight.std(1).max()) / 31
            assert float((found[name] - weight).norm()) < 2 * step * weight.numel() ** 0.5, name


@pytest.mark.parametrize("name", ["blocks.1.attn.c_k.weight", "stem.bigram.table.weight", "blocks.0.attn_scale"])
def test_a_broken_weight_is_a_fault_that_names_its_tensor(name: str) -> None:
    weights = model_weights()
    weights[name].view(-1)[0] = float("nan")
    with pytest.raises(NumericalFaultError, match=name):
        quantize_weights(weights, hessians(), RECIPE.quant)


def test_a_scalar_beyond_float16_is_a_fault_that_names_it() -> None:
    weights = model_weights()
    weights["blocks.0.attn_scale"][0] = 1e5
    with pytest.raises(NumericalFaultError, match=r"blocks\.0\.attn_scale: not finite, or too large for float16"):
        quantize_weights(weights, hessians(), RECIPE.quant)


def test_a_hessian_of_zeros_is_a_fault_that_names_its_matrices() -> None:
    found = hessians()
    found["blocks.1.attn"].zero_()
    with pytest.raises(NumericalFaultError, match=r"blocks\.1\.attn\.c_q\.weight.*c_k.*c_v.*all zeros"):
        quantize_weights(model_weights(), found, RECIPE.quant)


def test_weights_of_other_names_are_refused() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), RECIPE.quant)
    del weights["skips.gates"]
    with pytest.raises(ValueError, match=r"artifact and model differ in \['skips\.gates'\]"):
        dequantize_weights(stored, weights)


def test_weights_of_other_shapes_are_refused() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), RECIPE.quant)
    weights["skips.gates"] = torch.zeros(4, 32)
    with pytest.raises(ValueError, match=r"skips\.gates: stored as \(3, 32\), the model wants \(4, 32\)"):
        dequantize_weights(stored, weights)
