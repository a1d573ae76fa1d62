"""Gates on the attention output (parameter-golf PR #1787; dense form: #1736, output gate: #1667)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.model_config import ModelConfig
from golf.part_config import GateConfig


class AttentionGate(nn.Module):
    """g_h = gain * sigmoid(scale * w_h . z[:window] + b_h), one number a head and token; w starts near zero.

    z is the attention's normalized input, or the projected query before it is normalized.
    """

    def __init__(self, config: ModelConfig, part: GateConfig) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.zeros(config.num_heads, part.window))
        self.bias = None if part.bias is None else nn.Parameter(torch.full((config.num_heads,), part.bias))

    @property
    def reads_input(self) -> bool:
        """Whether z is the input, whose product with `weight` attention takes along with its own."""
        return self.part.source == "input"

    def forward(self, q: Tensor, scores: Tensor | None = None) -> Tensor:
        """Return the gates (B, T, H) from `scores` w z (B, T, H), or else from the projected query q (B, T, C)."""
        if scores is None:
            scores = F.linear(q[..., : self.part.window], self.weight.to(q.dtype))
        logits = _times(self.part.scale, scores)
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        return _times(self.part.gain, torch.sigmoid(logits))


def _times(factor: float, x: Tensor) -> Tensor:
    """Return factor * x; x itself if that is the same, which saves a kernel each way in every visit."""
    return x if factor == 1 else factor * x
