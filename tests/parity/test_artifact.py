"""The whole mixed quantization of the recorded models, without and with low-rank corrections, and the way back."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.artifact.codecs import CODECS, byte_shuffle, byte_unshuffle
from golf.artifact.container import pack_bytes, unpack_bytes
from golf.model.hooks import tap_of
from golf.quant.gptq import gptq
from golf.quant.lqer import Correction, factor_names, is_factor, low_rank_factors, pack_asymmetric
from golf.quant.pipeline import dequantize_weights, quantize_weights, scheme_of
from golf.quant.primitives import absmax_scale, levels_of, quantize
from golf.quant.scheme import QuantizedTensor, Stored
from golf.quant.sdclip import choose_scale
from golf.quant_config import LqerConfig, QuantConfig
from tests.parity.fixture_set import read_fixture, under
from tests.parity.recorded import Recorded, plain, recorded_artifact, reference_name
from tests.parity.unbank import has_hessian, hessian_of, unbanked_weights

GATE_TAG = "gate_int8_row"
CLIPS = tuple(f"{group}_clip_sigmas" for group in ("attn", "mlp", "matrix", "embed"))


def config_of(settings: dict[str, Any], **changes: Any) -> QuantConfig:
    """The recorded settings as golf's; the gates that stay small are golf's by role, whatever their size."""
    assert settings["gated_attn_quant_gate"]
    names = ("matrix_bits", "embed_bits", *CLIPS)
    return QuantConfig(**{name: settings[name] for name in names}, **changes)


def is_matrix(name: str) -> bool:
    return name == "tok_emb.weight" or re.search(r"\.(c_.|proj|fc)\.weight", name) is not None


def weights_of(fixtures: Path, model: str) -> dict[str, Tensor]:
    """The recorded weights; without the matrices, if any, whose Hessian was left out of the compact subset."""
    weights = Recorded(fixtures, model).model.state_dict()
    return {name: weight for name, weight in weights.items() if not is_matrix(name) or has_hessian(fixtures, name)}


def hessians_by_tap(fixtures: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {tap_of(name): hessian_of(fixtures, name) for name in weights if is_matrix(name)}


@pytest.fixture
def recorded(fixtures: Path) -> dict[str, Stored]:
    """The recorded result as golf's stored tensors."""
    return recorded_artifact(fixtures)


def test_the_record_covers_exactly_the_unbanked_names(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    assert recorded.keys() == unbanked_weights(fixtures).keys() == set(description["order"])


def test_every_tensor_is_quantized_as_recorded(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    settings, tolerances = description["hyperparameters"], description["tolerances"]
    for name, weight in unbanked_weights(fixtures).items():
        expected, tag = recorded[name], description["meta"][name]
        if not isinstance(expected, QuantizedTensor):
            assert torch.equal(weight.half(), plain(expected).half()), name
            continue
        levels = levels_of(expected.bits)
        if tag == GATE_TAG:
            scale = absmax_scale(weight, levels=levels)
            codes = quantize(weight, scale, levels)
        else:
            group = "embed" if name == "tok_emb.weight" else "mlp" if ".mlp." in name else "attn"
            scale = choose_scale(weight, clip_sigmas=settings[f"{group}_clip_sigmas"], levels=levels)
            codes = expected.codes
            if has_hessian(fixtures, name):
                codes = gptq(weight, hessian_of(fixtures, name), scale, levels=levels)
        assert torch.equal(scale, expected.scale), name
        mismatch = float((codes != expected.codes).float().mean())
        assert mismatch <= (0 if tag == GATE_TAG else tolerances["codes_mismatch_fraction"]), name


def test_the_pipeline_treats_every_tensor_as_recorded(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    settings, tolerances = description["hyperparameters"], description["tolerances"]
    weights = weights_of(fixtures, "model_1787")
    stored = quantize_weights(weights, hessians_by_tap(fixtures, weights), config_of(settings))
    for name, found in stored.items():
        expected = recorded[reference_name(name)]
        if isinstance(found, QuantizedTensor) and isinstance(expected, QuantizedTensor):
            assert torch.equal(found.scale, expected.scale), name
            mismatch = float((found.codes != expected.codes).float().mean())
            assert mismatch <= tolerances["codes_mismatch_fraction"], name
        else:
            assert isinstance(found, Tensor)
            assert isinstance(expected, Tensor)
            assert torch.equal(found, expected), name


def test_the_size_limit_keeps_as_float16_what_the_record_did(fixtures: Path) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    key = next(key for key in description if key.startswith("meta_with_default_passthrough_"))
    limits = {key: int(key.rpartition("_")[2]), "meta": description["hyperparameters"]["passthrough_max_numel"]}
    for tags, limit in limits.items():
        config = config_of(description["hyperparameters"], float16_below=limit)
        for name, weight in Recorded(fixtures, "model_1787").model.state_dict().items():
            tag = description[tags][reference_name(name)]
            if tag != GATE_TAG:  # the record's gates are int8 before their size is looked at
                is_float = scheme_of(name, weight, config).kind == "float16"
                assert is_float == tag.startswith("passthrough"), name


def test_dequantized_values_are_exact(fixtures: Path, recorded: dict[str, Stored]) -> None:
    _, tensors = read_fixture(fixtures, "artifact")
    expected = under(tensors, "deq::")
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(plain(recorded[name]), tensor), name


def test_dequantized_checksums_of_all_tensors_are_exact(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    for name, checksum in description["dequantised_checksums"].items():
        values = plain(recorded[name]).double()
        assert {"sum": values.sum().item(), "abs_sum": values.abs().sum().item()} == checksum, name


@pytest.mark.parametrize("codec", CODECS)
def test_the_whole_record_survives_the_artifact_file(recorded: dict[str, Stored], codec: str) -> None:
    read = unpack_bytes(pack_bytes(recorded, config={}, codec=codec)).tensors
    assert read.keys() == recorded.keys()
    for name, tensor in recorded.items():
        assert torch.equal(plain(read[name]), plain(tensor)), name


def test_the_file_is_smaller_than_the_reference_container(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    sizes = description["sizes"]
    packed, raw = (
        len(pack_bytes(recorded, config=description["hyperparameters"], codec=codec)) for codec in ("brotli", "raw")
    )
    assert packed < min(sizes["brotli_q11_of_shuffled"], sizes["brotli_q11_unshuffled"])
    assert raw < sizes["torch_save_raw"] < sizes["shuffled"]


@pytest.mark.parametrize("stride", [2, 4])
def test_byte_shuffle_is_the_recorded_one(fixtures: Path, stride: int) -> None:
    _, tensors = read_fixture(fixtures, "artifact")
    plain = tensors["bytes::input"].numpy().tobytes()
    shuffled = tensors[f"bytes::shuffled_stride{stride}"].numpy().tobytes()
    assert b"BSHF" + bytes([stride]) + byte_shuffle(plain, stride) == shuffled
    assert byte_unshuffle(shuffled[5:], stride) == plain


class Corrected:
    """The recorded mixed quantization with low-rank corrections, beside golf's of the same weights."""

    def __init__(self, fixtures: Path) -> None:
        self.description, self.tensors = read_fixture(fixtures, "artifact_1855")
        settings = self.description["hyperparameters"]
        self.lqer = LqerConfig(
            rank=settings["lqer_rank"], top_k=settings["lqer_top_k"], group=settings["lqer_asym_group"]
        )
        assert settings["passthrough_max_numel"] > 0  # golf's roles decide instead
        self.weights = weights_of(fixtures, "model_1855")
        self.config = config_of(settings, lqer=self.lqer)
        self.stored = quantize_weights(self.weights, hessians_by_tap(fixtures, self.weights), self.config)

    @property
    def names(self) -> list[str]:
        return [name for name, tag in self.description["meta"].items() if tag.endswith("+lqer_asym")]

    def recorded(self, name: str, part: str) -> Tensor:
        return self.tensors[f"result::{name}.{part}"]


@pytest.fixture
def corrected(fixtures: Path) -> Corrected:
    return Corrected(fixtures)


def test_the_matrices_with_the_recorded_largest_errors_are_corrected_in_that_order(corrected: Corrected) -> None:
    by_size = [name for name, _ in corrected.description["largest_error_norms"]][: corrected.lqer.top_k]
    found = [name for name in corrected.stored if is_factor(name)]
    assert found == [factor for name in by_size for factor in factor_names(name)]
    assert set(by_size) == set(corrected.names)


def test_the_error_norms_are_the_recorded_ones(corrected: Corrected) -> None:
    for name, norm in corrected.description["largest_error_norms"]:
        found = float((corrected.weights[name] - plain(corrected.stored[name])).norm())
        assert found == pytest.approx(norm, rel=corrected.description["tolerances"]["codes_mismatch_fraction"]), name


def test_corrected_matrices_are_rounded_as_recorded(corrected: Corrected) -> None:
    for name in corrected.names:
        found = corrected.stored[name]
        assert isinstance(found, QuantizedTensor)
        assert torch.equal(found.scale, corrected.recorded(name, "scale")), name
        mismatch = float((found.codes != corrected.recorded(name, "q")).float().mean())
        assert mismatch <= corrected.description["tolerances"]["codes_mismatch_fraction"], name


def test_the_factors_are_the_recorded_ones_given_the_same_codes_and_signs(corrected: Corrected) -> None:
    limit = corrected.description["tolerances"]["correction_relative_frobenius_given_same_signs"]
    for name in corrected.names:
        codes, scale = (corrected.recorded(name, part) for part in ("q", "scale"))
        base = codes.float() * scale.float()[:, None]
        left, right = low_rank_factors(corrected.weights[name] - base, corrected.lqer.rank)
        recorded_left = corrected.recorded(name, "lqA_a").float() * corrected.recorded(name, "lqAs_a").float()
        sign = (left * recorded_left).sum(0).sign()
        pair = Correction(
            pack_asymmetric((left * sign).reshape(1, -1), 2),
            pack_asymmetric((right * sign[:, None]).reshape(-1, corrected.lqer.group), corrected.lqer.factor_bits),
        )
        assert torch.equal(pair.right.scale, corrected.recorded(name, "lqBs_a")), name
        b = corrected.recorded(name, "lqB_a")
        assert float((pair.right.codes.view_as(b) != b).float().mean()) <= limit, name
        expected = corrected.tensors[f"deq::{name}"] - base
        assert float((pair.expand(tuple(base.shape)) - expected).norm()) <= limit * float(expected.norm()), name


def test_the_correction_takes_as_much_error_away_as_the_recorded_one(corrected: Corrected) -> None:
    """Golf's signs are its own, and two bits a left factor round them differently: one tenth either way."""
    read = dequantize_weights(corrected.stored, corrected.weights)
    ours = recorded = 0.0
    for name in corrected.names:
        weight = corrected.weights[name]
        rounded = float((weight - plain(corrected.stored[name])).norm())
        ours += rounded - float((weight - read[name]).norm())
        recorded += rounded - float((weight - corrected.tensors[f"deq::{name}"]).norm())
    assert ours == pytest.approx(recorded, rel=0.1)


def test_every_other_tensor_is_treated_as_recorded(fixtures: Path, corrected: Corrected) -> None:
    weights = Recorded(fixtures, "model_1855").model.state_dict()
    for name, tag in corrected.description["meta"].items():
        own = next(own for own in weights if reference_name(own) == name)
        kind = scheme_of(own, weights[own], corrected.config).kind
        assert kind == ("float16" if tag.startswith("passthrough") else "nearest" if tag == GATE_TAG else "gptq"), name


def test_the_corrected_model_survives_the_artifact_file(corrected: Corrected) -> None:
    read = unpack_bytes(pack_bytes(corrected.stored, config={}, codec="brotli")).tensors
    expected = dequantize_weights(corrected.stored, corrected.weights)
    for name, weight in dequantize_weights(read, corrected.weights).items():
        assert torch.equal(weight, expected[name]), name
