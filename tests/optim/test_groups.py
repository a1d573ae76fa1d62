"""Every trained parameter is in exactly one group."""

import pytest
import torch
from torch import nn

from golf.optim.groups import split_parameters
from golf.roles import role_of
from tests.pico import pico_model, pico_recipe

UNTIED = ("model.tie_embeddings=false", "optim.head_lr=0.008")


@pytest.mark.parametrize("overrides", [(), UNTIED])
def test_the_groups_share_out_all_parameters(overrides: tuple[str, ...]) -> None:
    model = pico_model(pico_recipe(*overrides))
    groups = split_parameters(model)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_matrices_lookups_and_the_rest_go_apart() -> None:
    groups = split_parameters(pico_model())
    assert set(groups.embed) == {"tok_emb.weight", "stem.bigram.table.weight", "value_embedding.table.weight"}
    assert len(groups.matrix) == 4 * 6 + 2
    assert {"stem.bigram.proj.weight", "blocks.3.mlp.fc.weight"} < set(groups.matrix)
    assert {"skips.gates", "blocks.0.resid_mix", "stem.smear.weight", "stem.bigram.scale"} < set(groups.scalar)
    assert all(role_of(name, parameter.ndim).is_matrix for name, parameter in groups.matrix.items())


def test_an_untied_head_is_alone_in_its_group() -> None:
    assert set(split_parameters(pico_model(pico_recipe(*UNTIED))).head) == {"head.weight"}
    assert split_parameters(pico_model()).head == {}


def test_a_parameter_without_a_role_is_refused() -> None:
    model = pico_model()
    model.stray = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="no role for tensor 'stray'"):
        split_parameters(model)


def test_a_frozen_parameter_is_refused() -> None:
    model = pico_model()
    model.tok_emb.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="exactly once"):
        split_parameters(model)
