"""What persistent Triton products share: the tensor memory accelerator (TMA), and tiles that leave in parts."""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.jit import HAS_TRITON, jit, tl

if HAS_TRITON:
    from triton.tools.tensor_descriptor import TensorDescriptor

_entered = threading.local()  # the devices whose context this thread has: `devices`, a set
_INTERPRETED_PROGRAMS = 2  # few, so that a program walks over several tiles


class Tiles(NamedTuple):
    """How a product is cut."""

    rows: int  # of a tile: tokens
    columns: int  # of a tile: channels or hidden units
    depth: int  # of a step
    parts: int  # that a tile's columns leave in, and what they are multiplied with arrives in: 1, 2 or 4
    stages: int  # steps in flight
    warps: int
    programs: int  # a multiprocessor


@jit
def cut(tile: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr) -> Any:
    """Return the PARTS groups of columns of a tile, from left to right."""
    if PARTS == 1:
        return (tile,)
    else:  # without it, Triton would cut for ever
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        return cut(left, ROWS, COLUMNS // 2, PARTS // 2) + cut(right, ROWS, COLUMNS // 2, PARTS // 2)


def described(matrix: Tensor, block: tuple[int, int]) -> Any:
    """Return the descriptor by which the TMA moves a `block` of a contiguous `matrix` with rows of whole 16 bytes."""
    ready = describable(matrix)
    return TensorDescriptor(ready, list(ready.shape), list(ready.stride()), list(block))


def describable(matrix: Tensor) -> Tensor:
    """Return the contiguous `matrix`, or a copy where it does not begin at whole 16 bytes, for a descriptor of it.

    The driver makes one in the thread's current context, which a thread of autograd's that has not started a kernel yet
    does not have: then one is started.
    """
    devices: set[torch.device] = vars(_entered).setdefault("devices", set())
    if matrix.is_cuda and matrix.device not in devices:
        torch.zeros((), device=matrix.device)
        devices.add(matrix.device)
    return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()


def count_programs(device: torch.device, each: int) -> int:
    """Return how many programs fill `device`, so many `each` of its multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return each * int(torch.cuda.get_device_properties(device).multi_processor_count)
