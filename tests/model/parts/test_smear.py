"""SmearGate: its formula, its start as the identity, and the borders it never crosses."""

import torch
from torch import Tensor

from golf.model.hooks import Hooks
from golf.model.parts.smear import Smear, SmearBlend

FOLLOWS = torch.tensor([[False, True, True, False, True, True, True], [False, True, True, True, True, False, True]])


def case() -> tuple[Smear, Tensor]:
    """A gate that is open, and two rows of seven embeddings with a document start in each."""
    part = Smear(3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.weight.copy_(torch.randn(1, 3, generator=generator))
        part.strength.fill_(0.8)
    return part, torch.randn(2, 7, 5, generator=generator)


@torch.no_grad()
def smeared(part: Smear, e: Tensor) -> Tensor:
    out: Tensor = part(e, torch.zeros(2, 7, dtype=torch.int64), FOLLOWS, Hooks())
    return out


def test_a_new_gate_is_the_identity() -> None:
    _, e = case()
    assert torch.equal(smeared(Smear(3), e), e)


def test_a_token_gets_its_gates_share_of_the_one_before() -> None:
    part, e = case()
    expected = e.clone()
    for row in range(2):
        for t in range(7):
            if FOLLOWS[row, t]:
                gate = torch.sigmoid(part.weight[0] @ e[row, t, :3])
                expected[row, t] += part.strength[0] * gate * e[row, t - 1]
    torch.testing.assert_close(smeared(part, e), expected.detach())


def test_nothing_flows_over_a_document_start() -> None:
    part, e = case()
    before = smeared(part, e)
    e[0, :3] += 1
    after = smeared(part, e)
    assert torch.equal(after[0, 3:], before[0, 3:])


def test_nothing_flows_over_a_row_start() -> None:
    part, e = case()
    before = smeared(part, e)
    e[:, 6] += 1  # the last of each row, where a roll wraps to the first
    after = smeared(part, e)
    assert torch.equal(after[:, :6], before[:, :6])


def test_only_the_window_opens_the_gate() -> None:
    part, e = case()
    before = smeared(part, e)
    e[:, -1, 3:] += 1  # channels beyond the window of the last token
    after = smeared(part, e)
    torch.testing.assert_close(after[:, -1, 3:], before[:, -1, 3:] + 1)
    assert torch.equal(after[:, -1, :3], before[:, -1, :3])


def blend() -> tuple[SmearBlend, Tensor]:
    part, x = SmearBlend(5), torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    part.gate.data = torch.randn(5, generator=torch.Generator().manual_seed(1))
    return part, x


@torch.no_grad()
def test_the_blend_moves_each_channel_by_its_share_to_the_token_before() -> None:
    part, x = blend()
    found = part(x, FOLLOWS)
    for row in range(2):
        for t in range(7):
            before = x[row, t - 1] if FOLLOWS[row, t] else torch.zeros(5)
            share = 1 / (1 + torch.exp(-part.gate))
            torch.testing.assert_close(found[row, t], (1 - share) * x[row, t] + share * before)


def test_a_new_blend_is_even() -> None:
    _, x = blend()
    torch.testing.assert_close(SmearBlend(5)(x, FOLLOWS)[0, 1].detach(), (x[0, 0] + x[0, 1]) / 2)


@torch.no_grad()
def test_the_blend_takes_nothing_over_a_document_or_row_start() -> None:
    part, x = blend()
    before = part(x, FOLLOWS)
    x[0, 2], x[0, 6] = x[0, 2] + 1, x[0, 6] + 1  # before a document start, and at the end of a row
    after = part(x, FOLLOWS)
    assert torch.equal(after[0, 3:6], before[0, 3:6])
    assert torch.equal(after[1], before[1])
