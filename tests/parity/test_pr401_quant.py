"""The quantizers without Hessian of the PR #401 lineage, and its fake quantization."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golf.quant.nearest import quantize_nearest
from golf.quant.pipeline import dequantize_weights, quantize_weights
from golf.quant.qat import fake_quantize
from golf.quant.scheme import Kind, QuantizedTensor, Stored, TensorScheme
from golf.quant_config import QuantConfig
from tests.parity.fixture_set import read_fixture, under

GOLF_NAMES = {  # the reference's name of a matrix or table, and golf's, whose role decides
    "bigram.embed.weight": "stem.bigram.table.weight",
    "bigram.proj.weight": "stem.bigram.proj.weight",
    "ve_shared.embed.weight": "value_embedding.table.weight",
    "ve_shared.proj.weight": "value_embedding.proj.weight",
    "skip_weights": "skips.weights",
}
BITS = {"int6": 6, "int8": 8}


def golf_name(name: str) -> str:
    return GOLF_NAMES.get(name, name)


class Recorded:
    """The recorded weights, quantized by golf's pipeline with the settings of the record."""

    def __init__(self, folder: Path) -> None:
        self.description, self.tensors = read_fixture(folder, "pr401_extras")
        self.weights = under(read_fixture(folder, "model_pr401")[1], "w::")
        limit = self.description["hyperparameters"]["mixed_passthrough_max_numel"]
        self.config = QuantConfig(
            method="clip_search", matrix_bits=6, embed_bits=8, scale_floor="unit", float16_below=limit
        )

    def quantized(self) -> dict[str, Stored]:
        weights = {golf_name(name): weight for name, weight in self.weights.items()}
        return quantize_weights(weights, {}, self.config)


@pytest.fixture
def recorded(fixtures: Path) -> Recorded:
    return Recorded(fixtures)


def stems(tensors: dict[str, Tensor], prefix: str, ending: str) -> list[str]:
    found = [
        key.removesuffix(ending).removeprefix(prefix)
        for key in tensors
        if key.startswith(prefix) and key.endswith(ending)
    ]
    assert found, (prefix, ending)
    return found


def assert_rounded(found: QuantizedTensor, tensors: dict[str, Tensor], stem: str) -> None:
    expected = tensors[f"{stem}.q"]
    assert torch.equal(found.codes.reshape(expected.shape), expected), stem
    expected = tensors[f"{stem}.scale"]
    assert torch.equal(found.scale.reshape(expected.shape), expected), stem


def test_the_clip_search_of_every_matrix_is_exact(recorded: Recorded) -> None:
    tensors = recorded.tensors
    for stem in stems(tensors, "lite::", ".weight"):
        weight = tensors[f"lite::{stem}.weight"]
        kind: Kind = "clip_search" if weight.ndim == 2 else "nearest"  # a vector was not searched
        scheme = TensorScheme(kind=kind, bits=6, floor=1 / 31)
        assert_rounded(quantize_nearest(weight.reshape(-1, weight.shape[-1]), scheme), tensors, f"lite::{stem}")


def test_the_percentile_clip_of_eight_bits_is_exact(recorded: Recorded) -> None:
    tensors = recorded.tensors
    for stem in stems(tensors, "int8::", ".q"):
        scheme = TensorScheme(kind="percentile", bits=8, floor=1 / 127)
        assert_rounded(quantize_nearest(tensors[f"lite::{stem}.weight"], scheme), tensors, f"int8::{stem}")


def test_every_tensor_is_treated_as_recorded(recorded: Recorded) -> None:
    stored, meta = recorded.quantized(), recorded.description["mixed_meta"]
    assert stored.keys() == {golf_name(name) for name in meta}
    for name, tag in meta.items():
        value = stored[golf_name(name)]
        if tag == "passthrough":
            assert isinstance(value, Tensor), name
            assert value.dtype == torch.float16, name
        else:
            assert isinstance(value, QuantizedTensor), name
            assert value.bits == BITS[tag["type"]], name


def test_recorded_codes_and_scales_are_the_pipelines(recorded: Recorded) -> None:
    stored = recorded.quantized()
    for name in stems(recorded.tensors, "mixed::", ".q"):
        value = stored[golf_name(name)]
        assert isinstance(value, QuantizedTensor)
        assert_rounded(value, recorded.tensors, f"mixed::{name}")


def test_checksums_of_all_dequantized_tensors_are_exact(recorded: Recorded) -> None:
    template = {golf_name(name): weight for name, weight in recorded.weights.items()}
    weights = dequantize_weights(recorded.quantized(), template)
    for name, checksum in recorded.description["mixed_checksums"].items():
        values = weights[golf_name(name)].double()
        assert {"sum": values.sum().item(), "abs_sum": values.abs().sum().item()} == checksum, name


def fake_quantized(tensors: dict[str, Tensor], stem: str) -> dict[str, Tensor]:
    """The recorded product with a fake-quantized weight, and its gradients for the recorded gradient of y."""
    weight, x = (tensors[f"ste::{stem}.{name}"].requires_grad_() for name in ("weight", "x"))
    config = QuantConfig(method="row_max", scale_floor="unit")
    y = F.linear(x, fake_quantize(weight, "blocks.0.mlp.fc.weight", config))
    y.backward(tensors[f"ste::{stem}.grad_y"])
    assert weight.grad is not None
    assert x.grad is not None
    return {"y": y.detach(), "y_eval": F.linear(x, weight).detach(), "grad_weight": weight.grad, "grad_x": x.grad}


def test_the_fake_quantized_product_and_its_gradients_are_as_recorded(recorded: Recorded) -> None:
    atol: Any = recorded.description["tolerances"]["ste"]["atol"]
    for stem in stems(recorded.tensors, "ste::", ".weight"):
        for name, value in fake_quantized(recorded.tensors, stem).items():
            expected = recorded.tensors[f"ste::{stem}.{name}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=atol)
