"""One operation of `golf.kernels.table` as a training meets it: random inputs, and the work that it must do.

N tokens, in one row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.bench.measurement import Work
from golf.model_config import ModelConfig

Inputs = dict[str, Tensor]
Outputs = tuple[Tensor, ...]
Run = Callable[[Inputs], Outputs]


class Sizes(NamedTuple):
    """What a case is made for."""

    config: ModelConfig
    tokens: int  # N
    max_doc_len: int
    dtype: torch.dtype  # of activations
    device: torch.device

    def bytes(self, *shape: int) -> int:
        """Return the size of activations for all tokens, (N, *shape)."""
        return torch.Size((self.tokens, *shape)).numel() * self.dtype.itemsize


class Draw(NamedTuple):
    """Draws random inputs that want a gradient."""

    sizes: Sizes
    generator: torch.Generator

    def activations(self, *shape: int) -> Tensor:
        """Return (1, N, *shape)."""
        return self._draw(1, self.sizes.tokens, *shape, dtype=self.sizes.dtype)

    def matrix(self, *shape: int) -> Tensor:
        """Return a weight in the activations' dtype, scaled so that it keeps their size."""
        return self._draw(*shape, dtype=self.sizes.dtype, scale=shape[-1] ** -0.5)

    def parameter(self, *shape: int) -> Tensor:
        """Return a float32 parameter."""
        return self._draw(*shape, dtype=torch.float32)

    def _draw(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, dtype=dtype, device=self.sizes.device, generator=self.generator)
        return drawn.mul_(scale).requires_grad_()


class Case(NamedTuple):
    """One operation at one size."""

    name: str
    entry: str  # of the table of kernels
    make: Callable[[Draw], Inputs]
    call: Callable[[Any, Inputs], Outputs]  # of the entry's function: what has a gradient
    forward: Work
    backward: Work  # what comes on top of it
    others: Mapping[str, Run] = {}  # further ways to the same outputs, on a GPU alone
