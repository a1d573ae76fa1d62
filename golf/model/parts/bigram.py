"""Hashed bigram embedding (parameter-golf PR #162)."""

import torch
from torch import Tensor, nn

from golf.model.hooks import Hooks
from golf.model.layers import Linear
from golf.model_config import ModelConfig
from golf.part_config import BigramConfig

TAP = "stem.bigram.proj"
_CURRENT, _PREVIOUS = 36_313, 27_191  # coprime multipliers


class BigramHash(nn.Module):
    """e <- e + scale * P(T[h]), h = (36313 t_i XOR 27191 t_{i-1}) mod (buckets - 1).

    The last bucket stands for "no previous token": the first of a row and every document start.
    """

    def __init__(self, config: ModelConfig, part: BigramConfig) -> None:
        super().__init__()
        self.buckets = part.buckets
        self.table = nn.Embedding(part.buckets, part.dim)
        self.proj = Linear(part.dim, config.model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, e: Tensor, tokens: Tensor, follows: Tensor, hooks: Hooks) -> Tensor:
        """Return the embedding e (B, T, C) with the bigram's added; `follows` (B, T) is False at document starts."""
        rows = self.table(self.bucket(tokens, follows))
        hooks.show(TAP, rows)
        projected: Tensor = self.proj(rows)
        return e + projected * self.scale.to(e.dtype)

    def bucket(self, tokens: Tensor, follows: Tensor) -> Tensor:
        """Hash each token with the one before it (B, T)."""
        hashed = (_CURRENT * tokens) ^ (_PREVIOUS * tokens.roll(1, dims=1))
        return torch.where(follows, hashed % (self.buckets - 1), self.buckets - 1)
