"""What later layers take from the first one, in its three forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.parts.value_residual import (
    AddFirstValues,
    MixFirstOutput,
    MixFirstValues,
    RememberValues,
    remember_output,
)
from golf.model.plan import Visit, plan_layers
from tests.pico import pico_batch, pico_model, pico_recipe


def empty_context() -> Context:
    unused: Any = None
    return Context(unused, unused, 1, unused, unused, PLAIN, {}, [])


def first_and_later() -> tuple[Context, Tensor, Tensor]:
    """A context that remembers the first values, those values, and later ones."""
    generator = torch.Generator().manual_seed(0)
    first, later = (torch.randn(2, 3, 2, 5, generator=generator) for _ in range(2))
    context = empty_context()
    assert RememberValues()(first, context) is first
    return context, first, later


def test_the_mix_weighs_first_and_own_values() -> None:
    context, first, later = first_and_later()
    part = MixFirstValues()
    torch.testing.assert_close(part(later, context), 0.5 * first + 0.5 * later)
    part.weights.data = torch.tensor([0.25, -2.0])
    torch.testing.assert_close(part(later, context), 0.25 * first - 2.0 * later)


def test_the_sum_adds_a_sigmoid_share_of_the_first_values() -> None:
    context, first, later = first_and_later()
    part = AddFirstValues()
    torch.testing.assert_close(part(later, context), later + 0.5 * first)
    part.weight.data.fill_(1.0986123)  # logit of 3/4
    torch.testing.assert_close(part(later, context), later + 0.75 * first)


def test_the_first_pass_is_what_is_remembered() -> None:
    context, first, later = first_and_later()
    RememberValues()(later, context)  # the same layer again, in a loop
    torch.testing.assert_close(AddFirstValues()(torch.zeros_like(later), context), 0.5 * first)


def test_attention_reads_a_blend_of_its_input_and_the_first_output() -> None:
    context, x, first = empty_context(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    first_visit, later, again = (Visit(0, layer, 0, False, None) for layer in (0, 1, 0))
    for output, visit in ((first, first_visit), (x, later), (x, again)):
        assert remember_output(output, visit, context) is output
    share = torch.sigmoid(torch.tensor(0.5))
    torch.testing.assert_close(MixFirstOutput()(x, context), share * x + (1 - share) * first)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("mix", [f"blocks.{layer}.attn.value_parts.residual.weights" for layer in (1, 2, 3)]),
        ("add", [f"blocks.{layer}.attn.value_parts.residual.weight" for layer in (1, 2, 3)]),
        ("input", [f"blocks.{layer}.first_output.weight" for layer in (1, 2, 3)]),
    ],
)
def test_every_layer_but_the_first_has_a_weight_that_is_trained(form: str, expected: list[str]) -> None:
    model = pico_model(pico_recipe(f"model.value_residual.form={form}"))
    model(pico_batch(2, 23), plan=plan_layers(model.config, looping=True)).mean().backward()
    found = [name for name, _ in model.named_parameters() if name not in dict(pico_model().named_parameters())]
    assert found == expected
    for name in expected:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert bool((gradient != 0).all()), name
