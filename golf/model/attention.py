"""The attention stage of a block.

B rows, T tokens, H query heads, K key/value heads, D head size, C model dim.
"""

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.parts.gate import AttentionGate
from golf.model.parts.ternary import matrix
from golf.model.parts.value_embedding import AddValueEmbedding
from golf.model.parts.value_residual import value_part
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
        self.excludes = layer >= config.num_layers - config.xsa_last_n  # exclusive self-attention, PR #287
        self.gate = AttentionGate(config, config.attention_gate) if config.attention_gate else None

    def forward(
        self, n: Tensor, context: Context, hooks: Hooks, slot: int, gain: Tensor, *, onto: Tensor | None = None
    ) -> Tensor:
        """Map the normalized input n (B, T, C) to the branch's output (B, T, C), times `gain` (C,).

        It is added to a stream `onto`, which is spent, where there is one.
        """
        kernels = context.kernels
        hooks.show(self.tap, n)
        flat_q, flat_k, flat_v, *scores = kernels.project(n, self._input_weights())
        flat_q = hooks.adapt(slot, "q", flat_q, n)  # (B, T, C)
        k = self._heads(hooks.adapt(slot, "k", flat_k, n))  # (B, T, K, D)
        v = self._heads(hooks.adapt(slot, "v", flat_v, n))
        for part in self.value_parts.values():
            v = part(v, context)
        tables = context.cos, context.sin
        heads = kernels.turn_heads(self._heads(flat_q), k, v, *tables, self.q_gain, normalize=self.qk_norm)
        y = kernels.attention(
            heads.q, heads.k, heads.v, cu_seqlens=context.cu_seqlens, max_seqlen=context.max_seqlen, again=heads.again
        )  # (B, T, H, D)
        gates = None if self.gate is None else self.gate(flat_q, *scores)  # (B, T, H)
        if self.excludes:
            y = kernels.exclude(y, heads.same_v, gates)
        elif gates is not None:
            y = y * gates[..., None]
        y = y.flatten(2)  # (B, T, C)
        hooks.show(f"{self.tap}.proj", y)
        return hooks.adapt(slot, "o", self.proj.add_to(onto, y, gain, kernels), n, gain)

    def _input_weights(self) -> list[Tensor]:
        """Return the matrices that multiply the input: q's, k's, v's, and the gate's if it reads the input."""
        weights = [linear.acting_weight() for linear in (self.c_q, self.c_k, self.c_v)]
        if self.gate is not None and self.gate.reads_input:
            weights.append(self.gate.weight)
        return weights

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads
