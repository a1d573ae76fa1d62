"""The MLP stage of a block.

B rows, T tokens, C model dim, F hidden width.
"""

from torch import Tensor, nn

from golf.model.context import Context
from golf.model.hooks import Hooks
from golf.model.layers import Linear
from golf.model.parts.activation import LeakyReluSquare, activation
from golf.model.parts.low_rank import LowRank, PassCorrections
from golf.model.parts.ternary import matrix
from golf.model.plan import Visit
from golf.model_config import ModelConfig


class MLP(nn.Module):
    """proj(phi(fc(n))), or proj(phi(fc_gate(n)) * fc(n)) where the activation is gated."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.tap = f"blocks.{layer}.mlp"
        self.activation = activation(config, layer)
        dim, width = config.model_dim, config.hidden_dim(layer)
        self.fc = self._map(config, "fc", dim, width)
        self.fc_gate = self._map(config, "fc_gate", dim, width) if config.gated_mlp else None
        self.proj = self._map(config, "proj", width, dim)
        loop = config.loop
        self.fc_passes = self.proj_passes = None
        if loop and loop.mlp_lora_rank and loop.start <= layer <= loop.end:
            rank, passes = loop.mlp_lora_rank, loop.extra_passes + 1
            self.fc_passes = PassCorrections(dim, width, rank, passes=passes, tap=f"{self.tap}.fc_passes")
            self.proj_passes = PassCorrections(width, dim, rank, passes=passes, tap=f"{self.tap}.proj_passes")
        whole = isinstance(self.fc, Linear) and self.fc_gate is None and self.fc_passes is None
        self.is_square = whole and type(self.activation) is LeakyReluSquare  # the records' form, which has a kernel

    def forward(
        self, n: Tensor, context: Context, hooks: Hooks, visit: Visit, gain: Tensor, *, onto: Tensor | None = None
    ) -> Tensor:
        """Map the normalized input n (B, T, C) to the branch's output (B, T, C), times `gain` (C,).

        It is added to a stream `onto`, which is spent, where there is one.
        """
        hooks.show(self.tap, n)
        compute = self._squared if self.is_square else self._general
        return hooks.adapt(visit.slot, "mlp", compute(n, context, hooks, visit, gain, onto), n, gain)

    def _squared(
        self, n: Tensor, context: Context, hooks: Hooks, visit: Visit, gain: Tensor, onto: Tensor | None
    ) -> Tensor:
        assert isinstance(self.fc, Linear)
        assert isinstance(self.proj, Linear)
        assert isinstance(self.activation, LeakyReluSquare)
        kernels = context.kernels
        weights = self.fc.weight_as(n.dtype), self.proj.gained_weight(gain, n.dtype, kernels)
        slope = self.activation.negative_slope
        y, hidden = kernels.square_mlp(n, *weights, negative_slope=slope, onto=onto)
        hooks.show(f"{self.tap}.proj", hidden)
        return y

    def _general(
        self, n: Tensor, context: Context, hooks: Hooks, visit: Visit, gain: Tensor, onto: Tensor | None
    ) -> Tensor:
        z, kernels = _apply(self.fc, n, hooks), context.kernels  # (B, T, F)
        if self.fc_passes is not None:
            z = z + self.fc_passes.of(visit.pass_index)(n, hooks)
        hidden = self.activation(z) if self.fc_gate is None else self.activation(_apply(self.fc_gate, n, hooks)) * z
        hooks.show(f"{self.tap}.proj", hidden)
        if isinstance(self.proj, LowRank):
            y = self.proj.add_to(onto, hidden, gain, kernels, hooks=hooks)
        else:
            y = self.proj.add_to(onto, hidden, gain, kernels)
        if self.proj_passes is not None:
            y = self.proj_passes.of(visit.pass_index).add_to(y, hidden, gain, kernels, hooks=hooks)
        return y

    def _map(self, config: ModelConfig, name: str, in_features: int, out_features: int) -> Linear | LowRank:
        if config.mlp_rank:
            return LowRank(in_features, out_features, config.mlp_rank, tap=f"{self.tap}.{name}")
        return matrix(config, in_features, out_features)


def _apply(linear: Linear | LowRank, x: Tensor, hooks: Hooks) -> Tensor:
    y: Tensor = linear(x, hooks) if isinstance(linear, LowRank) else linear(x)
    return y
