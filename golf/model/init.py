"""Initial weights: every parameter's scheme in one list."""

import math

import torch
from torch import Tensor, nn

from golf.model.gpt import GPT
from golf.model_config import ModelConfig
from golf.roles import Role, role_of

_TABLE_STD = 0.01
_NON_NORMAL = ("bigram.table.weight",)  # starts at zero, so the bigram path starts silent


def build_model(config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device) -> GPT:
    """Build and initialize a model on the CPU, then move it.

    Lookup tables live in `dtype`, which thereby is the dtype of all activations; everything else is float32.
    """
    model = GPT(config)
    init_weights(model, torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        if role_of(name, parameter.ndim).is_lookup:
            parameter.data = parameter.data.to(dtype)
    return model.to(device)


@torch.no_grad()
def init_weights(model: GPT, generator: torch.Generator) -> None:
    """Draw all random weights from `generator`, in the order of the parameters' names.

    token embedding: normal, std from the config · other tables: normal, std 0.01, the bigram's zero ·
    output projections of attention and MLP: zero · their other matrices: orthogonal · matrices outside the blocks:
    orthogonal / sqrt(2 layers) · gates: zero · scales and mixes keep their constructors' values.
    """
    for name, parameter in sorted(model.named_parameters()):
        role = role_of(name, parameter.ndim)
        if role is Role.EMBED:
            parameter.normal_(0.0, model.config.embed_init_std, generator=generator)
        elif role is Role.TABLE:
            std = 0.0 if name.endswith(_NON_NORMAL) else _TABLE_STD
            parameter.normal_(0.0, std, generator=generator)
        elif role is Role.MATRIX:
            parameter.copy_(_orthogonal(parameter, generator) / math.sqrt(2 * model.config.num_layers))
        elif role.is_matrix:
            silent = name.endswith(".proj.weight")
            parameter.copy_(torch.zeros_like(parameter) if silent else _orthogonal(parameter, generator))


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def _orthogonal(like: Tensor, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty_like(like), generator=generator)
