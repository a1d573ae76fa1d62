"""Muon (Jordan et al. 2024) with its momentum sharded over ranks.

Parameters stay per layer; matrices of one shape are stacked at step time. A rank owns an equal slice of every stack:
it reduces those gradients, keeps their state and orthogonalizes them, then all ranks gather the updates.
All stacks are reduced at once, the largest first; while a stack's updates are gathered, the next is orthogonalized.
N matrices of one shape, padded to a multiple of the world size; R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from golf.distributed import Pending, World
from golf.optim.forms import Form, first_squares, level_rows, precondition, track_mousse_, track_normuon_
from golf.optim.polar import Coefficients, normalize_rows, orthogonalize


class _Stack(NamedTuple):
    names: list[str]
    parameters: list[nn.Parameter]  # N of one shape (R, C)
    momentum: Tensor  # (padded N / world size, R, C), this rank's slice
    squares: dict[str, Tensor]  # what the form remembers of that slice
    whole: Tensor  # (padded N, R, C): all gradients, later all updates; the padding is always zero
    rows: tuple[Tensor, ...]  # the N matrices in it
    shard: Tensor  # (padded N / world size, R, C): this rank's slice of the mean gradients

    def kept(self) -> dict[str, Tensor]:
        """Name all state of this rank's slice."""
        return {"momentum": self.momentum, **self.squares}


class Muon:
    """b <- m b + g, u = g + m b or without Nesterov b;  W <- W (1 - lr wd) - lr sqrt(max(1, R/C)) orthogonalize(u)."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        form: Form,
        nesterov: bool,
        iterations: Coefficients,
        row_normalize: bool,
        weight_decay: float,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        self.form, self.nesterov, self.iterations = form, nesterov, iterations
        self.row_normalize, self.weight_decay = row_normalize, weight_decay
        self.dtype, self.world = dtype, world
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in sorted(parameters.items()):
            by_shape[parameter.shape].append(name)
        self.stacks = [self._stack([(name, parameters[name]) for name in names]) for names in by_shape.values()]
        self.order = sorted(range(len(self.stacks)), key=lambda index: -self.stacks[index].whole.numel())

    def start_averaging(self) -> list[Pending]:
        """Start to average the gradients over ranks; return this rank's slice of every stack."""
        started: dict[int, Pending] = {}
        for index in self.order:
            stack = self.stacks[index]
            _collect(stack)
            started[index] = self.world.start_scatter_mean(stack.whole, stack.shard)
        return [started[index] for index in range(len(self.stacks))]

    def reduced_gradients(self) -> list[Tensor]:
        """Average the gradients over ranks; return this rank's slice of every stack, valid until the next step."""
        return [pending.wait() for pending in self.start_averaging()]

    def step(
        self, gradients: list[Tensor], *, lr: float, momentum: float, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Apply one update from the slices of averaged gradients, in the order of the stacks.

        `meanwhile` is called while the last updates are gathered.
        """
        gathered: tuple[_Stack, Pending] | None = None
        for index in self.order:
            stack, gradient = self.stacks[index], gradients[index]
            stack.momentum.mul_(momentum).add_(gradient)
            update = stack.momentum
            if self.nesterov:
                update = gradient.add(stack.momentum, alpha=momentum)  # rounded once, as in the record stacks
            gathering = self.world.start_gather(self._direction(update, stack.squares), stack.whole)
            if gathered is not None:
                self._apply(*gathered, lr)
            gathered = stack, gathering
        meanwhile()
        if gathered is not None:
            self._apply(*gathered, lr)

    def state(self) -> dict[str, Tensor]:
        """Gather copies of every matrix's state, whole and without padding, on the CPU. A collective.

        momentum (R, C); NorMuon and Mousse also row_squares (R), Mousse column_squares (C).
        """
        gathered = [(s.names, key, self.world.gather(own)) for s in self.stacks for key, own in s.kept().items()]
        return {
            f"{name}/{key}": matrix.to("cpu", copy=True)  # alone on a CPU, `gather` returns the live state
            for names, key, whole in gathered
            for name, matrix in zip(names, whole, strict=False)  # the rest is padding
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's slices from what `state` returned on any number of ranks."""
        for stack in self.stacks:
            for key, own in stack.kept().items():
                whole = self._pad([state[f"{name}/{key}"] for name in stack.names])
                own.copy_(whole.chunk(self.world.size)[self.world.rank])

    def _direction(self, update: Tensor, squares: dict[str, Tensor]) -> Tensor:
        """Orthogonalize `update` (n, R, C) in the form of this optimizer, whose `squares` move on by one step."""
        if self.row_normalize:
            update = normalize_rows(update)
        if self.form == "mousse":
            track_mousse_(squares, update)
            update = precondition(update, squares)
        direction = orthogonalize(update, self.iterations)
        if self.form == "normuon":
            track_normuon_(squares, direction)
            direction = level_rows(direction, squares)
        return direction

    def _apply(self, stack: _Stack, gathering: Pending, lr: float) -> None:
        update = gathering.wait()[: len(stack.names)]
        rows, columns = update.shape[-2:]
        scale = math.sqrt(max(1.0, rows / columns))
        weights = [parameter.data for parameter in stack.parameters]
        torch._foreach_mul_(weights, 1.0 - lr * self.weight_decay)
        torch._foreach_add_(weights, list(update.to(weights[0].dtype)), alpha=-lr * scale)

    def _stack(self, named: list[tuple[str, nn.Parameter]]) -> _Stack:
        names, parameters = [name for name, _ in named], [parameter for _, parameter in named]
        owned = math.ceil(len(names) / self.world.size)
        rows, columns = parameters[0].shape
        shape, device = (owned, rows, columns), parameters[0].device
        whole = torch.zeros(self.world.size * owned, rows, columns, dtype=self.dtype, device=device)
        return _Stack(
            names=names,
            parameters=parameters,
            momentum=torch.zeros(shape, dtype=self.dtype, device=device),
            squares=first_squares(self.form, shape, device),
            whole=whole,
            rows=whole[: len(names)].unbind(),
            shard=torch.empty(shape if self.world.size > 1 else 0, dtype=self.dtype, device=device),
        )

    def _pad(self, matrices: list[Tensor]) -> Tensor:
        missing = -len(matrices) % self.world.size
        return torch.stack(matrices + missing * [torch.zeros_like(matrices[0])])


def _collect(stack: _Stack) -> None:
    """Copy the gradients into the stack, in its dtype; a matrix without one has zeros."""
    present = [(row, p.grad) for row, p in zip(stack.rows, stack.parameters, strict=True) if p.grad is not None]
    if present:
        torch._foreach_copy_([row for row, _ in present], [gradient for _, gradient in present])
    for row, parameter in zip(stack.rows, stack.parameters, strict=True):
        if parameter.grad is None:
            row.zero_()
