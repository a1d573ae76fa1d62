"""Layers that run several times from the first step on ("Frugendorff")."""

from typing import Any

import pytest
import torch

from golf.model.init import count_parameters
from golf.model.parts.share import LoopPositions
from golf.model.plan import plan_layers
from golf.part_config import ShareConfig
from tests.pico import pico_batch, pico_model, pico_recipe


def visited(*overrides: str) -> list[int]:
    config = pico_recipe("schedule.loop_at=false", "model.loop=false", *overrides).model
    return [visit.layer for visit in plan_layers(config, looping=False).visits]


@pytest.mark.parametrize(
    ("layers", "share", "order"),
    [
        (6, (0, 5, 2), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),  # the whole stack: 6 blocks, depth 12
        (9, (4, 4, 3), [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]),  # one block: 9 stored, depth 11
        (4, (1, 2, 2), [0, 1, 2, 1, 2, 3]),
    ],
)
def test_the_band_runs_as_often_as_it_is_shared(layers: int, share: tuple[int, int, int], order: list[int]) -> None:
    start, end, loops = share
    names = f"model.share.start={start}", f"model.share.end={end}", f"model.share.loops={loops}"
    assert visited(f"model.num_layers={layers}", *names) == order


def shared(*more: str) -> list[str]:
    keys = ("start=1", "end=2", "loops=3", "position_std=0.01")
    return ["model.loop=false", "schedule.loop_at=false", *(f"model.share.{key}" for key in keys), *more]


def test_sharing_adds_depth_and_no_matrix() -> None:
    alone = pico_model(pico_recipe("model.loop=false", "schedule.loop_at=false"))
    both = pico_model(pico_recipe(*shared()))
    assert len(plan_layers(both.config, looping=False).visits) == 8
    positions, more_skips = 3 * 32, 2 * (4 - 2) * 32  # of 8 visits 4 merge, of 4 two; weights and gates
    assert count_parameters(both) == count_parameters(alone) + positions + more_skips


def test_each_loop_begins_at_its_own_position() -> None:
    config = pico_recipe(*shared()).model
    part = LoopPositions(config, ShareConfig(start=1, end=2, loops=3, position_std=0.01))
    part.positions.data = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 32)
    context: Any = None  # not looked at
    for visit in plan_layers(config, looping=False).visits:
        expected = x + part.positions[visit.pass_index] if visit.layer == 1 else x
        assert torch.equal(part(x, visit, context), expected)


def test_positions_start_orthogonal_at_their_scale() -> None:
    from golf.model.init import build_model

    model = build_model(pico_recipe(*shared()).model, seed=1, dtype=torch.float32, device=torch.device("cpu"))
    assert model.share is not None
    positions = model.share.positions.detach()
    torch.testing.assert_close(positions @ positions.T, 1e-4 * torch.eye(3), rtol=1e-4, atol=1e-9)


def test_every_position_is_trained() -> None:
    model = pico_model(pico_recipe(*shared()))
    model(pico_batch(2, 23), plan=plan_layers(model.config, looping=False)).mean().backward()
    assert model.share is not None
    assert model.share.positions.grad is not None
    assert bool((model.share.positions.grad != 0).all())


def test_a_loops_position_is_added_before_the_skip_is_merged() -> None:
    model = pico_model(pico_recipe(*shared()))
    assert (model.share, model.skips) == model.before_block
    assert model.share is not None
