"""Every tensor of the model has the role that the list of parameters says."""

import pytest

from golf.roles import Role, role_of
from tests.pico import pico_model

BLOCK = {
    "attn_scale": Role.SCALAR,
    "mlp_scale": Role.SCALAR,
    "resid_mix": Role.SCALAR,
    "attn.q_gain": Role.SCALAR,
    "attn.c_q.weight": Role.ATTN,
    "attn.c_k.weight": Role.ATTN,
    "attn.c_v.weight": Role.ATTN,
    "attn.proj.weight": Role.ATTN,
    "mlp.fc.weight": Role.MLP,
    "mlp.proj.weight": Role.MLP,
}
ROLES = {
    "tok_emb.weight": Role.EMBED,
    "stem.bigram.table.weight": Role.TABLE,
    "stem.bigram.proj.weight": Role.MATRIX,
    "stem.bigram.scale": Role.SCALAR,
    "stem.smear.weight": Role.SCALAR,
    "stem.smear.strength": Role.SCALAR,
    "value_embedding.table.weight": Role.TABLE,
    "value_embedding.proj.weight": Role.MATRIX,
    "value_embedding.scale": Role.SCALAR,
    "skips.weights": Role.SCALAR,
    "skips.gates": Role.SCALAR,
    "blocks.2.attn.value_parts.embedding.scale": Role.SCALAR,
    "blocks.3.attn.value_parts.embedding.scale": Role.SCALAR,
    **{f"blocks.{layer}.{name}": role for layer in range(4) for name, role in BLOCK.items()},
}


def test_every_parameter_has_the_role_that_was_meant_for_it() -> None:
    assert {name: role_of(name, tensor.ndim) for name, tensor in pico_model().named_parameters()} == ROLES


@pytest.mark.parametrize("name", ["blocks.0.attn.c_x.weight", "lm_head.weight", "tok_emb.bias", "tok_emb_weight"])
def test_an_unknown_matrix_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no role for tensor '{name}' with 2 dimensions"):
        role_of(name, 2)


@pytest.mark.parametrize("ndim", [0, 1])
def test_what_has_less_than_two_dimensions_is_a_scalar_whatever_its_name(ndim: int) -> None:
    assert role_of("anything.at.all", ndim) is Role.SCALAR


def test_muon_gets_the_matrices_and_no_other_role() -> None:
    assert {role for role in Role if role.is_matrix} == {Role.ATTN, Role.MLP, Role.MATRIX}


def test_lookup_tables_are_the_embedding_and_the_tables() -> None:
    assert {role for role in Role if role.is_lookup} == {Role.EMBED, Role.TABLE}
