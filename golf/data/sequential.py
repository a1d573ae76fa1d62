"""The sequential stream: all shards end to end as one endless string of tokens (parameter-golf PR #401 and before).

Each segment is the next L + 1 tokens, wherever documents and shards end: L inputs, cut into rows, and one more target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from golf.data.shards import Tokens, map_training_shards
from golf.ranks import VIRTUAL_RANKS


@dataclass(frozen=True, slots=True, eq=False)
class SequentialStream:
    """Where each segment of the endless stream lies; a segment is (span - 1) / seq_len rows."""

    shards: tuple[Tokens, ...]
    ends: npt.NDArray[np.int64]  # (shards,) tokens in this shard and all before it
    span: int  # tokens a segment: its inputs and one more, the last target
    seq_len: int
    settings: dict[str, Any]

    @classmethod
    def open(cls, paths: Sequence[Path], *, batch_tokens: int, seq_len: int) -> "SequentialStream":
        """Map the shards; `batch_tokens` are the inputs of a step over all ranks, a multiple of 8 seq_len."""
        shards, digest = map_training_shards(paths)
        settings = {"loader": "sequential", "batch_tokens": batch_tokens, "seq_len": seq_len, "files": digest}
        ends = np.cumsum([tokens.size for tokens in shards])
        return cls(shards, ends, batch_tokens // VIRTUAL_RANKS + 1, seq_len, settings)

    def locate(self, segment: int) -> tuple[int, int, int]:
        """Return the epoch, shard index and start within the shard of segment 0, 1, … of the stream."""
        epoch, at = divmod(segment * self.span, int(self.ends[-1]))
        shard = int(np.searchsorted(self.ends, at, side="right"))
        return epoch, shard, at - (int(self.ends[shard - 1]) if shard else 0)

    def read(self, segment: int) -> npt.NDArray[np.int64]:
        """Return the rows (n, seq_len + 1) of a segment; a row's last target is the next one's first input."""
        _, shard, start = self.locate(segment)
        parts, missing = [], self.span
        while missing:
            parts.append(self.shards[shard][start : start + missing])
            missing -= parts[-1].size
            shard, start = (shard + 1) % len(self.shards), 0
        tokens = np.concatenate(parts).astype(np.int64)
        return sliding_window_view(tokens, self.seq_len + 1)[:: self.seq_len]

    def place(self, segment: int) -> dict[str, int]:
        """Return the epoch, shard and cursor of a segment."""
        return dict(zip(("epoch", "shard", "cursor"), self.locate(segment), strict=True))
