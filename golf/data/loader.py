"""This rank's micro-batches of a training stream, read ahead: the same for every number of GPUs.

A step reads eight segments, one for each virtual rank, whatever the real world size W is; real rank r takes segments
r, r + W, … of them. Which tokens a segment holds is a stream's affair: a function of the shards and the segment's
number alone, so every stream can be asked for any step.

B rows, T tokens a row.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf.data.documents import LENGTHS, Batch, segment_rows, whole_rows
from golf.errors import UsageError
from golf.ranks import VIRTUAL_RANKS


class Stream(Protocol):
    """Where the tokens of every segment lie."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a position must agree with to be of this stream, as JSON."""

    def read(self, segment: int) -> npt.NDArray[np.int64]:
        """Return the rows (n, T + 1) of segment 8 step + virtual rank: the inputs and each row's last target."""

    def place(self, segment: int) -> dict[str, int]:
        """Say where a segment begins, for people; nothing where it begins at several places."""


class Loader:
    """This rank's micro-batches, step after step, read ahead by one thread."""

    def __init__(
        self,
        stream: Stream,
        *,
        bos_id: int,
        max_doc_len: int,
        rank: int,
        world_size: int,
        rows_per_micro_batch: int,
        cross_documents: bool = False,
        lengths: int = LENGTHS,
        prefetch: int = 2,
    ) -> None:
        """Nothing is read ahead before the first step is asked for. `lengths` of boundaries: see `boundary_bucket`.

        `rows_per_micro_batch` counts segments; 0 puts all of this rank into one batch. A row is cut where a document
        starts, unless it may `cross_documents`, and every `max_doc_len` tokens (0 never cuts). Raises UsageError for
        numbers that do not divide.
        """
        own = VIRTUAL_RANKS // world_size if VIRTUAL_RANKS % world_size == 0 else 0
        if not (own and 0 <= rank < world_size):
            raise UsageError(
                f"rank {rank} of {world_size} cannot share {VIRTUAL_RANKS} virtual ranks; use 1, 2, 4 or 8 GPUs"
            )
        if rows_per_micro_batch < 0 or own % (rows_per_micro_batch or own):
            raise UsageError(
                f"run.rows_per_micro_batch is {rows_per_micro_batch}; it must divide this rank's {own} rows"
            )
        self._stream, self._settings = stream, stream.settings
        self._rank, self._world_size, self._together = rank, world_size, rows_per_micro_batch or own
        self._bos_id, self._max_doc_len, self._cross_documents = bos_id, max_doc_len, cross_documents
        self._lengths = lengths
        self._prefetch, self._step = prefetch, 0
        self._pending: deque[Future[list[Batch]]] = deque()
        self._pool = _reading_thread()

    def next_step(self) -> list[Batch]:
        """Return this rank's micro-batches of the next step, each of (B, T) tokens, pinned where there is CUDA.

        What went wrong in the reading thread is raised here.
        """
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._pool.submit(self._read_step, self._step + len(self._pending)))
        batches = self._pending[0].result()
        self._pending.popleft()
        self._step += 1
        return batches

    def seek(self, step: int) -> None:
        """Make `step` (0, 1, …) the next one; no tokens between are read."""
        if step < 0:
            raise UsageError(f"step {step} does not exist; steps count from 0")
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        self._step = step

    def position(self) -> dict[str, Any]:
        """Return where the stream stands, as JSON: the steps consumed, and where the next one begins.

        Steps read ahead but not handed out do not count.
        """
        return {"step": self._step, **self._stream.place(self._step * VIRTUAL_RANKS), **self._settings}

    def restore(self, position: dict[str, Any]) -> None:
        """Go on from a `position`; UsageError if it was taken over other shards or another stream or batch size."""
        differing = [key for key, value in self._settings.items() if position.get(key) != value]
        if differing:
            raise UsageError(
                f"the saved loader position does not fit this stream: {', '.join(differing)} differ; "
                "resume with the shards and the batch of the checkpoint, or seek to a step of the new stream"
            )
        self.seek(int(position["step"]))

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _read_step(self, step: int) -> list[Batch]:
        first = step * VIRTUAL_RANKS
        rows = [self._stream.read(first + rank) for rank in range(self._rank, VIRTUAL_RANKS, self._world_size)]
        parts = [rows[at : at + self._together] for at in range(0, len(rows), self._together)]
        return [self._batch(np.concatenate(part)) for part in parts]

    def _batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        tokens = torch.from_numpy(rows[:, :-1].copy())  # (B, T)
        targets = torch.from_numpy(rows[:, 1:].copy())  # (B, T)
        cu_seqlens = self._boundaries(tokens)
        return Batch(tokens, targets, cu_seqlens, self._max_doc_len or tokens.shape[1]).pinned()

    def _boundaries(self, tokens: Tensor) -> Tensor:
        if not self._cross_documents:
            return segment_rows(tokens, bos_id=self._bos_id, max_doc_len=self._max_doc_len, lengths=self._lengths)
        return whole_rows(*tokens.shape, max_doc_len=self._max_doc_len)


def _reading_thread() -> ThreadPoolExecutor:
    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1, "golf-loader")
    # The current device is per thread: pinning from a fresh one would open a context on GPU 0 for every rank.
    return ThreadPoolExecutor(1, "golf-loader", torch.cuda.set_device, (torch.cuda.current_device(),))
