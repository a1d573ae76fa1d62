"""The forward and its gradients against the recorded models of PRs #1787, #1801 and #1855."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.config import ModelConfig, Recipe
from golf.data.documents import Batch
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from golf.recipe import override_recipe
from tests.parity.unbank import read_fixture, unbank
from tests.pico import pico_recipe

MODELS = ("model_1787", "model_1801", "model_1855")
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
    return SAME.get(name, name.replace("output_parts.gate.weight", "attn_gate_w"))


def config_of(values: dict[str, Any], tensors: dict[str, Tensor]) -> ModelConfig:
    """Translate the recorded hyperparameters."""
    recipe: Recipe = override_recipe(
        pico_recipe("model.bigram=false", "model.value_embedding=false", "model.smear=false", "model.carry=false"),
        [
            *[f"model.{key}={values[key]}" for key in ("vocab_size", "num_layers", "model_dim", "num_heads")],
            *[f"model.{key}={values[key]}" for key in ("num_kv_heads", "mlp_mult", "logit_softcap", "xsa_last_n")],
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


class Recorded:
    """One recorded model: golf's with the reference's weights, its inputs and its tolerances."""

    def __init__(self, folder: Path, name: str) -> None:
        self.description, own = read_fixture(folder, name)
        inputs, base = read_fixture(folder, "model_1787")
        self.out = own
        self.tokens = base
        self.max_seqlen = int(inputs["scalars"]["max_seqlen"])
        self.model = GPT(config_of(self.description["hyperparameters"], own))
        weights = unbank({key[3:]: tensor for key, tensor in (base | own).items() if key.startswith("w::")})
        state = {name: weights.pop(reference_name(name)) for name in self.model.state_dict()}
        assert not weights, f"recorded weights that no part of the model took: {sorted(weights)}"
        self.model.load_state_dict(state)

    def batch(self, packing: str) -> Batch:
        tokens, targets = (self.tokens[f"in::{packing}_{kind}"] for kind in ("ids", "targets"))
        if packing == "packed":
            return Batch(tokens[None], targets[None], self.tokens["in::cu_seqlens"], self.max_seqlen)
        rows, length = tokens.shape
        return Batch(tokens, targets, torch.arange(0, rows * length + 1, length, dtype=torch.int32), length)

    def plan(self, loop: str) -> Any:
        return plan_layers(self.model.config, looping=loop == "on")


CASES = [("model_1787", packing, loop) for packing in ("packed", "unpacked") for loop in ("off", "on")]
CASES += [(name, packing, "on") for name in MODELS[1:] for packing in ("packed", "unpacked")]


@pytest.mark.parametrize(("name", "packing", "loop"), CASES)
def test_logits_and_losses_are_the_recorded_ones(fixtures: Path, name: str, packing: str, loop: str) -> None:
    recorded = Recorded(fixtures, name)
    batch, plan = recorded.batch(packing), recorded.plan(loop)
    tolerances = recorded.description["tolerances"]
    with torch.no_grad():
        logits, loss = recorded.model.logits(batch, plan=plan), recorded.model(batch, plan=plan).mean()
    expected = recorded.out[f"out::logits_{packing}_loop_{loop}"]
    torch.testing.assert_close(logits.view_as(expected), expected, **tolerances["logits"])
    torch.testing.assert_close(loss, recorded.out[f"out::loss_{packing}_loop_{loop}"], **tolerances["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_every_recorded_gradient_is_ours(fixtures: Path, name: str) -> None:
    recorded = Recorded(fixtures, name)
    recorded.model(recorded.batch("packed"), plan=recorded.plan("on")).mean().backward()
    expected = unbank({key[6:]: tensor for key, tensor in recorded.out.items() if key.startswith("grad::")})
    found = {reference_name(key): value.grad for key, value in recorded.model.named_parameters()}
    limit = recorded.description["tolerances"]["grad"]["relative_norm_per_tensor"]
    for key, gradient in expected.items():
        ours = found[key]
        assert ours is not None
        assert float((ours - gradient).norm()) <= limit * float(gradient.norm()), key


def test_the_layers_are_visited_in_the_recorded_order(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1787")
    plan = recorded.plan("on")
    assert plan.encoder == recorded.description["encoder_indices"]
    assert plan.decoder == recorded.description["decoder_indices"]
    assert len(recorded.tokens["w::skip_weights"]) == recorded.description["num_skip_weights"]


def test_without_the_document_mask_the_smear_gate_gives_other_logits(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1855")
    unmasked = recorded.out["out::logits_packed_loop_on_without_bos_mask"]
    with torch.no_grad():
        logits = recorded.model.logits(recorded.batch("packed"), plan=recorded.plan("on"))[0]
    assert float((logits - unmasked).abs().max()) > 1e-2
