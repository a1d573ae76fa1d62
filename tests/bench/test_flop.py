"""The arithmetic of a model's matrix products, counted by hand, by PyTorch and from attention's pairs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from golf.bench.flop import attention_flop, model_flop
from golf.model.plan import plan_layers
from golf.recipe import load_recipe
from tests.pico import RECORD_PARTS, pico_batch, pico_model, pico_recipe

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}

LAYER = 2 * 512 * 512 + 2 * 512 * 256 + 8 * 12 + 2 * 512 * 2048  # weights of q and output, k and v, gate, MLP
HEAD = 512 * 8192


def products(counter: FlopCounterMode) -> int:
    """What PyTorch counted of matrix products; attention is none of them."""
    return sum(count for kind, count in counter.get_flop_counts().get("Global", {}).items() if kind in PRODUCTS)


@pytest.mark.parametrize(("looping", "visits"), [(False, 11), (True, 17)])
def test_the_record_has_six_operations_for_each_weight_and_token(looping: bool, visits: int) -> None:
    config = load_recipe("pr1787").model
    assert model_flop(config, plan_layers(config, looping=looping), 423) == 6 * 423 * (visits * LAYER + HEAD)


def test_a_micro_step_of_the_record_is_31_tflop() -> None:
    config = load_recipe("pr1787").model
    assert model_flop(config, plan_layers(config, looping=True), 98_304) == pytest.approx(31.4e12, rel=1e-3)


@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        RECORD_PARTS,
        ("model.activation='swiglu'",),
        ("model.mlp_rank=5",),
        ("model.mlp_widths=[1.0,0.5,2.0,1.0]",),
        ("model.loop.mlp_lora_rank=3",),
        ("model.multi_token.heads=2", "model.multi_token.weight=0.5"),
        ("model.tie_embeddings=false", "optim.head_lr=0.01"),
        ("model.smear.form='blend'", "model.smear.window=false", "model.bigram=false"),
        ("model.value_embedding=false",),
    ],
    ids=lambda overrides: overrides[0] if overrides else "pico",
)
def test_pytorch_counts_the_same(overrides: tuple[str, ...], looping: bool) -> None:
    recipe = pico_recipe(*overrides)
    model, plan = pico_model(recipe), plan_layers(recipe.model, looping=looping)
    with FlopCounterMode(display=False) as counter:
        model(pico_batch(3, 47), plan=plan, auxiliary=True).mean().backward()
    assert model_flop(recipe.model, plan, 3 * 47) == products(counter)


def test_attention_has_two_products_over_every_pair_of_a_query_and_an_earlier_key() -> None:
    lengths = [3, 1, 423, 0, 7, 0]
    pairs = sum(query + 1 for length in lengths for query in range(length))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    assert attention_flop(5, 48, cu_seqlens) == pairs * 5 * 2 * (2 * 48)
