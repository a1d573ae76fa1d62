"""The whole forward, all parts on: against the formulas, and what may never influence what."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from golf.config import Recipe
from golf.data.documents import Batch
from golf.model.init import build_model
from golf.model.plan import plan_layers
from tests.model.formulas import Formulas
from tests.pico import BOS, RECORD_PARTS, batch_of, pico_batch, pico_model, pico_recipe

# Layer order and merges (decoder slot -> encoder slot, row) of four layers, 1 and 2 looped once.
ORDERS = {False: ([0, 1, 2, 3], {2: (1, 1), 3: (0, 2)}), True: ([0, 1, 2, 1, 2, 3], {3: (2, 0), 4: (1, 1), 5: (0, 2)})}
FIRST, SECOND = range(5, 14), range(14, 31)  # two documents of the row below


def everything() -> Recipe:
    return pico_recipe(*RECORD_PARTS)


@torch.no_grad()
def losses(batch: Batch, *, looping: bool = True) -> Tensor:
    recipe = everything()
    found: Tensor = pico_model(recipe)(batch, plan=plan_layers(recipe.model, looping=looping))
    return found


def one_row() -> Tensor:
    """31 tokens: the end of a document, then two whole ones."""
    tokens = torch.randint(2, 61, (1, 31), generator=torch.Generator().manual_seed(0))
    tokens[0, [FIRST.start, SECOND.start]] = BOS
    return tokens


def segments_of(batch: Batch, row: int) -> list[range]:
    """The segments of one row, relative to its start."""
    size = batch.tokens.shape[1]
    bounds = [int(bound) - row * size for bound in batch.cu_seqlens]
    return [range(start, stop) for start, stop in pairwise(bounds) if 0 <= start < stop <= size]


@pytest.mark.parametrize("looping", [False, True])
def test_the_forward_is_the_formulas(looping: bool) -> None:
    recipe, batch = everything(), pico_batch(2, 23)
    formulas = Formulas(recipe.model, pico_model(recipe).state_dict())
    order, skips = ORDERS[looping]
    expected = [
        formulas.losses(batch.tokens[row].tolist(), batch.targets[row].tolist(), segments_of(batch, row), order, skips)
        for row in range(2)
    ]
    torch.testing.assert_close(losses(batch, looping=looping).double(), torch.stack(expected), rtol=2e-5, atol=2e-5)


def test_the_loop_changes_the_losses() -> None:
    batch = pico_batch(2, 23)
    assert float((losses(batch, looping=True) - losses(batch, looping=False)).abs().max()) > 0.1


def test_another_document_never_changes_a_documents_losses() -> None:
    tokens, targets = one_row(), torch.randint(2, 61, (1, 31), generator=torch.Generator().manual_seed(1))
    before = losses(batch_of(tokens, targets))
    tokens[0, FIRST.start + 1 : FIRST.stop] = torch.arange(10, 18)
    after = losses(batch_of(tokens, targets))
    assert not torch.equal(after[0, FIRST], before[0, FIRST])
    assert torch.equal(after[0, SECOND], before[0, SECOND])


def test_a_documents_losses_do_not_depend_on_what_precedes_it() -> None:
    tokens, targets = one_row(), torch.randint(2, 61, (1, 31), generator=torch.Generator().manual_seed(1))
    alone = losses(batch_of(tokens[:, SECOND.start :], targets[:, SECOND.start :]))
    torch.testing.assert_close(losses(batch_of(tokens, targets))[:, SECOND.start :], alone, rtol=1e-4, atol=1e-4)


def test_a_token_never_changes_an_earlier_loss() -> None:
    tokens, targets = one_row(), torch.randint(2, 61, (1, 31), generator=torch.Generator().manual_seed(1))
    before = losses(batch_of(tokens, targets))
    for t in set(range(31)) - {FIRST.start, SECOND.start}:
        other = tokens.clone()
        other[0, t] = other[0, t] % 59 + 2  # another token, never BOS
        after = losses(batch_of(other, targets))
        assert torch.equal(after[0, :t], before[0, :t]), t
        assert float(after[0, t]) != float(before[0, t]), t


def test_a_row_never_changes_another() -> None:
    batch = pico_batch(2, 23)
    tokens = batch.tokens.clone()
    tokens[0] = tokens[0].roll(3)
    other = Batch(tokens, batch.targets, batch.cu_seqlens, batch.max_seqlen)
    before, after = losses(batch), losses(other)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_logits_are_what_the_losses_score() -> None:
    recipe, batch = everything(), pico_batch(2, 23)
    plan = plan_layers(recipe.model, looping=True)
    with torch.no_grad():
        log_probabilities = pico_model(recipe).logits(batch, plan=plan).double().log_softmax(-1)
    expected = -log_probabilities.gather(-1, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(losses(batch).double(), expected, rtol=1e-5, atol=1e-5)


def test_every_parameter_gets_a_gradient_with_the_loop_on() -> None:
    recipe = everything()
    model = pico_model(recipe)
    model(pico_batch(2, 23), plan=plan_layers(recipe.model, looping=True)).mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_skip_rows_of_the_loop_alone_are_dormant_without_it() -> None:
    recipe = everything()
    model = pico_model(recipe)
    model(pico_batch(2, 23), plan=plan_layers(recipe.model, looping=False)).mean().backward()
    assert model.skips is not None
    assert model.skips.weights.grad is not None
    assert [bool(row.any()) for row in model.skips.weights.grad] == [False, True, True]


@pytest.mark.parametrize("part", ["skips", "bigram", "smear", "value_embedding"])
def test_a_part_that_is_off_leaves_no_parameter(part: str) -> None:
    off = {name for name, _ in pico_model(pico_recipe(f"model.{part}=false")).named_parameters()}
    on = {name for name, _ in pico_model().named_parameters()}
    assert off < on
    assert all(name.startswith((part, f"stem.{part}")) or ".value_parts." in name for name in on - off)


def test_activations_have_the_dtype_of_the_embedding() -> None:
    recipe, batch = everything(), pico_batch(2, 23)
    model = build_model(recipe.model, seed=1, dtype=torch.bfloat16, device=torch.device("cpu"))
    plan = plan_layers(recipe.model, looping=True)
    assert model.raw_logits(batch, plan=plan).dtype == torch.bfloat16
    assert model(batch, plan=plan).dtype == torch.float32


def test_bfloat16_activations_stay_near_float32() -> None:
    recipe, batch = everything(), pico_batch(2, 23)
    model = pico_model(recipe, stir=0.1)
    plan = plan_layers(recipe.model, looping=True)
    exact = model(batch, plan=plan)
    for name in ("tok_emb", "stem.bigram.table", "value_embedding.table"):
        model.get_submodule(name).to(torch.bfloat16)
    rounded = model(batch, plan=plan)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)  # 8 bits a factor through six layers
