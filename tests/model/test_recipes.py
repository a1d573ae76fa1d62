"""What every shipped recipe's model must keep."""

from typing import Any

import pytest
import torch
from torch import Tensor

from golf.model.gpt import GPT
from golf.model.hooks import Site
from golf.model.plan import plan_layers
from golf.recipe import recipe_names
from tests.model.leaks import a_row, assert_causal, assert_documents_apart
from tests.narrow import narrow_recipe
from tests.pico import batch_of, pico_model


@pytest.fixture(params=recipe_names())
def model(request: pytest.FixtureRequest) -> GPT:
    return pico_model(narrow_recipe(request.param))


class ZeroAdapters:
    """Low-rank adapters at every site of every slot, as test-time training starts them: B is zero."""

    def __init__(self, model: GPT) -> None:
        config = model.config
        kv_dim = config.num_kv_heads * config.head_dim
        self.widths: dict[Site, int] = {"k": kv_dim, "v": kv_dim, "head": config.vocab_size}
        self.model_dim = config.model_dim
        self.asked = 0

    def delta(self, slot: int, site: Site, x: Tensor) -> Tensor | None:
        self.asked += 1
        a = torch.randn(x.shape[-1], 3, generator=torch.Generator().manual_seed(slot))
        return x @ a @ torch.zeros(3, self.widths.get(site, self.model_dim))


@torch.no_grad()
def test_zero_adapters_change_no_bit_of_the_logits(model: GPT) -> None:
    tokens, targets = a_row(model)
    batch = batch_of(tokens, targets)
    for looping in {False, model.config.loop is not None}:
        plan = plan_layers(model.config, looping=looping)
        adapters: Any = ZeroAdapters(model)
        assert torch.equal(model.logits(batch, plan=plan, adapters=adapters), model.logits(batch, plan=plan))
        assert adapters.asked == 5 * len(plan.visits) + 1


def test_no_document_moves_anothers_losses(model: GPT) -> None:
    assert_documents_apart(model)


def test_no_token_moves_an_earlier_loss(model: GPT) -> None:
    assert_causal(model)


def test_every_parameter_is_trained_with_the_loop_on(model: GPT) -> None:
    tokens, targets = a_row(model)
    plan = plan_layers(model.config, looping=True)
    model(batch_of(tokens, targets), plan=plan).mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert silent == set()
