"""One layer: attention, then MLP, each on a normalized copy of the stream."""

import torch
from torch import Tensor, nn

from golf.kernels.norm import rms_norm
from golf.model.attention import Attention
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.mlp import MLP
from golf.model_config import ModelConfig

Streams = tuple[Tensor, ...]  # the residual streams: one, or two where the model has lanes


class Block(nn.Module):
    """u = r0 x + r1 x0;  u = u + a Attn(s rms(u));  out = u + m MLP(s rms(u)), s = 1/sqrt(layer + 1) or 1."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.attn = Attention(config, layer)
        self.mlp = MLP(config, layer)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(config.model_dim), torch.zeros(config.model_dim)]))

    def forward(self, streams: Streams, context: Context, hooks: Hooks, slot: int) -> Streams:
        """Map the residual stream (B, T, C) to the next."""
        (x,) = streams
        u = self.mixed(x, context)
        u = u + self.attention_branch(u, context, hooks, slot)
        return (u + self.mlp_branch(u, hooks, slot),)

    def mixed(self, x: Tensor, context: Context) -> Tensor:
        """Return r0 x + r1 x0."""
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * context.x0

    def attention_branch(self, u: Tensor, context: Context, hooks: Hooks, slot: int) -> Tensor:
        """Return a Attn(s rms(u))."""
        branch: Tensor = self.attn(rms_norm(u) * self.norm_scale, context, hooks, slot)
        return self.attn_scale.to(u.dtype) * branch

    def mlp_branch(self, u: Tensor, hooks: Hooks, slot: int) -> Tensor:
        """Return m MLP(s rms(u))."""
        branch: Tensor = self.mlp(rms_norm(u) * self.norm_scale, hooks, slot)
        return self.mlp_scale.to(u.dtype) * branch
