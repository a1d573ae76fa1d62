"""Streams whose segments are windows drawn at random: shuffled (parameter-golf PR #1493) and coprime (PR #1060).

The drawing is sequential, the tokens are not: to reach a step, all draws before it are repeated without reading.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golf.data.coprime import coprime_windows
from golf.data.shards import Tokens, map_training_shards
from golf.data.windows import Window, shuffled_windows
from golf.errors import UsageError
from golf.ranks import VIRTUAL_RANKS


class Replay:
    """Items of an endless iterator by their number; going back starts the iterator again."""

    def __init__(self, begin: Callable[[], Iterator[list[Window]]]) -> None:
        self._begin, self._items = begin, begin()
        self._number, self._item = -1, list[Window]()

    def at(self, number: int) -> list[Window]:
        """Return item 0, 1, …"""
        if number < self._number:
            self._items, self._number = self._begin(), -1
        while self._number < number:
            self._item, self._number = next(self._items), self._number + 1
        return self._item


@dataclass(frozen=True, slots=True, eq=False)
class SampledStream:
    """Segments that are windows of the shards; `windows` names those of a step and virtual rank."""

    shards: tuple[Tokens, ...]
    windows: Callable[[int, int], list[Window]]
    seq_len: int
    settings: dict[str, Any]

    @classmethod
    def shuffled(cls, paths: Sequence[Path], *, batch_tokens: int, seq_len: int) -> "SampledStream":
        """Open the stream in which virtual rank v draws windows of shards v, v + 8, …, a permutation of each.

        `batch_tokens` are the inputs of a step over all ranks, a multiple of 8 seq_len. Raises UsageError for fewer
        shards than virtual ranks or too short ones.
        """
        shards, digest = map_training_shards(paths)
        if len(shards) < VIRTUAL_RANKS:
            raise UsageError(
                f"the shuffled loader needs {VIRTUAL_RANKS} training shards, one for each virtual rank, and there are "
                f"{len(shards)}; fetch or prepare more, or choose another data.loader"
            )
        sizes, own = [tokens.size for tokens in shards], batch_tokens // VIRTUAL_RANKS // seq_len
        draw = partial(shuffled_windows, sizes, window_len=seq_len, windows_per_draw=own)
        replays = [Replay(partial(draw, virtual_rank=rank)) for rank in range(VIRTUAL_RANKS)]
        settings = {"loader": "shuffled", "batch_tokens": batch_tokens, "seq_len": seq_len, "files": digest}
        return cls(shards, lambda step, rank: replays[rank].at(step), seq_len, settings)

    @classmethod
    def coprime(cls, paths: Sequence[Path], *, batch_tokens: int, seq_len: int) -> "SampledStream":
        """Open the stream of `golf.data.coprime`; arguments as of `shuffled`, any number of shards."""
        shards, digest = map_training_shards(paths)
        sizes, own = [tokens.size for tokens in shards], batch_tokens // VIRTUAL_RANKS // seq_len
        replay = Replay(partial(coprime_windows, sizes, window_len=seq_len, windows_per_step=batch_tokens // seq_len))
        settings = {"loader": "coprime", "batch_tokens": batch_tokens, "seq_len": seq_len, "files": digest}
        return cls(shards, lambda step, rank: replay.at(step)[rank * own : (rank + 1) * own], seq_len, settings)

    def read(self, segment: int) -> npt.NDArray[np.int64]:
        """Return the rows (n, seq_len + 1) of a segment."""
        drawn = self.windows(*divmod(segment, VIRTUAL_RANKS))
        rows = [self.shards[shard][start : start + self.seq_len + 1] for shard, start in drawn]
        return np.stack(rows).astype(np.int64)

    def place(self, segment: int) -> dict[str, int]:
        """Return nothing: a step begins at as many places as it has rows."""
        return {}
