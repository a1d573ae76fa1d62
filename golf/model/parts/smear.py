"""SmearGate: a share of the previous token's embedding (modded-nanogpt; document mask: parameter-golf PR #1851)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.model.hooks import Hooks
from golf.model_config import SmearConfig


class Smear(nn.Module):
    """e_t <- e_t + strength * sigmoid(w . e_t[:window]) * e_{t-1}, only where token t follows one of its document."""

    def __init__(self, part: SmearConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, part.window))
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, e: Tensor, tokens: Tensor, follows: Tensor, hooks: Hooks) -> Tensor:
        """Return the smeared embedding (B, T, C); `follows` (B, T) is False at document starts."""
        gate = torch.sigmoid(F.linear(e[..., : self.weight.shape[1]], self.weight.to(e.dtype)))  # (B, T, 1)
        share = self.strength.to(e.dtype) * gate * follows[..., None]
        return e + share * e.roll(1, dims=1)
