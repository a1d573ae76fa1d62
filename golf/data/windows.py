"""Shuffled windows of the training shards: what calibration looks at, and the training of parameter-golf PR #1493.

The sampler of the published runs, as a function that yields for ever. Virtual rank v of w owns shards v, v + w, …; the
real number of GPUs never enters, so the same recipe sees the same windows everywhere.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, count, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from golf.data.documents import Batch, whole_rows
from golf.data.shards import read_shard
from golf.errors import UsageError
from golf.ranks import VIRTUAL_RANKS

Window = tuple[int, int]  # index of the shard, first token within it


def calibration_windows(
    sizes: Sequence[int],
    *,
    window_len: int,
    windows_per_batch: int,
    num_batches: int,
    virtual_rank: int = 0,
    virtual_world: int = VIRTUAL_RANKS,
) -> list[list[Window]]:
    """Draw `num_batches` lists of windows; arguments and errors as of `shuffled_windows`."""
    drawn = shuffled_windows(
        sizes,
        window_len=window_len,
        windows_per_draw=windows_per_batch,
        virtual_rank=virtual_rank,
        virtual_world=virtual_world,
    )
    return list(islice(drawn, num_batches))


def shuffled_windows(
    sizes: Sequence[int],
    *,
    window_len: int,
    windows_per_draw: int,
    virtual_rank: int,
    virtual_world: int = VIRTUAL_RANKS,
) -> Iterator[list[Window]]:
    """Yield lists of windows from shards of `sizes` tokens, for ever; a window reads window_len + 1 of them.

    A PCG64 generator seeded with the virtual rank gives each shard a phase and a permutation of its windows. A window
    comes from a shard chosen in proportion to what it has left; when nothing is left all shards are drawn anew.
    Raises UsageError at once if the virtual rank owns no shard, or only shards too short for one window.
    """
    owned = range(virtual_rank, len(sizes), virtual_world)
    if not owned:
        raise UsageError(
            f"virtual rank {virtual_rank} of {virtual_world} owns none of the {len(sizes)} training shards; "
            f"use at least {virtual_rank + 1} shards"
        )
    if all(sizes[shard] <= window_len for shard in owned):
        raise UsageError(
            f"no training shard of virtual rank {virtual_rank} holds the {window_len + 1} tokens of a window; "
            "use longer shards or shorter windows"
        )
    drawn = _draw_windows(sizes, owned, window_len, np.random.Generator(np.random.PCG64(virtual_rank)))
    return (list(islice(drawn, windows_per_draw)) for _ in count())


def read_windows(shards: Sequence[Path], windows: Sequence[Window], window_len: int) -> Batch:
    """Read windows as the (windows, window_len) rows of a batch; each row is one segment, documents are ignored."""
    rows = [read_shard(shards[shard])[start : start + window_len + 1].astype(np.int64) for shard, start in windows]
    spans = torch.from_numpy(np.stack(rows))
    cu_seqlens = whole_rows(len(rows), window_len)
    return Batch(spans[:, :-1].contiguous(), spans[:, 1:].contiguous(), cu_seqlens, window_len)


def draw_phase(size: int, window_len: int, generator: np.random.Generator) -> tuple[int, int]:
    """Draw where a shard's first window starts; return that phase and how many windows follow one another from it.

    A phase of which there is only one choice draws nothing.
    """
    max_phase = min(window_len - 1, max(0, size - window_len - 1))
    phase = int(generator.integers(max_phase + 1)) if max_phase else 0
    return phase, max(0, (size - 1 - phase) // window_len)


def _draw_windows(
    sizes: Sequence[int], owned: Sequence[int], window_len: int, generator: np.random.Generator
) -> Iterator[Window]:
    """Yield single windows for ever.

    The choice of a shard takes one uniform number, as numpy's `choice` does with the same shares; it is a tenth of its
    work, which a resume repeats for every window already used.
    """
    while True:
        starts = [_shuffled_starts(sizes[shard], window_len, generator) for shard in owned]
        left = [len(own) for own in starts]
        for total in range(sum(left), 0, -1):
            shares = list(accumulate(own / total for own in left))
            chosen = bisect_right([share / shares[-1] for share in shares], generator.random())
            left[chosen] -= 1
            yield owned[chosen], int(starts[chosen][left[chosen]])


def _shuffled_starts(size: int, window_len: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Window starts in drawing order, last first."""
    phase, windows = draw_phase(size, window_len, generator)
    return phase + generator.permutation(windows) * window_len
