"""What the tensor memory accelerator (TMA) asks of a tensor before a descriptor is made of it."""

import threading

import torch
from torch import Tensor

_entered = threading.local()  # the devices whose context this thread has: `devices`, a set


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
