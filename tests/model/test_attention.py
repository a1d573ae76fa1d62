"""The attention stage: the order of norm, rotation and gain, and which layers have which parts."""

import torch

from golf.kernels.norm import rms_norm
from golf.kernels.table import PLAIN
from golf.model.attention import Attention
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.rotary import rotary_table
from tests.pico import pico_model, pico_recipe

ONES = torch.ones(32)


def stage(layer: int) -> tuple[Attention, Context, torch.Tensor]:
    """Layer `layer`'s attention with its context for two rows of nine tokens, and an input."""
    recipe = pico_recipe()
    attn = pico_model(recipe).get_submodule(f"blocks.{layer}.attn")
    assert isinstance(attn, Attention)
    n = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_table(recipe.model.rope, 9, torch.device("cpu"))
    values = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    return attn, Context(n, torch.tensor([0, 9, 14, 18], dtype=torch.int32), 9, cos, sin, PLAIN, {}, [], values), n


@torch.no_grad()
def test_the_gain_sharpens_queries_after_their_norm() -> None:
    attn, context, n = stage(0)
    before = attn(n, context, Hooks(), 0, ONES)
    attn.c_q.weight.mul_(7.0)  # the norm takes it out again
    torch.testing.assert_close(attn(n, context, Hooks(), 0, ONES), before, rtol=1e-4, atol=1e-4)
    assert attn.q_gain is not None
    attn.q_gain.mul_(7.0)
    assert float((attn(n, context, Hooks(), 0, ONES) - before).abs().max()) > 0.05


@torch.no_grad()
def test_values_are_not_normalized() -> None:
    attn, context, n = stage(0)
    before = attn(n, context, Hooks(), 0, ONES)
    attn.c_v.weight.mul_(3.0)
    torch.testing.assert_close(attn(n, context, Hooks(), 0, ONES), 3 * before, rtol=1e-4, atol=1e-5)


def test_the_last_layers_have_exclusive_attention_and_the_listed_ones_the_value_embedding() -> None:
    stages = [stage(layer)[0] for layer in range(4)]
    assert [attn.excludes for attn in stages] == [False, False, True, True]
    assert [list(attn.value_parts) for attn in stages] == [[], [], ["embedding"], ["embedding"]]


@torch.no_grad()
def test_the_first_token_of_a_segment_attends_to_itself_alone() -> None:
    attn, context, n = stage(0)
    out = attn(n, context, Hooks(), 0, ONES)
    own = attn.c_v(n).unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).flatten(2)  # a head's output is its own value
    for row, token in ((0, 0), (1, 0), (1, 5)):
        torch.testing.assert_close(out[row, token], attn.proj(own)[row, token], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exclusive_layers_put_out_nothing_at_the_first_token_of_a_segment() -> None:
    attn, context, n = stage(3)
    out = attn(n, context, Hooks(), 0, ONES)
    assert all(float(out[row, token].abs().max()) < 1e-6 for row, token in ((0, 0), (1, 0), (1, 5)))
    assert float(out[0, 1].abs().max()) > 0.05


def test_norms_are_per_head() -> None:
    attn, _, n = stage(0)
    assert rms_norm(attn._heads(attn.c_q(n))).square().mean(-1).allclose(torch.ones(2, 9, 4), atol=1e-4)


@torch.no_grad()
def test_the_gain_scales_the_output() -> None:
    attn, context, n = stage(0)
    gain = torch.randn(32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(attn(n, context, Hooks(), 0, gain), gain * attn(n, context, Hooks(), 0, ONES))
