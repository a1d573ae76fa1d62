"""The whole mixed quantization of the recorded model, and the way back; low-rank corrections are `artifact_1855`'s."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.artifact.codecs import byte_shuffle, byte_unshuffle
from golf.artifact.container import pack_bytes, unpack_bytes
from golf.config import QuantConfig
from golf.model.hooks import tap_of
from golf.quant.gptq import gptq
from golf.quant.pipeline import quantize_weights
from golf.quant.primitives import absmax_scale, levels_of, quantize
from golf.quant.scheme import QuantizedTensor, Stored
from golf.quant.sdclip import choose_scale
from tests.parity.recorded import Recorded, plain, recorded_artifact, reference_name
from tests.parity.unbank import hessian_of, read_fixture, unbanked_weights


@pytest.fixture
def recorded(fixtures: Path) -> dict[str, Stored]:
    """The recorded result as golf's stored tensors."""
    return recorded_artifact(fixtures)


def test_the_record_covers_exactly_the_unbanked_names(fixtures: Path, recorded: dict[str, Stored]) -> None:
    assert recorded.keys() == unbanked_weights(fixtures).keys()


def test_every_tensor_is_quantized_as_recorded(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    settings, tolerances = description["hyperparameters"], description["tolerances"]
    for name, weight in unbanked_weights(fixtures).items():
        expected, tag = recorded[name], description["meta"][name]
        if not isinstance(expected, QuantizedTensor):
            assert torch.equal(weight.half(), expected), name
            continue
        levels = levels_of(expected.bits)
        if tag == "gate_int8_row":
            scale = absmax_scale(weight, levels=levels)
            codes = quantize(weight, scale, levels)
        else:
            group = "embed" if name == "tok_emb.weight" else "mlp" if ".mlp." in name else "attn"
            scale = choose_scale(weight, clip_sigmas=settings[f"{group}_clip_sigmas"], levels=levels)
            codes = gptq(weight, hessian_of(fixtures, name), scale, levels=levels)
        assert torch.equal(scale, expected.scale), name
        mismatch = float((codes != expected.codes).float().mean())
        assert mismatch <= (0 if tag == "gate_int8_row" else tolerances["codes_mismatch_fraction"]), name


def test_the_pipeline_treats_every_tensor_as_recorded(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    settings, tolerances = description["hyperparameters"], description["tolerances"]
    weights = Recorded(fixtures, "model_1787").model.state_dict()
    matrices = [name for name in weights if name == "tok_emb.weight" or re.search(r"\.(c_.|proj|fc)\.weight", name)]
    clips = {f"{group}_clip_sigmas": settings[f"{group}_clip_sigmas"] for group in ("attn", "mlp", "embed", "matrix")}
    config = QuantConfig(matrix_bits=settings["matrix_bits"], embed_bits=settings["embed_bits"], **clips)
    stored = quantize_weights(weights, {tap_of(name): hessian_of(fixtures, name) for name in matrices}, config)
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


def test_dequantized_values_are_exact(fixtures: Path, recorded: dict[str, Stored]) -> None:
    _, tensors = read_fixture(fixtures, "artifact")
    expected = {key.removeprefix("deq::"): tensor for key, tensor in tensors.items() if key.startswith("deq::")}
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(plain(recorded[name]), tensor), name


def test_dequantized_checksums_of_all_tensors_are_exact(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    for name, checksum in description["dequantised_checksums"].items():
        values = plain(recorded[name]).double()
        assert {"sum": values.sum().item(), "abs_sum": values.abs().sum().item()} == checksum, name


@pytest.mark.parametrize("codec", ["brotli", "lzma", "zlib", "raw"])
def test_the_whole_record_survives_the_artifact_file(recorded: dict[str, Stored], codec: str) -> None:
    read = unpack_bytes(pack_bytes(recorded, config={}, codec=codec)).tensors
    assert read.keys() == recorded.keys()
    for name, tensor in recorded.items():
        assert torch.equal(plain(read[name]), plain(tensor)), name


def test_the_file_is_smaller_than_the_reference_container(fixtures: Path, recorded: dict[str, Stored]) -> None:
    description, _ = read_fixture(fixtures, "artifact")
    size = len(pack_bytes(recorded, config=description["hyperparameters"], codec="brotli"))
    assert size < min(size for name, size in description["sizes"].items() if name.startswith("brotli"))


@pytest.mark.parametrize("stride", [2, 4])
def test_byte_shuffle_is_the_recorded_one(fixtures: Path, stride: int) -> None:
    _, tensors = read_fixture(fixtures, "artifact")
    plain = tensors["bytes::input"].numpy().tobytes()
    shuffled = tensors[f"bytes::shuffled_stride{stride}"].numpy().tobytes()
    assert b"BSHF" + bytes([stride]) + byte_shuffle(plain, stride) == shuffled
    assert byte_unshuffle(shuffled[5:], stride) == plain
