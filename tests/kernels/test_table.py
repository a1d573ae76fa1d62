"""Fused and plain kernels give one model: the whole of it, through Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golf.kernels.attention import attention
from golf.kernels.table import PLAIN, Kernels, choose_kernels, fused_kernels
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from tests.attention_stand_ins import apart
from tests.kernels.interpreter import needs_interpreter
from tests.pico import RECORD_PARTS, pico_batch, pico_model, pico_recipe

CPU = torch.device("cpu")
RECIPE = pico_recipe(*RECORD_PARTS)


def losses_and_gradients(model: GPT, kernels: Kernels, *, looping: bool) -> dict[str, Tensor]:
    model.kernels = kernels
    model.zero_grad()
    losses: Tensor = model(pico_batch(2, 23), plan=plan_layers(model.config, looping=looping))
    losses.mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses.detach(), **gradients}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    whole = torch.stack([value.norm() for name, value in expected.items() if name != "losses"]).norm()
    for name, value in expected.items():  # a scalar's gradient may be a small difference of large sums
        assert float((found[name] - value).norm()) <= 2e-5 * float(value.norm()) + 1e-8 * float(whole), name


@needs_interpreter
@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        RECORD_PARTS,
        ("model.skips.gated=false", "model.parallel_start=2", "model.qk_norm=false", "model.q_gain_init=false"),
        ("model.activation=swiglu", "model.resid_mix=false", "model.logit_softcap=false", "model.xsa_last_n=0"),
        ("model.attention_gate.window=5", "model.attention_gate.source=query", "model.value_residual.form=input"),
    ],
    ids=["record", "parallel", "bare", "query"],
)
def test_a_model_of_fused_kernels_is_the_plain_model(changes: tuple[str, ...], looping: bool) -> None:
    model = pico_model(pico_recipe(*changes))
    expected = losses_and_gradients(model, PLAIN, looping=looping)
    assert_near(losses_and_gradients(model, fused_kernels(), looping=looping), expected)


@needs_interpreter
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_gradients_of_k_and_v_that_come_apart_are_the_plain_models(kv_heads: int) -> None:
    model = pico_model(pico_recipe(*RECORD_PARTS, f"model.num_kv_heads={kv_heads}"))
    expected = losses_and_gradients(model, PLAIN, looping=True)
    assert_near(
        losses_and_gradients(model, replace(fused_kernels(), attention=apart(attention)), looping=True), expected
    )


@needs_interpreter
def test_in_bfloat16_the_fused_model_is_as_near_to_float64_as_the_plain_one() -> None:
    """At most twice as far, the whole gradient together."""
    model = pico_model(RECIPE)
    exact = losses_and_gradients(pico_model(RECIPE).double(), PLAIN, looping=True)
    for name in ("tok_emb.weight", "stem.bigram.table.weight", "value_embedding.table.weight"):
        model.get_parameter(name).data = model.get_parameter(name).data.bfloat16()
    errors = []
    for kernels in (PLAIN, fused_kernels()):
        found = losses_and_gradients(model, kernels, looping=True)
        errors.append([float((found[name].double() - value).norm() / value.norm()) for name, value in exact.items()])
    plain, fused = (torch.tensor(values) for values in errors)
    assert float(fused.norm()) <= 2 * float(plain.norm())
    assert float(fused[0]) <= 2 * float(plain[0])


def test_a_cpu_computes_with_plain_kernels_and_says_so() -> None:
    chosen = choose_kernels(CPU, torch.float32)
    assert replace(chosen, attention=PLAIN.attention, attention_description=PLAIN.attention_description) == PLAIN
    assert chosen.names()["kernels"] == "plain PyTorch"
    assert "padded" in chosen.sentence()


def test_every_entry_has_a_fused_form_but_the_attention() -> None:
    plain, fused = PLAIN, fused_kernels()
    names = [name for name in Kernels.__dataclass_fields__ if getattr(plain, name) is getattr(fused, name)]
    assert names == ["attention", "attention_description"]
