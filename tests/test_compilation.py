"""torch.compile over the model: the same numbers, one graph a plan, none after the first use."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golf.compilation import Compile, compile_model, count_graphs, uncompiled
from golf.kernels.project import fused_project
from golf.kernels.table import PLAIN, AttentionFunction, fused_kernels
from golf.model.gpt import GPT
from golf.model.plan import plan_layers
from tests.attention_stand_ins import apart, masked_attention
from tests.kernels.interpreter import needs_interpreter
from tests.pico import pico_batch, pico_model, pico_recipe

pytestmark = [  # of torch's own tracer
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

RECORD = ("model.lanes.start=3", "model.attention_gate.window=5")  # parts of the records beside pico's own
PLANS = {looping: plan_layers(pico_recipe(*RECORD).model, looping=looping) for looping in (False, True)}


@pytest.fixture
def model() -> Iterator[GPT]:
    torch.compiler.reset()
    model = pico_model(pico_recipe(*RECORD))
    model.kernels = replace(PLAIN, attention=masked_attention)
    yield model
    torch.compiler.reset()


def losses_and_gradients(model: GPT, *, looping: bool) -> dict[str, Tensor]:
    model.zero_grad()
    losses: Tensor = model(pico_batch(2, 23), plan=PLANS[looping])
    losses.mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses.detach(), **gradients}


@pytest.mark.parametrize("how", ["block", "model"])
def test_a_compiled_model_has_the_numbers_of_an_eager_one(model: GPT, how: Compile) -> None:
    expected = {looping: losses_and_gradients(model, looping=looping) for looping in (False, True)}
    compile_model(model, how, backend="eager")
    for looping in (False, True):
        found = losses_and_gradients(model, looping=looping)
        torch.testing.assert_close(found, expected[looping], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["block", "model"])
def test_nothing_is_compiled_after_the_first_use_of_each_plan(model: GPT, how: Compile) -> None:
    compile_model(model, how, backend="eager")
    before = count_graphs()
    for looping in (False, True):
        losses_and_gradients(model, looping=looping)
    first = count_graphs()
    for looping in (True, False, True):
        losses_and_gradients(model, looping=looping)
    assert first > before
    assert count_graphs() == first


def test_a_layer_has_one_graph_however_often_it_is_visited(model: GPT) -> None:
    compile_model(model, "block", backend="eager")
    before = count_graphs()
    for looping in (False, True):
        losses_and_gradients(model, looping=looping)
    assert count_graphs() - before == len(model.blocks)


@pytest.mark.parametrize("how", ["block", "model"])
def test_an_observer_looks_into_the_uncompiled_forward(model: GPT, how: Compile) -> None:
    seen: list[str] = []

    class Names:
        def see(self, tap: str, x: Tensor) -> None:
            seen.append(tap)

    compile_model(model, how, backend="eager")
    before = count_graphs()
    with uncompiled(), torch.no_grad():
        model(pico_batch(2, 23), plan=PLANS[True], observer=Names())
    assert len(seen) > 4 * len(PLANS[True].visits)
    assert count_graphs() == before


def test_the_fused_projection_compiles(model: GPT) -> None:
    expected = losses_and_gradients(model, looping=False)
    model.kernels = replace(model.kernels, project=fused_project)
    compile_model(model, "model", backend="aot_eager")
    torch.testing.assert_close(losses_and_gradients(model, looping=False), expected, rtol=1e-5, atol=1e-6)


@needs_interpreter
@pytest.mark.parametrize("attention", [masked_attention, apart(masked_attention)], ids=["together", "apart"])
@pytest.mark.parametrize("how", ["block", "model"])
def test_a_model_of_fused_kernels_compiles_though_it_overwrites_its_stream(
    model: GPT, how: Compile, attention: AttentionFunction
) -> None:
    expected = losses_and_gradients(model, looping=True)
    model.kernels = replace(fused_kernels(), attention=attention)
    compile_model(model, how, backend="aot_eager")
    found = losses_and_gradients(model, looping=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
