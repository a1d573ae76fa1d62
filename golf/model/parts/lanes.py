"""Two residual streams in the last layers (parallel residuals: parameter-golf PRs #1204 and #1529)."""

from typing import Literal

import torch
from torch import Tensor, nn

from golf.kernels.table import Kernels
from golf.model.blocks import Block, Streams
from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.plan import Visit
from golf.model_config import ModelConfig

_RESIDUAL = 1.1  # initial weight of a lane in its own next value


class LaneWeights(nn.Module):
    """How branches and lanes mix, a row a layer. Rows of layers without lanes are the reference's and stay unused."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.post = nn.Parameter(torch.ones(config.num_layers, 2, 2))  # (layer, attention or MLP, lane)
        self.resid = nn.Parameter(torch.full((config.num_layers, 2), _RESIDUAL))  # (layer, lane)


class LaneBlock(Block):
    """A = a Attn(s rms(r0 p + r1 x0));  M = m MLP(s rms(q));  lane_i <- resid_i lane_i + post_0i A + post_1i M."""

    def forward(self, streams: Streams, context: Context, hooks: Hooks, visit: Visit) -> Streams:
        """Map the lanes (p, q), each (B, T, C), to the next."""
        assert context.lanes is not None
        p, q = streams
        _, n, p = self.enter(p, context)
        a = self.attn(n, context, hooks, visit.slot, self.attn_scale)
        q, n = context.kernels.stream_norm(q, scale=self.norm_scale)
        m = self.mlp(n, context, hooks, visit, self.mlp_scale)
        post, resid = (weight[self.layer] for weight in context.lanes)
        weights = torch.cat([torch.diag(resid), post.T], dim=1)  # (lane, p or q or a or m)
        return context.kernels.mix((p, q, a, m), weights[..., None].expand(-1, -1, p.shape[-1]))


def finish_lanes(streams: Streams, kernels: Kernels, *, final: Literal["mean", "attn", "mlp"]) -> Tensor:
    """Return the normalized states (B, T, C) that the head reads."""
    if final == "mean":
        halves = torch.full((2, streams[0].shape[-1]), 0.5, device=streams[0].device)
        return kernels.mix_norm(streams, halves, scale=1.0)[1]
    return kernels.norm(streams[0] if final == "attn" else streams[1])
