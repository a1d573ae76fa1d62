"""Multi-token prediction: extra heads that look further ahead (Gloeckle et al. 2024, arXiv:2404.19737)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.kernels.table import Kernels
from golf.model.layers import Linear
from golf.model_config import ModelConfig
from golf.part_config import MultiTokenConfig


class MultiTokenHeads(nn.Module):
    """Head k (from 1) predicts from the state at t the token after target t by k; trained, never exported."""

    def __init__(self, config: ModelConfig, part: MultiTokenConfig) -> None:
        super().__init__()
        self.part, self.cap, self.bos_id = part, config.logit_softcap, config.bos_id
        self.heads = nn.ModuleList(Linear(config.model_dim, config.vocab_size) for _ in range(part.heads))

    def forward(self, x: Tensor, targets: Tensor, kernels: Kernels) -> Tensor:
        """Return what to add to the losses (B, T), so that their mean gains weight * mean over heads of their means.

        x (B, T, C) is the normalized final state. A head is not asked beyond the row, nor beyond the target that
        starts the next document.
        """
        extra = torch.zeros(targets.shape, device=x.device)
        inside = torch.ones_like(targets, dtype=torch.bool)
        for k, head in enumerate(self.heads, start=1):
            inside = inside & (F.pad(targets[:, k - 1 :], (0, k - 1)) != self.bos_id)
            inside[:, -k:] = False
            ahead = F.pad(targets[:, k:], (0, k))
            losses = kernels.cross_entropy(head(x), ahead, cap=self.cap, spends=True)
            extra = extra + torch.where(inside, losses, 0.0) * (targets.numel() / inside.sum().clamp_min(1))
        return self.part.weight / len(self.heads) * extra
