"""How much arithmetic a model's matrix products are, counted from its shapes.

A product of (N, K) by (K, M) is 2 N K M operations; its backward is two such products. Attention's products of queries
with keys and of weights with values depend on the documents and are counted apart.
"""

from torch import Tensor

from golf.model.plan import LayerPlan
from golf.model_config import ModelConfig


def model_flop(config: ModelConfig, plan: LayerPlan, tokens: int) -> int:
    """Count the operations of all linear maps, forward and backward, over `tokens` tokens of training."""
    weights = sum(_layer_weights(config, visit.layer) for visit in plan.visits) + _shared_weights(config)
    return 3 * 2 * tokens * weights


def attention_flop(num_heads: int, head_dim: int, cu_seqlens: Tensor) -> int:
    """Count the operations of one causal attention's two products, forward alone; its backward is 2.5 times as much.

    A segment of L tokens has L (L + 1) / 2 pairs of a query and a key, though a kernel in tiles computes more.
    """
    lengths = cu_seqlens.diff().long()
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return 2 * 2 * num_heads * head_dim * pairs


def _layer_weights(config: ModelConfig, layer: int) -> int:
    """Count the weights that multiply every token in one visit of `layer`."""
    dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
    attention = 2 * dim * dim + 2 * dim * kv_dim
    if config.attention_gate:
        attention += config.num_heads * config.attention_gate.window
    hidden = config.hidden_dim(layer)
    matrix = config.mlp_rank * (dim + hidden) if config.mlp_rank else dim * hidden
    mlp = (3 if config.gated_mlp else 2) * matrix
    loop = config.loop
    if loop and loop.start <= layer <= loop.end:
        mlp += 2 * loop.mlp_lora_rank * (dim + hidden)
    return attention + mlp


def _shared_weights(config: ModelConfig) -> int:
    """Count the weights that multiply every token once: the heads, and the parts before the first layer."""
    dim = config.model_dim
    heads = 1 + (config.multi_token.heads if config.multi_token else 0)
    count = heads * dim * config.vocab_size
    if config.bigram:
        count += config.bigram.dim * dim
    if config.smear and config.smear.window:
        count += config.smear.window
    if config.value_embedding:
        count += config.value_embedding.dim * config.num_kv_heads * config.head_dim
    return count
