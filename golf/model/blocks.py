"""One layer: attention, then MLP, each on a normalized copy of the stream."""

import torch
from torch import Tensor, nn

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
        u, n, _ = self.enter(x, context)
        u = self.attn(n, context, hooks, visit.slot, self.attn_scale, onto=self.own(u))
        u, n = context.kernels.stream_norm(u, scale=self.norm_scale)
        return (self.mlp(n, context, hooks, visit, self.mlp_scale, onto=u),)

    def enter(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return u = r0 x + r1 x0, what attention reads, s rms(u), and x for who else reads it; all (B, T, C)."""
        kernels, s = context.kernels, self.norm_scale
        if self.resid_mix is not None and self.first_output is None:
            u, n, x, x0 = kernels.mix_norm((x, context.latest_x0()), self.resid_mix, scale=s)
            context.memory.update(stream=x, x0=x0)
            return u, n, x
        u = x if self.resid_mix is None else kernels.mix((x, context.x0), self.resid_mix[None])[0]
        if self.first_output is None:
            return *kernels.stream_norm(u, scale=s), x
        return u, kernels.norm(self.first_output(u, context), scale=s), x

    def own(self, u: Tensor) -> Tensor:
        """Return the stream u of `enter` as this visit's own, which a branch may be added to in place.

        It is a copy where others keep u: without a mix it is what came in, which may wait for a skip, and autograd
        keeps what is mixed with the first output.
        """
        return u if self.resid_mix is not None and self.first_output is None else u.clone()


class ParallelBlock(Block):
    """u = r0 x + r1 x0;  out = u + a Attn(s rms(u)) + m MLP(s rms(u)) (GPT-J; parameter-golf PR #1204)."""

    def forward(self, streams: Streams, context: Context, hooks: Hooks, visit: Visit) -> Streams:
        """Map the residual stream (B, T, C) to the next."""
        (x,) = streams
        u, n, _ = self.enter(x, context)
        both = n if self.first_output is None else context.kernels.norm(u, scale=self.norm_scale)
        u = self.attn(n, context, hooks, visit.slot, self.attn_scale, onto=self.own(u))
        return (self.mlp(both, context, hooks, visit, self.mlp_scale, onto=u),)
