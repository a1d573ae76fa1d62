"""Muon (Jordan et al. 2024) with its momentum sharded over ranks.

Parameters stay per layer; matrices of one shape are stacked at step time. A rank owns an equal slice of every stack:
it reduces those gradients, keeps their momentum and orthogonalizes them, then all ranks gather the updates.
N matrices of one shape, padded to a multiple of the world size; R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from golf.distributed import World
from golf.optim.polar import Coefficients, normalize_rows, orthogonalize


class _Stack(NamedTuple):
    names: list[str]
    parameters: list[nn.Parameter]  # N of one shape (R, C)
    momentum: Tensor  # (padded N / world size, R, C), this rank's slice


class Muon:
    """u = g + m b with b <- m b + g;  W <- W (1 - lr wd) - lr sqrt(max(1, R/C)) orthogonalize(u)."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        iterations: Coefficients,
        row_normalize: bool,
        weight_decay: float,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        self.iterations, self.row_normalize, self.weight_decay = iterations, row_normalize, weight_decay
        self.dtype, self.world = dtype, world
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in sorted(parameters.items()):
            by_shape[parameter.shape].append(name)
        self.stacks = [self._stack([(name, parameters[name]) for name in names]) for names in by_shape.values()]

    def reduced_gradients(self) -> list[Tensor]:
        """Average the gradients over ranks; return this rank's slice of every stack."""
        return [self.world.scatter_mean(self._stacked_gradients(stack)) for stack in self.stacks]

    def step(self, gradients: list[Tensor], *, lr: float, momentum: float) -> None:
        """Apply one update from the slices that `reduced_gradients` returned."""
        for stack, gradient in zip(self.stacks, gradients, strict=True):
            stack.momentum.mul_(momentum).add_(gradient)
            update = gradient.add(stack.momentum, alpha=momentum)  # rounded once, as in the record stacks
            if self.row_normalize:
                update = normalize_rows(update)
            update = self.world.gather(orthogonalize(update, self.iterations))[: len(stack.names)]
            rows, columns = update.shape[-2:]
            scale = math.sqrt(max(1.0, rows / columns))
            weights = [parameter.data for parameter in stack.parameters]
            torch._foreach_mul_(weights, 1.0 - lr * self.weight_decay)
            torch._foreach_add_(weights, list(update.to(weights[0].dtype)), alpha=-lr * scale)

    def state(self) -> dict[str, Tensor]:
        """Gather copies of every matrix's momentum (R, C), whole and without padding, on the CPU. A collective."""
        gathered = [(stack.names, self.world.gather(stack.momentum)) for stack in self.stacks]
        return {
            f"{name}/momentum": matrix.to("cpu", copy=True)  # alone on a CPU, `gather` returns the live momentum
            for names, whole in gathered
            for name, matrix in zip(names, whole, strict=False)  # the rest is padding
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's slices from what `state` returned on any number of ranks."""
        for stack in self.stacks:
            whole = self._pad([state[f"{name}/momentum"] for name in stack.names])
            stack.momentum.copy_(whole.chunk(self.world.size)[self.world.rank])

    def _stack(self, named: list[tuple[str, nn.Parameter]]) -> _Stack:
        names, parameters = [name for name, _ in named], [parameter for _, parameter in named]
        owned = math.ceil(len(names) / self.world.size)
        shape = (owned, *parameters[0].shape)
        return _Stack(names, parameters, torch.zeros(shape, dtype=self.dtype, device=parameters[0].device))

    def _stacked_gradients(self, stack: _Stack) -> Tensor:
        absent = torch.zeros_like(stack.parameters[0])
        return self._pad([absent if p.grad is None else p.grad for p in stack.parameters]).to(self.dtype)

    def _pad(self, matrices: list[Tensor]) -> Tensor:
        missing = -len(matrices) % self.world.size
        return torch.stack(matrices + missing * [torch.zeros_like(matrices[0])])
