"""Whether what every rank should hold alike is alike, to the last bit.

Ranks that drift apart train on and nobody sees it: a collective missed on one of them, a bit flipped in one GPU.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from golf.distributed import World
from golf.errors import NumericalFaultError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an entry


def check_replicas(tensors: Mapping[str, Tensor], world: World) -> None:
    """Compare `tensors`, in one order on all ranks, with those of rank 0. A collective.

    Raises NumericalFaultError on every rank, naming the first tensor that differs and the rank.
    """
    if world.size == 1 or not tensors:
        return
    own = torch.stack([fingerprint(tensor) for tensor in tensors.values()])
    found = world.gather(own[None]).T.tolist()  # of each tensor, of each rank
    for name, values in zip(tensors, found, strict=True):
        for rank in range(1, world.size):
            if values[rank] != values[0]:
                raise NumericalFaultError(
                    f"{name} is not the same on rank {rank} as on rank 0; resume the run from its last boundary"
                )


def fingerprint(tensor: Tensor) -> Tensor:
    """Sum (2 i + 1) b_i over the entries' bits b_i read as integers, modulo 2^64; () int64, on the tensor's device.

    No one changed bit, and no two entries exchanged within 2^31 of them, leaves it as it was: odd factors keep a
    power of two from vanishing, and a difference of 2 (j - i) times one of entries of up to 32 bits is below 2^64.
    """
    values = tensor.detach().contiguous().flatten()
    bits = values.view(_INTEGERS[values.element_size()]).long()
    factors = torch.arange(1, 2 * len(bits), 2, device=bits.device)
    return (bits * factors).sum()
