"""Calibration windows: which stretches of the training shards the quantizer looks at.

The sampler of the published runs, as a pure function. Virtual rank v of w owns shards v, v + w, …; the real number of
GPUs never enters, so the same recipe calibrates on the same windows everywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from golf.data.documents import Batch, build_cu_seqlens
from golf.data.shards import read_shard
from golf.errors import UsageError

Window = tuple[int, int]  # index of the shard, first token within it


def calibration_windows(
    sizes: Sequence[int],
    *,
    window_len: int,
    windows_per_batch: int,
    num_batches: int,
    virtual_rank: int = 0,
    virtual_world: int = 8,
) -> list[list[Window]]:
    """Draw `num_batches` lists of windows from shards of `sizes` tokens; a window reads window_len + 1 of them.

    A PCG64 generator seeded with the virtual rank gives each shard a phase and a permutation of its windows. A window
    comes from a shard chosen in proportion to what it has left; when nothing is left all shards are drawn anew.
    Raises UsageError if the virtual rank owns no shard, or only shards too short for one window.
    """
    owned = range(virtual_rank, len(sizes), virtual_world)
    if not owned:
        raise UsageError(
            f"virtual rank {virtual_rank} of {virtual_world} owns none of the {len(sizes)} training shards; "
            f"choose a virtual rank below {len(sizes)} or a smaller virtual world"
        )
    if all(sizes[shard] <= window_len for shard in owned):
        raise UsageError(
            f"no training shard of virtual rank {virtual_rank} holds the {window_len + 1} tokens of a window; "
            "use longer shards or shorter windows"
        )
    generator = np.random.Generator(np.random.PCG64(virtual_rank))
    starts: list[list[int]] = [[] for _ in owned]
    batches = []
    for _ in range(num_batches):
        batch = []
        for _ in range(windows_per_batch):
            if not any(starts):
                starts = [_shuffled_starts(sizes[shard], window_len, generator) for shard in owned]
            left = np.array([len(own) for own in starts], dtype=np.float64)
            chosen = int(generator.choice(len(starts), p=left / left.sum()))
            batch.append((owned[chosen], starts[chosen].pop()))
        batches.append(batch)
    return batches


def read_windows(shards: Sequence[Path], windows: Sequence[Window], window_len: int) -> Batch:
    """Read windows as the (windows, window_len) rows of a batch; each row is one segment, documents are ignored."""
    rows = [read_shard(shards[shard])[start : start + window_len + 1].astype(np.int64) for shard, start in windows]
    spans = torch.from_numpy(np.stack(rows))
    cu_seqlens, _ = build_cu_seqlens(
        range(0, len(rows) * window_len, window_len), len(rows) * window_len, max_doc_len=0
    )
    return Batch(spans[:, :-1].contiguous(), spans[:, 1:].contiguous(), cu_seqlens, window_len)


def _shuffled_starts(size: int, window_len: int, generator: np.random.Generator) -> list[int]:
    """Window starts in drawing order, last first; a phase of which there is only one choice draws nothing."""
    max_phase = min(window_len - 1, max(0, size - window_len - 1))
    phase = int(generator.integers(max_phase + 1)) if max_phase else 0
    count = max(0, (size - 1 - phase) // window_len)
    starts: list[int] = (phase + generator.permutation(count) * window_len).tolist()
    return starts
