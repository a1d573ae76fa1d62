"""SmearGate: a share of the previous token's embedding (modded-nanogpt; blend: parameter-golf PR #162; mask: #1851)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.model.hooks import Hooks


class Smear(nn.Module):
    """e_t <- e_t + strength * sigmoid(w . e_t[:window]) * e_{t-1}, only where token t follows one of its document."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, window))
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, e: Tensor, tokens: Tensor, follows: Tensor, hooks: Hooks) -> Tensor:
        """Return the smeared embedding (B, T, C); `follows` (B, T) is False at document starts."""
        gate = torch.sigmoid(F.linear(e[..., : self.weight.shape[1]], self.weight.to(e.dtype)))  # (B, T, 1)
        share = self.strength.to(e.dtype) * gate * follows[..., None]
        return e + share * e.roll(1, dims=1)


class SmearBlend(nn.Module):
    """x_t <- (1 - s) x_t + s x_{t-1} with s = sigmoid(g) a channel, on the normalized embedding.

    Before the first token of a document there is nothing: x_{t-1} = 0.
    """

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(model_dim))

    def forward(self, x: Tensor, follows: Tensor) -> Tensor:
        """Return the blended embedding (B, T, C)."""
        share = torch.sigmoid(self.gate.to(x.dtype))
        return (1 - share) * x + share * (x.roll(1, dims=1) * follows[..., None])
