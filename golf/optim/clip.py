"""The global-norm clip and its limit.

Lyapunov clip: lambda = mean log(g[i+1] / g[i]) over the last gradient norms g, this step's included, says how fast they
grow. Where it is above 0.05, the limit of this step is the recipe's times exp(-5 lambda). It does not compound: each
step starts from the recipe's limit, or it could only ever fall.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GROWTH = 0.05  # of log norm a step: a smaller one changes nothing
_GAIN = 5.0


class Clip:
    """Shorten gradients to `limit` (0 = never), or to less while the last `window` norms grow (0 = no such look)."""

    def __init__(self, limit: float, *, window: int, device: torch.device) -> None:
        self.limit, self.window = limit, window
        self.norms = torch.empty(0, device=device)  # (up to `window`), oldest first

    def shorten_(self, gradients: Sequence[Tensor], norm: Tensor) -> None:
        """Scale `gradients` by min(1, limit / (norm + 1e-6)), `norm` () being that of all of them; remember `norm`."""
        if not self.limit:
            return
        ratio = self.limit / (norm + 1e-6)
        if self.window:
            self.norms = torch.cat([self.norms, norm.reshape(1)])[-self.window :]
            if len(self.norms) == self.window:
                ratio = ratio * tightening(self.norms)
        factor = ratio.clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)  # a float32 scalar, not rounded to bfloat16 before it multiplies

    def state(self) -> dict[str, Tensor]:
        """Return the remembered norms on the CPU; nothing without a window."""
        return {"norms": self.norms.to("cpu", copy=True)} if self.window else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned. Raises KeyError when the norms of a window are missing."""
        if self.window:
            self.norms = state["norms"].to(self.norms.device, copy=True)


def tightening(norms: Tensor) -> Tensor:
    """Return exp(-5 lambda) () of `norms` (at least 2) where their mean log growth lambda is above 0.05, else 1.

    The mean of the differences is that of the two ends, so only they count. A norm of 0 or infinity there has no
    growth and gives 1. Nothing is read back from the device.
    """
    growth = (norms[-1].log() - norms[0].log()) / (len(norms) - 1)
    grows = growth.isfinite() & (growth > _GROWTH)
    return torch.where(grows, (-_GAIN * growth).exp(), 1.0)


def sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of all squared values (), in float32."""
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()
