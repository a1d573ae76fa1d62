"""Rotary position embedding on the first channels of each head (Su et al. 2021, arXiv:2104.09864)."""

import math
from functools import cache

import torch
from torch import Tensor

from golf.part_config import RopeConfig, RopeScalingConfig

_SLOW, _FAST = 1.0, 32.0  # YaRN: turns within trained_len below which a frequency is scaled, above which it is kept


@cache
def rotary_table(config: RopeConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, 1, dims/2) in float32 of position * frequency.

    Built once per length outside every compiled region: a table built lazily in a forward took the dtype of whoever
    came first. Never dropped, since a recorded forward reads it where it lies.
    """
    frequencies = rotary_frequencies(config)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[:, None, :].to(device)
    return angles.cos(), angles.sin()


def rotary_frequencies(config: RopeConfig) -> Tensor:
    """Return base^(-2j/dims), (dims/2,) float32, scaled and rounded as the config says."""
    exponents = torch.arange(0, config.dims, 2, dtype=torch.float32) / config.dims
    scaling = config.scaling
    base = config.base if scaling is None or scaling.method == "yarn" else _ntk_base(config, scaling)
    frequencies = base**-exponents
    if scaling is not None and scaling.method == "yarn":
        frequencies = _yarn(frequencies, scaling)
    return frequencies.bfloat16().float() if config.round_to_bfloat16 else frequencies


def _ntk_base(config: RopeConfig, scaling: RopeScalingConfig) -> float:
    """base * (length / trained_len)^(dims / (dims - 2)): the slowest frequency is divided by the ratio."""
    ratio: float = (scaling.length / scaling.trained_len) ** (config.dims / (config.dims - 2))
    return config.base * ratio


def _yarn(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Divide slow frequencies by length / trained_len, keep fast ones, blend between (arXiv:2309.00071, by parts).

    Without the paper's temperature, which the queries' trained gain makes up for.
    """
    turns = scaling.trained_len * frequencies / (2 * math.pi)
    kept = ((turns - _SLOW) / (_FAST - _SLOW)).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies * scaling.trained_len / scaling.length
