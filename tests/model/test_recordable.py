"""A forward and backward that may be recorded as a CUDA graph: with no option does the host look at a tensor."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from golf.config import Recipe
from golf.kernels.table import PLAIN, Kernels
from golf.model.init import build_model
from golf.model.plan import plan_layers
from golf.quant.qat import fake_quantized_forward
from golf.recipe import recipe_names
from tests.attention_stand_ins import masked_attention
from tests.model.test_options import OPTIONS
from tests.narrow import narrow_recipe
from tests.pico import pico_batch, pico_recipe

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "repeat_interleave")


class Unread(TorchDispatchMode):
    """Fail when the host asks for a value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        assert not name.startswith(READS), f"the host reads a tensor: {name}"
        return function(*args, **kwargs or {})


KERNELS: Kernels = replace(PLAIN, attention=masked_attention)


def test_the_check_sees_a_read() -> None:
    with Unread(), pytest.raises(AssertionError, match="the host reads a tensor"):
        torch.ones(()).item()


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_reads_a_tensor(name: str) -> None:
    assert_reads_nothing(pico_recipe(*OPTIONS[name]))


@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_reads_a_tensor(name: str) -> None:
    assert_reads_nothing(narrow_recipe(name))


def test_late_quantization_reads_no_tensor() -> None:
    recipe = pico_recipe()
    model = build_model(recipe.model, seed=1, dtype=torch.float32, device=torch.device("cpu"), kernels=KERNELS)
    batch, plan = pico_batch(2, 32), plan_layers(recipe.model, looping=True)
    fake_quantized_forward(model, batch, plan=plan, config=recipe.quant).mean().backward()
    with Unread():
        fake_quantized_forward(model, batch, plan=plan, config=recipe.quant).mean().backward()


def assert_reads_nothing(recipe: Recipe) -> None:
    model = build_model(recipe.model, seed=1, dtype=torch.float32, device=torch.device("cpu"), kernels=KERNELS)
    batch = pico_batch(2, 32)
    for looping in (False, True) if recipe.model.loop else (False,):
        plan = plan_layers(recipe.model, looping=looping)
        model(batch, plan=plan, auxiliary=True).mean().backward()  # what is made once, such as rotary tables
        with Unread():
            model(batch, plan=plan, auxiliary=True).mean().backward()
