"""Skips: the lerp with gates, the plain sum without."""

import torch
from torch import Tensor

from golf.kernels.table import PLAIN
from golf.model.context import Context
from golf.model.parts.skips import Skips
from golf.model.plan import Visit


def merge(skips: Skips, x: Tensor, waiting: Tensor, row: int) -> Tensor:
    """What a decoder visit of `row` reads."""
    empty = torch.empty(0)
    context = Context(empty, empty, 5, empty, empty, PLAIN, {}, [torch.zeros_like(x), waiting])  # the newest is taken
    visit = Visit(slot=0, layer=0, pass_index=0, pushes=False, skip_row=row)
    merged: Tensor = skips(x, visit, context)
    assert len(context.waiting) == 1
    return merged


def stirred(*, gated: bool) -> tuple[Skips, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    skips = Skips(3, 8, gated=gated)
    with torch.no_grad():
        for parameter in skips.parameters():
            parameter.copy_(torch.randn(3, 8, generator=generator))
    return skips, torch.randn(2, 5, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)


@torch.no_grad()
def test_a_gate_mixes_the_stream_with_the_weighted_skip() -> None:
    skips, x, waiting = stirred(gated=True)
    assert skips.gates is not None
    for row in range(3):
        gate, s = torch.sigmoid(skips.gates[row]), skips.weights[row] * waiting
        torch.testing.assert_close(merge(skips, x, waiting, row), gate * x + (1 - gate) * s)


@torch.no_grad()
def test_without_gates_the_weighted_skip_is_added() -> None:
    skips, x, waiting = stirred(gated=False)
    assert skips.gates is None
    torch.testing.assert_close(merge(skips, x, waiting, 2), x + skips.weights[2] * waiting)


@torch.no_grad()
def test_new_gates_take_half_of_each() -> None:
    _, x, waiting = stirred(gated=True)
    torch.testing.assert_close(merge(Skips(1, 8, gated=True), x, waiting, 0), (x + waiting) / 2)


@torch.no_grad()
def test_the_dtype_of_the_stream_is_kept() -> None:
    skips, x, waiting = stirred(gated=True)
    assert merge(skips, x.bfloat16(), waiting.bfloat16(), 0).dtype == torch.bfloat16
