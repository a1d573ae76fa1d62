"""The forward, its gradients and the scaled rotary tables against the recorded model of PR #401's lineage."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.model.gpt import GPT
from golf.model.plan import LayerPlan, plan_layers
from golf.model.rotary import rotary_table
from golf.model_config import ModelConfig
from golf.part_config import (
    BigramConfig,
    RopeConfig,
    RopeScalingConfig,
    SkipConfig,
    SmearConfig,
    ValueEmbeddingConfig,
)
from tests.parity.fixture_set import read_fixture, under
from tests.parity.recorded import causal_rows

SAME = {  # our name: the reference's
    "skips.weights": "skip_weights",
    "stem.bigram.table.weight": "bigram.embed.weight",
    "stem.bigram.proj.weight": "bigram.proj.weight",
    "stem.bigram.scale": "bigram.scale",
    "blend.gate": "smear.gate",
    "value_embedding.table.weight": "ve_shared.embed.weight",
    "value_embedding.proj.weight": "ve_shared.proj.weight",
    "value_embedding.scale": "ve_shared.scale",
}


def config_of(values: dict[str, Any]) -> ModelConfig:
    """Translate the recorded hyperparameters; what golf has no name for must be off."""
    assert not values["dtg"]
    assert not values["mtp_num_heads"]
    assert values["ve_enabled"]
    return ModelConfig(
        vocab_size=values["vocab_size"],
        num_layers=values["num_layers"],
        model_dim=values["model_dim"],
        num_heads=values["num_heads"],
        num_kv_heads=values["num_kv_heads"],
        mlp_mult=values["mlp_mult"],
        negative_slope=0.0,
        xsa_last_n=values["xsa_last_n"],
        ln_scale=values["ln_scale"],
        q_gain_init=values["qk_gain_init"],
        logit_softcap=values["logit_softcap"],
        tie_embeddings=values["tie_embeddings"],
        embed_init_std=values["tied_embed_init_std"],
        cross_documents=True,
        rope=RopeConfig(dims=values["rope_dims"], base=values["rope_base"]),
        skips=SkipConfig(gated=False),
        bigram=BigramConfig(buckets=values["bigram_vocab_size"], dim=values["bigram_dim"]),
        smear=SmearConfig(form="blend"),
        value_embedding=ValueEmbeddingConfig(dim=values["ve_dim"], layers=_layers(values)),
    )


def _layers(values: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(layer) for layer in values["ve_layers"].split(","))


def reference_names(values: dict[str, Any]) -> dict[str, str]:
    """Our names of what differs: the lists of value embeddings are counted over the layers that have one."""
    scales = {
        f"blocks.{layer}.attn.value_parts.embedding.scale": f"ve_layer_scales.{index}"
        for index, layer in enumerate(_layers(values))
    }
    return SAME | scales


class Recorded:
    """golf's model with the recorded weights."""

    def __init__(self, folder: Path) -> None:
        self.description, self.tensors = read_fixture(folder, "model_pr401")
        _, base = read_fixture(folder, "model_1787")
        self.values = self.description["hyperparameters"]
        self.names = reference_names(self.values)
        self.model = GPT(config_of(self.values))
        weights = under(self.tensors, "w::")
        like = self.model.state_dict()
        state = {name: weights.pop(self.names.get(name, name)).view_as(tensor) for name, tensor in like.items()}
        assert not weights, f"recorded weights that no part of the model took: {sorted(weights)}"
        self.model.load_state_dict(state)
        self.batch = causal_rows(base["in::unpacked_ids"], base["in::unpacked_targets"])

    @property
    def plan(self) -> LayerPlan:
        return plan_layers(self.model.config, looping=False)


def test_logits_and_the_loss_are_the_recorded_ones(fixtures: Path) -> None:
    recorded = Recorded(fixtures)
    tolerances = recorded.description["tolerances"]
    logits_limits, loss_limits = {**tolerances["logits"]}, {**tolerances["loss"]}
    with torch.no_grad():
        logits = recorded.model.logits(recorded.batch, plan=recorded.plan)
        loss = recorded.model(recorded.batch, plan=recorded.plan).mean()
    if "out::logits" in recorded.tensors:  # the compact subset has few
        torch.testing.assert_close(logits, recorded.tensors["out::logits"], **logits_limits)
    torch.testing.assert_close(loss, recorded.tensors["out::loss"], **loss_limits)


def test_every_recorded_gradient_is_ours(fixtures: Path) -> None:
    recorded = Recorded(fixtures)
    recorded.model(recorded.batch, plan=recorded.plan).mean().backward()
    found = {recorded.names.get(key, key): value.grad for key, value in recorded.model.named_parameters()}
    limit = recorded.description["tolerances"]["grad"]["relative_norm_per_tensor"]
    expected = under(recorded.tensors, "grad::")
    assert expected
    for key, gradient in expected.items():
        ours = found[key]
        assert ours is not None
        assert float((ours.view_as(gradient) - gradient).norm()) <= limit * float(gradient.norm()), key


def test_masked_at_document_starts_the_model_is_another(fixtures: Path) -> None:
    recorded = Recorded(fixtures)
    recorded.batch.tokens[:, 1] = recorded.model.config.bos_id
    config = config_of(recorded.values)
    masked = GPT(ModelConfig(**{**_fields(config), "cross_documents": False}))
    masked.load_state_dict(recorded.model.state_dict())
    with torch.no_grad():
        logits, others = (model.logits(recorded.batch, plan=recorded.plan) for model in (recorded.model, masked))
        difference = others - logits
    assert float(difference.abs().max()) > 1e-2


def _fields(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("kind", ["ntk", "yarn"])
def test_scaled_rotary_tables_are_the_recorded_ones(fixtures: Path, kind: str) -> None:
    """What PR #1787 calls YaRN is the same scaling of the base."""
    description, tensors = read_fixture(fixtures, "model_pr401")
    (note,) = (note for note in description["notes"] if note.startswith(f"rope_{kind}:"))
    trained, length = lengths_of(note)
    values = description["hyperparameters"]
    scaling = RopeScalingConfig(method="ntk", trained_len=trained, length=length)
    config = RopeConfig(dims=values["rope_dims"], base=values["rope_base"], scaling=scaling)
    cos, sin = (part[:, 0] for part in rotary_table(config, length, torch.device("cpu")))
    at = tensors["rope_ntk::positions"] if kind == "ntk" else torch.arange(length)
    for found, expected in ((cos, tensors[f"rope_{kind}::cos"]), (sin, tensors[f"rope_{kind}::sin"])):
        # An angle of 1,535 has an ulp of 1.2e-4: what the tables may differ by is what logits may.
        torch.testing.assert_close(found[at], expected, **description["tolerances"]["logits"])


def lengths_of(note: str) -> tuple[int, int]:
    """Trained and used length, which the JSON gives in words."""
    trained, length = (re.search(rf"{word} length (\d+)", note) for word in ("training", "sequence"))
    assert trained
    assert length
    return int(trained[1]), int(length[1])
