"""Which forms of the operations can run on this machine, to be compared."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from golf.errors import EnvironmentUnfitError
from golf.kernels.flash import choose_attention
from golf.kernels.jit import HAS_TRITON
from golf.kernels.square_mlp import can_go_by_rows
from golf.kernels.table import PLAIN, Kernels, fused_kernels

_BACKENDS: tuple[Literal["fa3", "fa4", "varlen"], ...] = ("fa3", "fa4", "varlen")


class Forms(NamedTuple):
    """The tables of kernels that can run here, and why others cannot."""

    tables: Mapping[str, Kernels]
    missing: tuple[str, ...]


def find_forms(device: torch.device, dtype: torch.dtype) -> Forms:
    """Return the plain kernels first, then on a GPU the fused ones, then each attention that is installed."""
    tables, missing = {"plain": PLAIN}, []
    if device.type == "cuda" and HAS_TRITON:
        tables["fused"] = fused_kernels(mlp_by_rows=can_go_by_rows(device, dtype))
    for name in _BACKENDS:
        try:
            backend = choose_attention(device, dtype, wanted=name)
        except EnvironmentUnfitError as error:
            missing.append(str(error))
        else:
            tables[name] = dataclasses.replace(PLAIN, attention=backend.function)
    return Forms(tables, tuple(missing))
