"""Gradients of the parameters that every rank updates by itself, averaged over ranks in one buffer for each dtype."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from golf.distributed import Pending, World


class _Pack(NamedTuple):
    parameters: list[nn.Parameter]  # of one dtype
    flat: Tensor  # all of their gradients
    slots: list[Tensor]  # each of them in `flat`, in its parameter's shape


class Replicated:
    """The parameters and their buffers, which stay from step to step; a process alone needs no buffers."""

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self.parameters, self.world = list(parameters), world
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
        for parameter in self.parameters:
            by_dtype[parameter.dtype].append(parameter)
        self.packs = [_pack(members) for members in by_dtype.values()] if world.size > 1 else []

    def start_averaging(self) -> list[Pending]:
        """Start to average the gradients over ranks; a parameter without one has zeros from now on."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for pack in self.packs:
            torch._foreach_copy_(
                pack.slots, [parameter.grad for parameter in pack.parameters if parameter.grad is not None]
            )
        return [self.world.start_mean_(pack.flat) for pack in self.packs]

    def finish_averaging(self, started: Iterable[Pending]) -> list[Tensor]:
        """Make the means the gradients, valid until the next step; return the tensors that hold all of them."""
        for pending, pack in zip(started, self.packs, strict=True):
            pending.wait()
            for parameter, slot in zip(pack.parameters, pack.slots, strict=True):
                parameter.grad = slot
        return [pack.flat for pack in self.packs] or self.gradients()

    def gradients(self) -> list[Tensor]:
        """Return each parameter's gradient."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


def _pack(parameters: list[nn.Parameter]) -> _Pack:
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.empty(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    slots = [part.view(p.shape) for part, p in zip(flat.split(sizes), parameters, strict=True)]
    return _Pack(parameters, flat, slots)
