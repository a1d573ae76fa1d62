"""The attention stage of a block.

B rows, T tokens, H query heads, K key/value heads, D head size, C model dim.
"""

import torch
from torch import Tensor, nn

from golf.kernels.attention import attention
from golf.kernels.norm import rms_norm
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.parts.gate import AttentionGate
from golf.model.parts.ternary import matrix
from golf.model.parts.value_embedding import AddValueEmbedding
from golf.model.parts.value_residual import value_part
from golf.model.parts.xsa import ExclusiveSelfAttention
from golf.model.rotary import rotate
from golf.model_config import ModelConfig


class Attention(nn.Module):
    """Grouped-query attention with normalized, rotated and gained queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.tap = f"blocks.{layer}.attn"
        self.head_dim = config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.c_q = matrix(config, config.model_dim, config.model_dim)
        self.c_k = matrix(config, config.model_dim, kv_dim)
        self.c_v = matrix(config, config.model_dim, kv_dim)
        self.proj = matrix(config, config.model_dim, config.model_dim)
        self.qk_norm = config.qk_norm
        gain = config.q_gain_init
        self.q_gain = None if gain is None else nn.Parameter(torch.full((config.num_heads,), gain))
        self.value_parts = nn.ModuleDict()
        if config.value_embedding and layer in config.value_embedding.layers:
            self.value_parts["embedding"] = AddValueEmbedding()
        residual = value_part(config.value_residual.form, layer) if config.value_residual else None
        if residual is not None:
            self.value_parts["residual"] = residual
        self.output_parts = nn.ModuleDict()
        if layer >= config.num_layers - config.xsa_last_n:
            self.output_parts["xsa"] = ExclusiveSelfAttention()
        if config.attention_gate:
            self.output_parts["gate"] = AttentionGate(config, config.attention_gate)

    def forward(self, n: Tensor, context: Context, hooks: Hooks, slot: int) -> Tensor:
        """Map the normalized input n (B, T, C) to the branch's output (B, T, C)."""
        hooks.show(self.tap, n)
        flat_q = hooks.adapt(slot, "q", self.c_q(n), n)  # (B, T, C)
        k = self._heads(hooks.adapt(slot, "k", self.c_k(n), n))  # (B, T, K, D)
        v = self._heads(hooks.adapt(slot, "v", self.c_v(n), n))
        for part in self.value_parts.values():
            v = part(v, context)
        q = rotate(self._normalized(self._heads(flat_q)), context.cos, context.sin)  # (B, T, H, D)
        k = rotate(self._normalized(k), context.cos, context.sin)
        if self.q_gain is not None:
            q = q * self.q_gain.to(q.dtype)[:, None]
        y = attention(q, k, v, cu_seqlens=context.cu_seqlens, max_seqlen=context.max_seqlen)  # (B, T, H, D)
        for part in self.output_parts.values():
            y = part(y, v, n, flat_q)
        y = y.flatten(2).to(n.dtype)  # (B, T, C)
        hooks.show(f"{self.tap}.proj", y)
        return hooks.adapt(slot, "o", self.proj(y), n)

    def _normalized(self, heads: Tensor) -> Tensor:
        return rms_norm(heads) if self.qk_norm else heads

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads
