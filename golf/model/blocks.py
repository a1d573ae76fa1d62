"""One layer: attention, then MLP, each on a normalized copy of the stream."""

import torch
from torch import Tensor, nn

from golf.kernels.norm import rms_norm
from golf.model.attention import Attention
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.mlp import MLP
from golf.model.parts.value_residual import MixFirstOutput
from golf.model.plan import Visit
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
        dim = config.model_dim
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        mix = torch.stack([torch.ones(dim), torch.zeros(dim)])
        self.resid_mix = nn.Parameter(mix) if config.resid_mix else None
        residual = config.value_residual
        self.first_output = MixFirstOutput() if residual and residual.form == "input" and layer > 0 else None

    def forward(self, streams: Streams, context: Context, hooks: Hooks, visit: Visit) -> Streams:
        """Map the residual stream (B, T, C) to the next."""
        (x,) = streams
        u = self.mixed(x, context)
        u = u + self.attention_branch(u, context, hooks, visit)
        return (u + self.mlp_branch(u, hooks, visit),)

    def mixed(self, x: Tensor, context: Context) -> Tensor:
        """Return r0 x + r1 x0."""
        if self.resid_mix is None:
            return x
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * context.x0

    def attention_branch(self, u: Tensor, context: Context, hooks: Hooks, visit: Visit) -> Tensor:
        """Return a Attn(s rms(u))."""
        if self.first_output is not None:
            u = self.first_output(u, context)
        branch: Tensor = self.attn(rms_norm(u) * self.norm_scale, context, hooks, visit.slot)
        return self.attn_scale.to(u.dtype) * branch

    def mlp_branch(self, u: Tensor, hooks: Hooks, visit: Visit) -> Tensor:
        """Return m MLP(s rms(u))."""
        branch: Tensor = self.mlp(rms_norm(u) * self.norm_scale, hooks, visit)
        return self.mlp_scale.to(u.dtype) * branch


class ParallelBlock(Block):
    """u = r0 x + r1 x0;  out = u + a Attn(s rms(u)) + m MLP(s rms(u)) (GPT-J; parameter-golf PR #1204)."""

    def forward(self, streams: Streams, context: Context, hooks: Hooks, visit: Visit) -> Streams:
        """Map the residual stream (B, T, C) to the next."""
        (x,) = streams
        u = self.mixed(x, context)
        return (u + self.attention_branch(u, context, hooks, visit) + self.mlp_branch(u, hooks, visit),)
