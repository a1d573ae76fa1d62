"""Zero the least codes until the packed model fits: the last kilobytes of a size limit, without another rounding.

Only codes of +-1 are candidates, those of the smallest scale first: zeroing one costs s^2 of squared error. Idea of
parameter-golf #1019, whose limit was in MiB by mistake; here it is in bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from golf.errors import UsageError
from golf.quant.lqer import is_factor
from golf.quant.scheme import QuantizedTensor, Stored

STEPS = 1024  # the share to zero is found to one part in this


def pack_within(
    stored: Mapping[str, Stored], limit: int | None, pack: Callable[[Mapping[str, Stored]], bytes]
) -> bytes:
    """Return `pack` of `stored` with as few codes zeroed as make it at most `limit` bytes; None is no limit.

    Finds the share of the candidates, in 1/1024, by bisection: twelve packings. Raises UsageError if zeroing all
    candidates is not enough.
    """
    packed = pack(stored)
    if limit is None or len(packed) <= limit:
        return packed
    candidates = _Candidates(stored)
    packed = pack(candidates.zeroed(STEPS))
    if len(packed) > limit:
        raise UsageError(
            f"quant.prune_to_bytes is {limit}, but with every code of 1 or -1 zeroed the model still takes "
            f"{len(packed)} bytes; raise it or take fewer bits"
        )
    too_few, enough = 0, STEPS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        attempt = pack(candidates.zeroed(middle))
        if len(attempt) <= limit:
            packed, enough = attempt, middle
        else:
            too_few = middle
    return packed


class _Candidates:
    """All codes of +-1 of the matrices, by rising scale; of equal scales, in the order of the tensors."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored
        self.tensors = {
            name: tensor
            for name, tensor in stored.items()
            if isinstance(tensor, QuantizedTensor) and not is_factor(name)  # a factor's code is no weight
        }
        self.scales = [tensor.scale.repeat_interleave(_is_one(tensor).sum(1)) for tensor in self.tensors.values()]
        self.order = torch.cat(self.scales or [torch.empty(0)]).argsort(stable=True)

    def zeroed(self, steps: int) -> dict[str, Stored]:
        """Return the stored tensors with the first `steps` / STEPS of the candidates set to 0."""
        keep = torch.ones_like(self.order, dtype=torch.int8)
        keep[self.order[: len(self.order) * steps // STEPS]] = 0
        pruned = dict(self.stored)
        pieces = keep.split([len(scales) for scales in self.scales])
        for (name, tensor), piece in zip(self.tensors.items(), pieces, strict=True):
            codes = tensor.codes.clone()
            codes[_is_one(tensor)] *= piece
            pruned[name] = replace(tensor, codes=codes)
        return pruned


def _is_one(tensor: QuantizedTensor) -> Tensor:
    return tensor.codes.abs() == 1
