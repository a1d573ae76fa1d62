"""One layer: attention, then MLP, each on a normalized copy of the stream."""

import torch
from torch import Tensor, nn

from golf.config import ModelConfig
from golf.kernels.norm import rms_norm
from golf.model.attention import Attention
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.mlp import MLP


class Block(nn.Module):
    """u = r0 x + r1 x0;  u = u + a Attn(s rms(u));  out = u + m MLP(s rms(u)), s = 1/sqrt(layer + 1) or 1."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.attn = Attention(config, layer)
        self.mlp = MLP(config, layer)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(config.model_dim), torch.zeros(config.model_dim)]))

    def forward(self, x: Tensor, context: Context, hooks: Hooks, slot: int) -> Tensor:
        """Map the residual stream x (B, T, C) to the next."""
        mix = self.resid_mix.to(x.dtype)
        u: Tensor = mix[0] * x + mix[1] * context.x0
        u = u + self.attn_scale.to(x.dtype) * self.attn(self._normalized(u), context, hooks, slot)
        u = u + self.mlp_scale.to(x.dtype) * self.mlp(self._normalized(u), hooks, slot)
        return u

    def _normalized(self, u: Tensor) -> Tensor:
        return rms_norm(u) * self.norm_scale
