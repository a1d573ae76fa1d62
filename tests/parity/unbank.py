"""The reference keeps the matrices of all layers in banks; its Hessians and artifact name them one by one."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}


def read_fixture(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON and the tensors of one fixture."""
    description: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return description, load_file(folder / f"{name}.safetensors")


def unbanked_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of `model_1787` under their per-layer names."""
    _, tensors = read_fixture(folder, "model_1787")
    return unbank({key.removeprefix("w::"): tensor for key, tensor in tensors.items() if key.startswith("w::")})


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
