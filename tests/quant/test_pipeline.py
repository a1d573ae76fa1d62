"""From weights to an artifact and back: who is stored how, and that what is scored is what the bytes say."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.model.hooks import tap_of
from golf.model.parts.ternary import ternarize
from golf.model.plan import plan_layers
from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.lqer import correct, factor_names, is_factor
from golf.quant.nearest import quantize_nearest
from golf.quant.pipeline import (
    dequantize_weights,
    needs_hessians,
    quantize_weights,
    scheme_of,
)
from golf.quant.primitives import absmax_scale, dequantize, quantize
from golf.quant.rotation import can_rotate, hadamard
from golf.quant.scheme import QuantizedTensor, Stored, TensorScheme
from golf.quant.sdclip import choose_scale
from golf.quant.ternary import TernaryTensor
from golf.quant_config import LqerConfig, QuantConfig
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
    "model.attention_gate.window=5",
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
    assert seen == set(Role) - {Role.HEAD}


def test_a_head_of_its_own_is_stored_like_the_embedding() -> None:
    assert scheme_of("head.weight", torch.zeros(61, 32), RECIPE.quant) == SCHEMES[Role.EMBED]


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
    for name in ("stem.bigram.table.weight", "blocks.1.attn.gate.weight"):
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
        assert isinstance(exact, Tensor)
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


def with_options(**options: Any) -> QuantConfig:
    return dataclasses.replace(RECIPE.quant, **options)


def quantized(value: Stored) -> QuantizedTensor:
    assert isinstance(value, QuantizedTensor)
    return value


def assert_same(one: QuantizedTensor, other: QuantizedTensor) -> None:
    assert (one.bits, one.rotated) == (other.bits, other.rotated)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)


METHODS: list[Any] = ["row_max", "clip_search", "row_clip_search"]


@pytest.mark.parametrize("method", METHODS)
def test_the_other_methods_round_every_matrix_without_a_hessian(method: Any) -> None:
    config = with_options(method=method)
    weights, stored = model_weights(), quantize_weights(model_weights(), {}, config)
    for name, weight in weights.items():
        bits = SCHEMES[role_of(name, weight.ndim)].bits
        if bits:
            kind: Any = "percentile" if bits == 8 else method
            assert_same(quantized(stored[name]), quantize_nearest(weight, TensorScheme(kind=kind, bits=bits)))


def test_only_gptq_needs_hessians() -> None:
    assert needs_hessians(RECIPE.quant)
    assert not any(needs_hessians(with_options(method=method)) for method in METHODS)


def test_eight_bits_without_a_hessian_are_cut_at_the_percentile() -> None:
    config = with_options(method="row_max", matrix_bits=8)
    kinds = {scheme_of(name, weight, config).kind for name, weight in model_weights().items() if weight.ndim == 2}
    assert kinds == {"percentile", "row_max", "float16"}  # row_max: the embedding of seven bits
    assert scheme_of("blocks.0.mlp.fc.weight", torch.zeros(48, 32), config).kind == "percentile"


def test_the_unit_floor_is_one_over_the_largest_code_of_every_width() -> None:
    config = with_options(scale_floor="unit")
    for name, weight in model_weights().items():
        scheme = scheme_of(name, weight, config)
        if scheme.kind != "float16":
            assert scheme.floor == 1 / scheme.levels, name


def test_the_unit_floor_holds_for_what_gptq_and_rounding_to_nearest_store() -> None:
    weights = {name: weight * 0.01 for name, weight in model_weights().items()}
    stored = quantize_weights(weights, hessians(), with_options(scale_floor="unit"))
    assert set(quantized(stored["blocks.0.attn.c_q.weight"]).scale.tolist()) == {torch.tensor(1 / 15).half().item()}
    assert set(quantized(stored["blocks.1.attn.gate.weight"]).scale.tolist()) == {torch.tensor(1 / 127).half().item()}


@pytest.mark.parametrize("off", [0, 1])
def test_tensors_up_to_the_limit_stay_float16_whatever_their_role(off: int) -> None:
    sizes = {name: weight.numel() for name, weight in model_weights().items()}
    limit = sizes["blocks.0.attn.c_k.weight"] - off
    stored = quantize_weights(model_weights(), hessians(), with_options(float16_below=limit))
    for name, weight in model_weights().items():
        is_float = isinstance(stored[name], Tensor)
        assert is_float == (sizes[name] <= limit or role_of(name, weight.ndim) is Role.SCALAR), name
    assert isinstance(stored["blocks.0.attn.c_k.weight"], Tensor) == (off == 0)


def test_attention_outputs_may_have_bits_of_their_own() -> None:
    stored = quantize_weights(model_weights(), hessians(), with_options(attn_proj_bits=8))
    for name, value in stored.items():
        if isinstance(value, QuantizedTensor) and role_of(name, 2).is_matrix:
            assert value.bits == (8 if name.endswith(".attn.proj.weight") else 5), name


def test_rotated_matrices_are_rounded_by_gptq_in_their_rotated_form() -> None:
    weights, found, config = model_weights(), hessians(), with_options(rotate=True)
    stored = quantize_weights(weights, found, config)
    name = "blocks.1.attn.proj.weight"
    turned = {**weights, name: hadamard(weights[name])}
    expected = quantized(quantize_weights(turned, found, RECIPE.quant)[name])
    assert torch.equal(quantized(stored[name]).codes, expected.codes)
    read = dequantize_weights(stored, weights)[name]
    torch.testing.assert_close(read, hadamard(expected.dequantize()))
    assert float((read - weights[name]).norm()) < 0.3 * float(weights[name].norm())


def test_rows_that_are_no_power_of_two_are_not_rotated() -> None:
    stored = quantize_weights(model_weights(), hessians(), with_options(rotate=True))
    turned = {name: value.rotated for name, value in stored.items() if isinstance(value, QuantizedTensor)}
    assert turned == {name: can_rotate(len(weight)) for name, weight in model_weights().items() if name in turned}
    assert len(set(turned.values())) == 2


LQER = LqerConfig(rank=2, top_k=3, group=4)


def test_the_worst_matrices_get_factors_of_the_error_they_have() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), with_options(lqer=LQER))
    plain = quantize_weights(weights, hessians(), RECIPE.quant)
    rounded = [name for name, weight in weights.items() if scheme_of(name, weight, RECIPE.quant).kind == "gptq"]
    errors = {name: weights[name] - quantized(plain[name]).dequantize() for name in rounded}
    worst = sorted(rounded, key=lambda name: -float(errors[name].norm()))[:3]
    assert [name for name in stored if is_factor(name)] == [factor for name in worst for factor in factor_names(name)]
    for name in worst:
        assert_same(quantized(stored[name]), quantized(plain[name]))
        for factor, part in zip(factor_names(name), correct(errors[name], rank=2, bits=4, group=4), strict=True):
            assert_same(quantized(stored[factor]), part)


def test_factors_are_added_to_what_is_read_back() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), with_options(lqer=LQER))
    read = dequantize_weights(stored, weights)
    for name, value in stored.items():
        if isinstance(value, QuantizedTensor) and not is_factor(name):
            left, right = (stored.get(factor) for factor in factor_names(name))
            expected = value.dequantize()
            if left is not None and right is not None:
                rows, cols = expected.shape
                product = quantized(left).dequantize().view(rows, 2) @ quantized(right).dequantize().view(2, cols)
                expected = expected + product
                assert float((weights[name] - expected).norm()) < float((weights[name] - value.dequantize()).norm())
            assert torch.equal(read[name], expected), name


@pytest.mark.parametrize("loud", ["blocks.0.mlp.proj.weight", "blocks.3.attn.proj.weight"])
def test_ranked_by_hessian_the_matrix_whose_input_is_large_is_corrected(loud: str) -> None:
    felt = {tap: hessian * (1e6 if tap == tap_of(loud) else 1.0) for tap, hessian in hessians().items()}
    lqer = LqerConfig(rank=2, top_k=1, group=4, rank_by="hessian")
    stored = quantize_weights(model_weights(), felt, with_options(lqer=lqer))
    assert [name for name in stored if is_factor(name)] == list(factor_names(loud))


@pytest.mark.parametrize("which", [0, 1])
def test_a_factor_without_the_other_is_refused(which: int) -> None:
    stored = quantize_weights(model_weights(), hessians(), with_options(lqer=LQER))
    del stored[[name for name in stored if is_factor(name)][which]]
    with pytest.raises(ValueError, match="one of its two factors is missing"):
        dequantize_weights(stored, model_weights())


def test_factors_of_no_matrix_are_refused() -> None:
    stored = quantize_weights(model_weights(), hessians(), RECIPE.quant)
    stored["other.lqer_left"] = stored["blocks.1.attn.gate.weight"]
    with pytest.raises(ValueError, match=r"differ in \['other\.lqer_left'\]"):
        dequantize_weights(stored, model_weights())


def test_factors_of_a_vector_that_do_not_fit_it_are_refused() -> None:
    stored = quantize_weights(model_weights(), hessians(), RECIPE.quant)
    for factor in factor_names("blocks.0.attn_scale"):
        stored[factor] = stored["blocks.1.attn.gate.weight"]
    with pytest.raises(ValueError, match="do not correct"):
        dequantize_weights(stored, model_weights())


def test_ternary_matrices_are_stored_as_what_they_act_as() -> None:
    weights = model_weights()
    stored = quantize_weights(weights, hessians(), RECIPE.quant, ternary_group=8)
    read = dequantize_weights(stored, weights)
    for name, weight in weights.items():
        value, is_ternary = stored[name], role_of(name, weight.ndim) in (Role.ATTN, Role.MLP)
        assert isinstance(value, TernaryTensor) == is_ternary, name
        if isinstance(value, TernaryTensor):
            codes, scale = ternarize(weight, 8)
            assert torch.equal(value.codes, codes)
            assert torch.equal(value.scale, scale)
            assert torch.equal(ternarize(read[name], 8)[0], codes)


def test_with_ternary_matrices_the_rest_is_treated_as_ever() -> None:
    plain = quantize_weights(model_weights(), hessians(), RECIPE.quant)
    stored = quantize_weights(model_weights(), hessians(), RECIPE.quant, ternary_group=8)
    assert_same(quantized(stored["tok_emb.weight"]), quantized(plain["tok_emb.weight"]))
    assert_same(quantized(stored["stem.bigram.proj.weight"]), quantized(plain["stem.bigram.proj.weight"]))


def test_the_same_weights_give_the_same_codes() -> None:
    config = with_options(rotate=True, lqer=LQER)
    one, two = (quantize_weights(model_weights(), hessians(), config) for _ in range(2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, QuantizedTensor):
            assert_same(value, quantized(two[name]))
