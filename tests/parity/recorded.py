"""The recorded models: golf's model with the reference's weights, and the recorded inputs."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golf.config import Recipe
from golf.data.documents import Batch
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan, plan_layers
from golf.model_config import ModelConfig
from golf.quant.scheme import QuantizedTensor, Stored
from golf.recipe import override_recipe
from tests.parity.fixture_set import read_fixture, under
from tests.parity.unbank import unbank, unbanked_weights
from tests.pico import pico_recipe

SAME = {  # our name: the reference's
    "lanes.post": "parallel_post_lambdas",
    "lanes.resid": "parallel_resid_lambdas",
    "skips.weights": "skip_weights",
    "skips.gates": "skip_gates",
    "carry.recur_alpha": "recur_alpha",
    "carry.recur_beta": "recur_beta",
    "stem.smear.weight": "smear_gate.weight",
    "stem.smear.strength": "smear_lambda",
}


def reference_name(name: str) -> str:
    return SAME.get(name, name.replace("attn.gate.weight", "attn.attn_gate_w"))


def config_of(values: dict[str, Any], tensors: dict[str, Tensor]) -> ModelConfig:
    """Translate the recorded hyperparameters; what golf has no name for must be off, what it always does, on."""
    assert not any(values[key] for key in ("attn_out_gate_enabled", "gated_attn_enabled", "rope_yarn"))
    assert values["sparse_attn_gate_enabled"]
    assert values.get("recur_alpha_enabled", False) == ("w::recur_alpha" in tensors)
    recipe: Recipe = override_recipe(
        pico_recipe("model.bigram=false", "model.value_embedding=false", "model.smear=false", "model.carry=false"),
        [
            *[f"model.{key}={values[key]}" for key in ("vocab_size", "num_layers", "model_dim", "num_heads")],
            *[f"model.{key}={values[key]}" for key in ("num_kv_heads", "mlp_mult", "logit_softcap", "xsa_last_n")],
            f"model.tie_embeddings={str(values['tie_embeddings']).lower()}",
            f"model.ln_scale={str(values['ln_scale']).lower()}",
            f"model.rope.dims={values['rope_dims']}",
            f"model.rope.base={values['rope_base']}",
            "model.skips.index=position",
            f"model.skips.gated={str(values['skip_gates_enabled']).lower()}",
            f"model.loop.start={values['loop_start']}",
            f"model.loop.end={values['loop_end']}",
            f"model.loop.extra_passes={values['num_loops']}",
            f"model.lanes.start={values['parallel_start_layer']}",
            f"model.lanes.final={values['parallel_final_lane']}",
            f"model.attention_gate.window={values['gate_window']}",
            f"model.attention_gate.scale={values['sparse_attn_gate_scale']}",
            *([f"model.smear.window={values['gate_window']}"] if values["smear_gate_enabled"] else []),
            *([f"model.carry.beta={tensors['w::recur_beta'].tolist()}"] if "w::recur_beta" in tensors else []),
            *([f"model.carry.alpha={tensors['w::recur_alpha'].tolist()}"] if "w::recur_alpha" in tensors else []),
        ],
    )
    return recipe.model


def causal_rows(tokens: Tensor, targets: Tensor) -> Batch:
    """Rows (B, T) that are one segment each, whatever documents are in them."""
    rows, length = tokens.shape
    return Batch(tokens, targets, torch.arange(0, rows * length + 1, length, dtype=torch.int32), length)


class Recorded:
    """One recorded model: golf's with the reference's weights, its inputs and its tolerances."""

    def __init__(self, folder: Path, name: str) -> None:
        self.description, own = read_fixture(folder, name)
        inputs, base = read_fixture(folder, "model_1787")
        self.out = own
        self.tokens = base
        self.max_seqlen = int(inputs["scalars"]["max_seqlen"])
        self.model = GPT(config_of(self.description["hyperparameters"], own))
        weights = unbank(under(base, "w::") | under(own, "w::"))
        state = {name: weights.pop(reference_name(name)) for name in self.model.state_dict()}
        assert not weights, f"recorded weights that no part of the model took: {sorted(weights)}"
        self.model.load_state_dict(state)

    def batch(self, packing: str) -> Batch:
        tokens, targets = (self.tokens[f"in::{packing}_{kind}"] for kind in ("ids", "targets"))
        if packing == "packed":
            return Batch(tokens[None], targets[None], self.tokens["in::cu_seqlens"], self.max_seqlen)
        return causal_rows(tokens, targets)

    def plan(self, loop: str) -> LayerPlan:
        return plan_layers(self.model.config, looping=loop == "on")


def recorded_artifact(folder: Path) -> dict[str, Stored]:
    """The recorded mixed quantization of `model_1787` as golf's stored tensors, under the reference's names."""
    description, tensors = read_fixture(folder, "artifact")
    weights = unbanked_weights(folder)
    stored: dict[str, Stored] = {}
    for name, tag in description["meta"].items():
        if tag.startswith("passthrough"):
            stored[name] = tensors[f"result::{name}"]
            continue
        codes, scale = (".gq", ".gs") if tag == "gate_int8_row" else (".q", ".scale")
        stored[name] = QuantizedTensor(
            codes=tensors[f"result::{name}{codes}"],
            scale=tensors[f"result::{name}{scale}"],
            bits=_bits(tag),
            shape=tuple(weights[name].shape),
        )
    return stored


def plain(tensor: Stored) -> Tensor:
    return tensor.float() if isinstance(tensor, Tensor) else tensor.dequantize()


def _bits(tag: str) -> int:
    found = re.search(r"int(\d)", tag)
    assert found
    return int(found[1])
