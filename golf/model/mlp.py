"""The MLP stage of a block."""

from torch import Tensor, nn

from golf.kernels.leaky_relu_square import leaky_relu_square
from golf.model.hooks import Hooks
from golf.model.layers import Linear
from golf.model_config import ModelConfig


class MLP(nn.Module):
    """Two matrices around a squared leaky ReLU."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.tap = f"blocks.{layer}.mlp"
        self.negative_slope = config.negative_slope
        self.fc = Linear(config.model_dim, config.hidden_dim)
        self.proj = Linear(config.hidden_dim, config.model_dim)

    def forward(self, n: Tensor, hooks: Hooks, slot: int) -> Tensor:
        """Map the normalized input n (B, T, C) to the branch's output (B, T, C)."""
        hooks.show(self.tap, n)
        hidden = leaky_relu_square(self.fc(n), negative_slope=self.negative_slope)
        hooks.show(f"{self.tap}.proj", hidden)
        return hooks.adapt(slot, "mlp", self.proj(hidden), n)
