"""Rotary position embedding on the first channels of each head (Su et al. 2021, arXiv:2104.09864)."""

from functools import lru_cache

import torch
from torch import Tensor

from golf.model_config import RopeConfig


@lru_cache(maxsize=16)
def rotary_table(config: RopeConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, 1, dims/2) in float32 of position * base^(-2j/dims).

    Built once per length outside every compiled region: a table built lazily in a forward took the dtype of whoever
    came first.
    """
    exponents = torch.arange(0, config.dims, 2, dtype=torch.float32) / config.dims
    frequencies = config.base**-exponents
    if config.round_to_bfloat16:
        frequencies = frequencies.bfloat16().float()
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[:, None, :].to(device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels (j, j + dims/2) of x (B, T, H, D) by the position's angle; other channels pass.

    cos and sin are (T, 1, dims/2) in the dtype of x.
    """
    half = cos.shape[-1]
    u, w, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([u * cos + w * sin, w * cos - u * sin, rest], dim=-1)
