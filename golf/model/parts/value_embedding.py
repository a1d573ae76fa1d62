"""A token table added to the values of some layers (parameter-golf PR #374; value embeddings: modded-nanogpt)."""

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.layers import Linear
from golf.model_config import ModelConfig
from golf.part_config import ValueEmbeddingConfig

TAP = "value_embedding.proj"


class ValueEmbedding(nn.Module):
    """scale * P(T[token]), computed once a forward and shared by the listed layers."""

    def __init__(self, config: ModelConfig, part: ValueEmbeddingConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, part.dim)
        self.proj = Linear(part.dim, config.num_kv_heads * config.head_dim)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor, hooks: Hooks) -> Tensor:
        """Map tokens (B, T) to (B, T, K*D)."""
        rows = self.table(tokens)
        hooks.show(TAP, rows)
        projected: Tensor = self.proj(rows)
        return projected * self.scale.to(rows.dtype)


class AddValueEmbedding(nn.Module):
    """v <- v + s_layer * shared value embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """Return the values v (B, T, K, D) with the shared embedding added."""
        assert context.value_embedding is not None
        return v + self.scale.to(v.dtype) * context.value_embedding.view_as(v)
