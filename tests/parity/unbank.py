"""The reference keeps the matrices of all layers in banks; its Hessians and artifact name them one by one."""

from pathlib import Path

import torch
from torch import Tensor

from tests.parity.fixture_set import read_fixture, under

BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}


def unbanked_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of `model_1787` under their per-layer names."""
    _, tensors = read_fixture(folder, "model_1787")
    return unbank(under(tensors, "w::"))


def unbank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` with the banks among them taken apart into per-layer names.

    Row i of qo_bank is c_q of layer i and row n + i its attention proj; kv_bank holds c_k and c_v alike.
    """
    weights = dict(tensors)
    for name in BANKS.keys() & weights.keys():
        parts = BANKS[name]
        for part, matrices in zip(parts, weights.pop(name).chunk(len(parts)), strict=True):
            for layer, matrix in enumerate(matrices):
                weights[f"blocks.{layer}.{part}.weight"] = matrix.clone()
    return weights


def hessian_of(folder: Path, name: str) -> Tensor:
    """Return the full Hessian of the unbanked weight `name`."""
    description, tensors = read_fixture(folder, "hessian")
    return from_upper_triangle(tensors[f"H_triu::{description['aliases'].get(name, name)}"])


def has_hessian(folder: Path, name: str) -> bool:
    """Whether the Hessian of the unbanked weight `name` was recorded, and not left out of the compact subset."""
    description, _ = read_fixture(folder, "hessian")
    return name in description["names"]


def from_upper_triangle(packed: Tensor) -> Tensor:
    """Return the symmetric matrix whose upper triangle, row by row, is `packed`."""
    size = int((2 * packed.numel()) ** 0.5)
    full = torch.zeros(size, size)
    rows, cols = torch.triu_indices(size, size)
    full[rows, cols] = packed
    full[cols, rows] = packed
    return full


def bank(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` with the per-layer matrices stacked into the reference's banks: the inverse of `unbank`."""
    matrices = tuple(f"{part}.weight" for parts in BANKS.values() for part in parts)
    banked = {name: tensor for name, tensor in weights.items() if not name.endswith(matrices)}
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for name, parts in BANKS.items():
        rows = [weights[f"blocks.{layer}.{part}.weight"] for part in parts for layer in range(layers)]
        banked[name] = torch.stack(rows)
    return banked
