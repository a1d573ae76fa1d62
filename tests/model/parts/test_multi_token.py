"""Heads that predict tokens further ahead."""

import torch
from torch import Tensor

from golf.kernels.table import PLAIN
from golf.model.parts.multi_token import MultiTokenHeads
from golf.model.plan import plan_layers
from golf.part_config import MultiTokenConfig
from tests.pico import BOS, pico_batch, pico_model, pico_recipe

CONFIG = pico_recipe().model
TARGETS = torch.tensor([[5, 6, BOS, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, BOS]])


def case(heads: int = 2, weight: float = 0.3) -> tuple[MultiTokenHeads, Tensor]:
    part = MultiTokenHeads(CONFIG, MultiTokenConfig(heads=heads, weight=weight))
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    return part, x


def loss_of(part: MultiTokenHeads, x: Tensor, head: int, target: int) -> float:
    cap = CONFIG.logit_softcap
    assert cap is not None
    z = cap * torch.tanh(part.get_parameter(f"heads.{head}.weight").double() @ x.double() / cap)
    return float(z.logsumexp(0) - z[target])


@torch.no_grad()
def test_the_mean_gains_the_weighted_mean_of_the_heads_means() -> None:
    part, x = case()
    means = []
    for k in (1, 2):
        asked = [
            loss_of(part, x[row, t], k - 1, int(TARGETS[row, t + k]))
            for row in range(2)
            for t in range(7 - k)
            if BOS not in TARGETS[row, t : t + k].tolist()  # beyond a document start there is another document
        ]
        means.append(sum(asked) / len(asked))
    expected = 0.3 * sum(means) / 2
    torch.testing.assert_close(float(part(x, TARGETS, PLAIN).mean()), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_nothing_behind_the_next_document_start_is_asked() -> None:
    part, x = case(heads=3)
    other = TARGETS.clone()
    other[0, 3:] = 20  # the second document of the first row
    assert torch.equal(part(x, other, PLAIN)[0, :2], part(x, TARGETS, PLAIN)[0, :2])


def test_only_training_sees_them() -> None:
    recipe = pico_recipe("model.multi_token.heads=2", "model.multi_token.weight=0.5")
    model, batch = pico_model(recipe), pico_batch(2, 23)
    plan = plan_layers(recipe.model, looping=True)
    with torch.no_grad():
        plain, training = model(batch, plan=plan), model(batch, plan=plan, auxiliary=True)
    bare = pico_model(pico_recipe())
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("multi_token.")})
    assert torch.equal(plain, bare(batch, plan=plan).detach())
    assert float((training - plain).mean()) > 0.1


def test_every_head_is_trained() -> None:
    recipe = pico_recipe("model.multi_token.heads=2", "model.multi_token.weight=0.5")
    model = pico_model(recipe)
    model(pico_batch(2, 23), plan=plan_layers(recipe.model, looping=True), auxiliary=True).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
