"""Parameter counts of the published models."""

import pytest
import torch

from golf.model.gpt import GPT
from golf.model.init import count_parameters
from tests.pico import pico_recipe

RECORD = (
    "model.vocab_size=8192",
    "model.num_layers=11",
    "model.model_dim=512",
    "model.num_heads=8",
    "model.num_kv_heads=4",
    "model.mlp_mult=4.0",
    "model.rope.dims=16",
    "model.xsa_last_n=11",
    "model.loop.start=3",
    "model.loop.end=5",
    "model.loop.extra_passes=2",
    "model.lanes.start=8",
    "model.attention_gate.window=12",
    "model.bigram=false",
    "model.value_embedding=false",
    "model.carry=false",
)


@pytest.mark.parametrize(
    ("more", "count"),
    [
        (("model.smear=false",), 35_945_658),  # PR #1787
        (
            (
                "model.smear=false",
                "model.carry.beta=[1.56,1.85,2.13]",
                "model.carry.alpha=[[0.23,0.04,0.03],[0.13,-0.34,0.01],[0.06,0.19,-0.02]]",
            ),
            35_945_658,  # PR #1801: the carry is frozen
        ),
        (("model.smear.window=12",), 35_945_671),  # PR #1855
    ],
)
def test_a_record_has_its_published_number_of_parameters(more: tuple[str, ...], count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(GPT(pico_recipe(*RECORD, *more).model)) == count
