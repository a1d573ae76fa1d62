"""Every option of the model: it changes the function, leaves no trace when off, and keeps what must never leak."""

import pytest
import torch
from torch import Tensor

from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from golf.roles import role_of
from tests.model.leaks import assert_causal, assert_documents_apart
from tests.pico import pico_batch, pico_model, pico_recipe

NO_LOOP = ("model.loop=false", "schedule.loop_at=false")
CARRY = ("model.carry.beta=[1.25,0.75]", "model.carry.alpha=[[0.5,-0.25],[0.125,0.375]]")
SHARE = (*NO_LOOP, "model.share.start=1", "model.share.end=2")
OPTIONS = {
    "one less rotated channel pair": ("model.rope.dims=2",),
    "ntk": ("model.rope.scaling={method='ntk',trained_len=4,length=8}",),
    "yarn": ("model.rope.scaling={method='yarn',trained_len=64,length=256}",),
    "rounded rotary frequencies": ("model.rope.round_to_bfloat16=true",),
    "no query and key norm": ("model.qk_norm=false",),
    "no query gain": ("model.q_gain_init=false",),
    "a key head for every query head": ("model.num_kv_heads=4",),
    "exclusive attention everywhere": ("model.xsa_last_n=4",),
    "no value embedding": ("model.value_embedding=false",),
    "no bigram": ("model.bigram=false",),
    "no smear gate": ("model.smear=false",),
    "smear by blending": ("model.smear=false", "model.smear={form='blend'}"),
    "sparse gate": ("model.attention_gate.window=5",),
    "dense gate": ("model.attention_gate.window=32", "model.attention_gate.bias=4.0"),
    "output gate": ("model.attention_gate={window=5,gain=2.0,source='query'}",),
    "relu squared": ("model.negative_slope=0.0",),
    "star relu": ("model.activation=star_relu",),
    "swiglu": ("model.activation=swiglu",),
    "gated square": ("model.activation=relu_square_gated",),
    "no layer scale of norms": ("model.ln_scale=false",),
    "no resid mix": ("model.resid_mix=false",),
    "no skips": ("model.skips=false",),
    "skips without gates": ("model.skips.gated=false",),
    "skips by position": ("model.skips.index=position",),
    "no loop": NO_LOOP,
    "another loop band": ("model.loop.start=0", "model.loop.end=1", "model.loop.extra_passes=2"),
    "frozen carry": CARRY,
    "learned carry": (*CARRY, "model.carry.learn=true"),
    "lanes": ("model.lanes.start=3",),
    "parallel residuals": ("model.parallel_start=2",),
    "shared layers": (*SHARE, "model.share.loops=3"),
    "shared layers with positions": (*SHARE, "model.share.loops=3", "model.share.position_std=0.01"),
    "value residual, mixed": ("model.value_residual.form=mix",),
    "value residual, added": ("model.value_residual.form=add",),
    "value residual, of the input": ("model.value_residual.form=input",),
    "several tokens ahead": ("model.multi_token={heads=2,weight=0.3}",),
    "low-rank MLP": ("model.mlp_rank=3",),
    "corrections a pass": ("model.loop.mlp_lora_rank=2",),
    "widths a layer": ("model.mlp_widths=[1.0,0.5,2.0,1.0]",),
    "a head of its own": ("model.tie_embeddings=false", "optim.head_lr=0.008"),
    "no soft cap": ("model.logit_softcap=false",),
    "ternary": ("model.ternary.group=8", "schedule.late_qat_below=0"),
    "across documents": ("model.cross_documents=true",),
}


def model_with(name: str) -> GPT:
    return pico_model(pico_recipe(*OPTIONS[name]))


@torch.no_grad()
def losses(model: GPT) -> Tensor:
    """Of two rows, with the loop off and on."""
    plans = (plan_layers(model.config, looping=looping) for looping in (False, True))
    return torch.cat([model(pico_batch(2, 23), plan=plan, auxiliary=True) for plan in plans])


@pytest.mark.parametrize("name", OPTIONS)
def test_it_changes_the_losses_of_a_model_with_the_same_weights(name: str) -> None:
    plain, model = pico_model(), model_with(name)
    theirs, own = plain.state_dict(), model.state_dict()
    model.load_state_dict(own | {key: value for key, value in theirs.items() if _fits(own, key, value)})
    assert not torch.equal(losses(model), losses(plain))


def _fits(own: dict[str, Tensor], key: str, value: Tensor) -> bool:
    return key in own and own[key].shape == value.shape


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_has_a_role_and_gets_a_gradient(name: str) -> None:
    model = model_with(name)
    model(pico_batch(2, 23), plan=plan_layers(model.config, looping=True), auxiliary=True).mean().backward()
    for key, parameter in model.named_parameters():
        role_of(key, parameter.ndim)
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()), key


@pytest.mark.parametrize("name", OPTIONS)
def test_no_token_moves_an_earlier_loss(name: str) -> None:
    assert_causal(model_with(name))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "across documents"])
def test_no_document_moves_anothers_losses(name: str) -> None:
    assert_documents_apart(model_with(name))


def test_across_documents_the_stem_reads_the_document_before() -> None:
    with pytest.raises(AssertionError):
        assert_documents_apart(model_with("across documents"))
