"""Two residual streams in the last layers."""

from typing import Any

import pytest
import torch

from golf.kernels.norm import rms_norm
from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.parts.lanes import LaneBlock, finish_lanes
from golf.model.plan import plan_layers
from tests.pico import pico_batch, pico_model, pico_recipe

RECIPE = pico_recipe("model.lanes.start=3", "model.attention_gate.window=5")
PLAN = plan_layers(RECIPE.model, looping=True)


def test_a_block_reads_attention_from_the_first_lane_and_the_mlp_from_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = LaneBlock(RECIPE.model, 3)
    monkeypatch.setattr(block.attn, "forward", lambda n, *rest: 2 * rest[-1] * n)
    monkeypatch.setattr(block.mlp, "forward", lambda n, *rest: 3 * rest[-1] * n)
    assert block.resid_mix is not None
    generator = torch.Generator().manual_seed(1)
    for parameter in (block.attn_scale, block.mlp_scale, block.resid_mix):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    p, q, x0 = (torch.randn(2, 4, 32, generator=generator) for _ in range(3))
    post, resid = torch.randn(4, 2, 2, generator=generator), torch.randn(4, 2, generator=generator)
    unused: Any = None
    context = Context(x0, unused, 16, unused, unused, PLAIN, {}, [], lanes=(post, resid))
    new_p, new_q = block((p, q), context, Hooks(), PLAN.visits[-1])
    s = (3 + 1) ** -0.5
    a = block.attn_scale * 2 * s * rms_norm(block.resid_mix[0] * p + block.resid_mix[1] * x0)
    m = block.mlp_scale * 3 * s * rms_norm(q)
    torch.testing.assert_close(new_p, resid[3, 0] * p + post[3, 0, 0] * a + post[3, 1, 0] * m)
    torch.testing.assert_close(new_q, resid[3, 1] * q + post[3, 0, 1] * a + post[3, 1, 1] * m)


def test_the_head_reads_their_mean_or_one_of_them() -> None:
    p, q = torch.randn(2, 3), torch.randn(2, 3)
    for dtype in (torch.float32, torch.bfloat16):
        lanes = p.to(dtype), q.to(dtype)
        assert torch.equal(finish_lanes(lanes, PLAIN, final="mean"), rms_norm((lanes[0] + lanes[1]) / 2))
        assert torch.equal(finish_lanes(lanes, PLAIN, final="attn"), rms_norm(lanes[0]))
        assert torch.equal(finish_lanes(lanes, PLAIN, final="mlp"), rms_norm(lanes[1]))


def test_the_stream_splits_once_before_the_first_lane_layer() -> None:
    assert [visit.layer for visit in PLAN.visits if visit.splits] == [3]
    assert not any(visit.splits for visit in plan_layers(pico_recipe("model.lanes=false").model, looping=True).visits)


def test_every_weight_of_the_used_rows_gets_a_gradient() -> None:
    model = pico_model(RECIPE)
    model(pico_batch(2, 23), plan=PLAN).mean().backward()
    assert model.lanes is not None
    for weight in (model.lanes.post.grad, model.lanes.resid.grad):
        assert weight is not None
        assert bool((weight[3] != 0).all())
        assert bool((weight[:3] == 0).all())
