"""One layer's forms of the residual step."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golf.kernels.norm import rms_norm
from golf.kernels.table import PLAIN
from golf.model.blocks import Block, ParallelBlock
from golf.model.context import Context
from golf.model.gpt import GPT
from golf.model.hooks import Hooks
from golf.model.plan import Visit, plan_layers
from tests.pico import pico_batch, pico_model, pico_recipe

VISIT = Visit(slot=2, layer=2, pass_index=0, pushes=False, skip_row=None)


def test_a_parallel_block_adds_both_branches_of_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    block = ParallelBlock(pico_recipe().model, 2)
    monkeypatch.setattr(block.attn, "forward", lambda n, *rest, onto: onto + 2 * rest[-1] * n)
    monkeypatch.setattr(block.mlp, "forward", lambda n, *rest, onto: onto + 3 * rest[-1] * n)
    assert block.resid_mix is not None
    for parameter in (block.attn_scale, block.mlp_scale, block.resid_mix):
        parameter.data = torch.randn(parameter.shape)
    x, x0 = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    empty = torch.empty(0)
    (found,) = block((x,), Context(x0, empty, 4, empty, empty, PLAIN, {}, []), Hooks(), VISIT)
    x_in = block.resid_mix[0] * x + block.resid_mix[1] * x0
    u = rms_norm(x_in) / 3**0.5
    torch.testing.assert_close(found, x_in + block.attn_scale * 2 * u + block.mlp_scale * 3 * u)


def test_layers_from_the_first_parallel_one_on_are_parallel() -> None:
    kinds = [type(block) for block in pico_model(pico_recipe("model.parallel_start=2")).blocks]
    assert kinds == [Block, Block, ParallelBlock, ParallelBlock]


def test_without_the_mix_a_layer_has_no_weight_for_it() -> None:
    names = {name for name, _ in pico_model(pico_recipe("model.resid_mix=false")).named_parameters()}
    assert not any(name.endswith("resid_mix") for name in names)


@pytest.mark.parametrize(
    ("changes", "copies"),
    [((), False), (("model.resid_mix=false",), True), (("model.value_residual.form=input",), True)],
)
def test_a_stream_is_copied_before_it_is_spent_only_where_others_keep_it(
    changes: tuple[str, ...], copies: bool
) -> None:
    u = torch.randn(2, 4, 32)
    found = Block(pico_recipe(*changes).model, 2).own(u)
    assert (found is not u) == copies
    assert torch.equal(found, u)


def test_a_stream_that_waits_is_taken_from_the_visit_that_read_it_next() -> None:
    """So its gradients are added up in that visit's backward; autograd would add them in a pass of its own."""
    handed_on, skipped = [], []

    def mix_norm(streams: Sequence[Tensor], weights: Tensor, *, scale: float) -> tuple[Tensor, ...]:
        u, n, *_ = PLAIN.mix_norm(streams, weights, scale=scale)
        handed_on.append(tuple(x.view_as(x) for x in streams))
        return u, n, *handed_on[-1]

    def mix(streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
        skipped.append(streams[1])
        return PLAIN.mix(streams, weights)

    recipe = pico_recipe()
    model = GPT(recipe.model, replace(PLAIN, mix_norm=mix_norm, mix=mix))
    plan = plan_layers(recipe.model, looping=True)
    model(pico_batch(1, 16), plan=plan)
    assert plan.num_encoder == len(skipped) == 3
    # The newest is merged before any visit reads it; that of visit 1 was read by visit 2, that of visit 0 by visit 1.
    assert all(skip is handed_on[visit][0] for skip, visit in zip(skipped[1:], (2, 1), strict=True))
