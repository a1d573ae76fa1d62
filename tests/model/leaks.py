"""What must never influence what: checks that any model has to pass."""

import torch
from torch import Tensor

from golf.data.documents import Batch, segment_rows
from golf.model.gpt import GPT
from golf.model.plan import plan_layers

TOKENS = 31
FIRST, SECOND = range(5, 14), range(14, 31)  # two documents; before them, the end of another


def a_row(model: GPT) -> tuple[Tensor, Tensor]:
    """Tokens and targets (1, T) of three documents."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(2, config.vocab_size, (1, TOKENS), generator=generator) for _ in range(2))
    tokens[0, [FIRST.start, SECOND.start]] = config.bos_id
    return tokens, targets


@torch.no_grad()
def losses(model: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """Losses (2, T) with the loop off and on, documents being segments."""
    segments = segment_rows(tokens, bos_id=model.config.bos_id, max_doc_len=TOKENS)
    batch = Batch(tokens, targets, segments, TOKENS)
    plans = (plan_layers(model.config, looping=looping) for looping in (False, True))
    return torch.cat([model(batch, plan=plan) for plan in plans])


def another(model: GPT, tokens: Tensor) -> Tensor:
    """Other tokens, none of them a document start."""
    return (tokens - 1) % (model.config.vocab_size - 2) + 2


def assert_documents_apart(model: GPT) -> None:
    """Changing one document moves its own losses and none of the documents before and after."""
    tokens, targets = a_row(model)
    before = losses(model, tokens, targets)
    other = tokens.clone()
    other[0, FIRST.start + 1 : FIRST.stop] = another(model, other[0, FIRST.start + 1 : FIRST.stop])
    after = losses(model, other, targets)
    inside = torch.zeros(TOKENS, dtype=torch.bool)
    inside[FIRST.start + 1 : FIRST.stop] = True
    assert bool((after[:, inside] != before[:, inside]).all())
    assert torch.equal(after[:, ~inside], before[:, ~inside])


def assert_causal(model: GPT) -> None:
    """Changing a token moves its own loss and no earlier one."""
    tokens, targets = a_row(model)
    before = losses(model, tokens, targets)
    for t in sorted(set(range(0, TOKENS, 3)) - {FIRST.start, SECOND.start}):
        other = tokens.clone()
        other[0, t] = another(model, other[0, t])
        after = losses(model, other, targets)
        assert torch.equal(after[:, :t], before[:, :t]), t
        assert bool((after[:, t] != before[:, t]).all()), t
