"""The model as a run computes with it."""

from dataclasses import replace

import pytest
import torch

from golf.distributed import single_world
from golf.errors import EnvironmentUnfitError
from golf.kernels.table import PLAIN, Kernels
from golf.model.gpt import walk
from golf.model.plan import plan_layers
from golf.run_model import build_run_model
from tests.attention_stand_ins import masked_attention
from tests.pico import pico_batch, pico_recipe

WORLD = single_world(torch.device("cpu"))


def test_an_attention_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(EnvironmentUnfitError, match="fa4"):
        build_run_model(pico_recipe("run.attention=fa4"), WORLD)


@pytest.mark.parametrize("how", ["block", "model"])
def test_the_padded_attention_is_not_compiled(how: str) -> None:
    with pytest.raises(EnvironmentUnfitError, match=f"run.compile is '{how}', but the attention here is padded.*=off"):
        build_run_model(pico_recipe(f"run.compile={how}"), WORLD)


def test_another_attention_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*rest: object, **wanted: object) -> Kernels:
        return replace(PLAIN, attention=masked_attention)

    monkeypatch.setattr("golf.run_model.choose_kernels", chosen)
    assert build_run_model(pico_recipe("run.compile=model"), WORLD).walk is not walk
    assert build_run_model(pico_recipe("run.compile=off"), WORLD).walk is walk


def test_lookup_tables_are_of_the_runs_dtype_and_so_are_the_states() -> None:
    model = build_run_model(pico_recipe("run.dtype=bfloat16"), WORLD)
    assert model.tok_emb.weight.dtype == torch.bfloat16
    assert model.get_parameter("blocks.0.attn.c_q.weight").dtype == torch.float32
    logits = model.raw_logits(pico_batch(1, 9), plan=plan_layers(model.config, looping=False))
    assert logits.dtype == torch.bfloat16
