"""What every block of one forward reads besides the residual stream."""

from typing import NamedTuple

from torch import Tensor

from golf.kernels.table import Kernels


class Context(NamedTuple):
    """One forward's own; constant but for `memory` and `waiting`. B rows, T tokens, N segments, C model dim."""

    x0: Tensor  # (B, T, C) normalized embedding
    cu_seqlens: Tensor  # (N+1,) segment boundaries over the flattened tokens
    max_seqlen: int
    cos: Tensor  # (T, 1, dims/2)
    sin: Tensor
    kernels: Kernels
    memory: dict[str, Tensor]  # what earlier visits of this forward left for later ones: first outputs, first values
    waiting: list[Tensor]  # encoder outputs (B, T, C) that decoder visits take, the newest first
    value_embedding: Tensor | None = None  # (B, T, K*D) shared by the layers that add it
    lanes: tuple[Tensor, Tensor] | None = None  # (L, 2, 2) and (L, 2) of parts/lanes.py

    def latest_x0(self) -> Tensor:
        """Return x0 as the last visit handed it on, whose backward adds up the gradients."""
        return self.memory.get("x0", self.x0)

    def hand_on(self, x: Tensor) -> None:
        """Let x, if it is what waits last, wait as the visit that read it handed it on: one backward adds up for both.

        Not for the visit itself, of which torch.compile would make another graph for every length of `waiting`.
        """
        same = self.memory.pop("stream", None)
        if same is not None and self.waiting and self.waiting[-1] is x:
            self.waiting[-1] = same
