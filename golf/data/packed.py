"""The packed stream: documents end to end, cut into equal segments (document packing, parameter-golf PR #1736).

Segments come in groups that never cross a shard: what is left when the next group does not fit, and what precedes a
shard's first document start, is dropped. Shards are cycled in order for ever, unshuffled and unseeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golf.data.shards import Tokens, map_training_shards
from golf.errors import BadFileError, UsageError
from golf.ranks import VIRTUAL_RANKS

_SCAN_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PackedStream:
    """Where each segment of the endless stream lies; a segment is one row."""

    shards: tuple[Tokens, ...]
    first_bos: npt.NDArray[np.int64]  # (shards,)
    groups_through: npt.NDArray[np.int64]  # (shards,) groups in this shard and all before it
    span: int  # tokens a segment: its inputs and one more, the last target
    group_ranks: int  # segments a group
    settings: dict[str, Any]

    @classmethod
    def open(
        cls, paths: Sequence[Path], *, batch_tokens: int, bos_id: int, group_ranks: int = VIRTUAL_RANKS
    ) -> "PackedStream":
        """Map the shards and find their first document starts.

        `batch_tokens` are the inputs of a step over all ranks. `group_ranks` is how many segments must fit into a
        shard together; the published runs used their world size, so theirs depend on it. Raises UsageError for
        numbers that do not divide and BadFileError for a shard that is damaged, without a document start or too short
        for one group.
        """
        if batch_tokens <= 0 or batch_tokens % VIRTUAL_RANKS:
            raise UsageError(f"batch_tokens is {batch_tokens}; it must be a multiple of {VIRTUAL_RANKS}")
        if group_ranks <= 0 or VIRTUAL_RANKS % group_ranks:
            raise UsageError(f"group_ranks is {group_ranks}; it must divide {VIRTUAL_RANKS}")
        span = batch_tokens // VIRTUAL_RANKS + 1
        shards, digest = map_training_shards(paths)
        first_bos = np.array([_first_start(path, tokens, bos_id) for path, tokens in zip(paths, shards, strict=True)])
        sizes = np.array([tokens.size for tokens in shards])
        groups = (sizes - first_bos) // (span * group_ranks)
        for path, bos, size, count in zip(paths, first_bos, sizes, groups, strict=True):
            if count == 0:
                reason = f"its {size:,} tokens are too few: one step needs {bos + span * group_ranks:,} of this shard"
                raise BadFileError(path, reason, "make longer shards with `golf data prepare`, or lower batch_tokens")
        settings = {"loader": "packed", "batch_tokens": batch_tokens, "group_ranks": group_ranks, "files": digest}
        return cls(shards, first_bos, np.cumsum(groups), span, group_ranks, settings)

    def locate(self, segment: int) -> tuple[int, int, int]:
        """Return the epoch, shard index and start within the shard of segment 0, 1, … of the stream."""
        group, rank = divmod(segment, self.group_ranks)
        epoch, group = divmod(group, int(self.groups_through[-1]))
        shard = int(np.searchsorted(self.groups_through, group, side="right"))
        before = int(self.groups_through[shard - 1]) if shard else 0
        start = int(self.first_bos[shard]) + ((group - before) * self.group_ranks + rank) * self.span
        return epoch, shard, start

    def read(self, segment: int) -> npt.NDArray[np.int64]:
        """Return the row (1, span) of a segment."""
        _, shard, start = self.locate(segment)
        return self.shards[shard][None, start : start + self.span].astype(np.int64)

    def place(self, segment: int) -> dict[str, int]:
        """Return the epoch, shard and cursor of a segment."""
        return dict(zip(("epoch", "shard", "cursor"), self.locate(segment), strict=True))


def _first_start(path: Path, tokens: Tokens, bos_id: int) -> int:
    for at in range(0, tokens.size, _SCAN_TOKENS):
        starts = np.flatnonzero(tokens[at : at + _SCAN_TOKENS] == bos_id)
        if starts.size:
            return at + int(starts[0])
    raise BadFileError(path, f"it has no document start (id {bos_id})", "run `golf data prepare` again")
