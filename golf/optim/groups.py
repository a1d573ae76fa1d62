"""Which parameter is updated by what."""

from typing import NamedTuple

from torch import nn

from golf.roles import Role, role_of


class Groups(NamedTuple):
    """Parameters by name; every trained parameter is in exactly one group."""

    matrix: dict[str, nn.Parameter]  # Muon
    embed: dict[str, nn.Parameter]  # AdamW at the embedding's rate
    scalar: dict[str, nn.Parameter]  # AdamW at the scalars' rate
    head: dict[str, nn.Parameter]  # AdamW at the rate of the untied head; empty where the embedding is the head


def split_parameters(model: nn.Module) -> Groups:
    """Sort the trained parameters of `model` into groups by role.

    Raises ValueError if a parameter has no role or two names: one that no optimizer reaches is a silent no-op.
    """
    groups = Groups({}, {}, {}, {})
    for name, parameter in model.named_parameters():
        role = role_of(name, parameter.ndim)
        _group_of(role, groups)[name] = parameter
    members = [id(parameter) for group in groups for parameter in group.values()]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if len(members) != len(set(members)) or set(members) != trained:
        raise ValueError("the optimizer groups do not cover every trained parameter exactly once")
    return groups


def _group_of(role: Role, groups: Groups) -> dict[str, nn.Parameter]:
    if role is Role.HEAD:
        return groups.head
    return groups.matrix if role.is_matrix else groups.embed if role.is_lookup else groups.scalar
