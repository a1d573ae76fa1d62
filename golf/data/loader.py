"""The training stream: documents packed end to end, cut into equal segments, the same for every number of GPUs.

A step reads eight segments of T + 1 tokens, one for each virtual rank, whatever the real world size W is; real rank r
takes segments r, r + W, … of them. Segments come in groups that never cross a shard: what is left when the next group
does not fit, and what precedes a shard's first document start, is dropped. Shards are cycled in order for ever,
unshuffled and unseeded, so step s is a function of the shards and s alone.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golf.data.documents import Batch, segment_rows
from golf.data.shards import Tokens, read_shard
from golf.distributed import VIRTUAL_RANKS
from golf.errors import BadFileError, UsageError
from golf.files import canonical_json, sha256_bytes

CU_BUCKET = 64  # lengths of cu_seqlens are multiples of this, so compiled code sees few of them

_SCAN_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PackedStream:
    """Where each segment of the endless stream lies."""

    shards: tuple[Tokens, ...]
    first_bos: npt.NDArray[np.int64]  # (shards,)
    groups_through: npt.NDArray[np.int64]  # (shards,) groups in this shard and all before it
    span: int  # tokens a segment: its inputs and one more, the last target
    group_ranks: int  # segments a group

    @classmethod
    def open(cls, paths: Sequence[Path], *, span: int, group_ranks: int, bos_id: int) -> "PackedStream":
        """Map the shards and find their first document starts; BadFileError for a shard that cannot give one group."""
        if not paths:
            raise UsageError("no training shards were given; point to a folder with *_train_000000.bin")
        shards = tuple(np.asarray(read_shard(path)) for path in paths)
        first_bos = np.array([_first_start(path, tokens, bos_id) for path, tokens in zip(paths, shards, strict=True)])
        sizes = np.array([tokens.size for tokens in shards])
        groups = (sizes - first_bos) // (span * group_ranks)
        for path, bos, size, count in zip(paths, first_bos, sizes, groups, strict=True):
            if count == 0:
                reason = f"its {size:,} tokens are too few: one step needs {bos + span * group_ranks:,} of this shard"
                raise BadFileError(path, reason, "make longer shards with `golf data prepare`, or lower batch_tokens")
        return cls(shards, first_bos, np.cumsum(groups), span, group_ranks)

    def locate(self, segment: int) -> tuple[int, int, int]:
        """Return the epoch, shard index and start within the shard of segment 0, 1, … of the stream."""
        group, rank = divmod(segment, self.group_ranks)
        epoch, group = divmod(group, int(self.groups_through[-1]))
        shard = int(np.searchsorted(self.groups_through, group, side="right"))
        before = int(self.groups_through[shard - 1]) if shard else 0
        start = int(self.first_bos[shard]) + ((group - before) * self.group_ranks + rank) * self.span
        return epoch, shard, start

    def read(self, segment: int) -> npt.NDArray[np.int64]:
        """Return the `span` tokens of a segment."""
        _, shard, start = self.locate(segment)
        return self.shards[shard][start : start + self.span].astype(np.int64)


class PackedLoader:
    """This rank's micro-batches, step after step, read ahead by one thread."""

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        batch_tokens: int,
        max_doc_len: int,
        bos_id: int,
        rank: int,
        world_size: int,
        rows_per_micro_batch: int,
        prefetch: int = 2,
        group_ranks: int = VIRTUAL_RANKS,
    ) -> None:
        """Find the segments; nothing is read ahead before the first step is asked for.

        `batch_tokens` are the inputs of a step over all ranks; `rows_per_micro_batch` 0 puts all rows of this rank into
        one batch; `max_doc_len` 0 never cuts a document. `group_ranks` is how many segments must fit into a shard
        together; the published runs used their world size, so theirs depend on it. Raises UsageError for numbers
        that do not divide and BadFileError for a shard that is damaged, too short or without document starts.
        """
        rows = VIRTUAL_RANKS // world_size if VIRTUAL_RANKS % world_size == 0 else 0
        if not (rows and 0 <= rank < world_size):
            raise UsageError(
                f"rank {rank} of {world_size} cannot share {VIRTUAL_RANKS} virtual ranks; use 1, 2, 4 or 8 GPUs"
            )
        if batch_tokens <= 0 or batch_tokens % VIRTUAL_RANKS:
            raise UsageError(f"batch_tokens is {batch_tokens}; it must be a multiple of {VIRTUAL_RANKS}")
        if rows_per_micro_batch < 0 or rows % (rows_per_micro_batch or rows):
            raise UsageError(f"rows_per_micro_batch is {rows_per_micro_batch}; it must divide this rank's {rows} rows")
        if group_ranks <= 0 or VIRTUAL_RANKS % group_ranks:
            raise UsageError(f"group_ranks is {group_ranks}; it must divide {VIRTUAL_RANKS}")
        segment_len = batch_tokens // VIRTUAL_RANKS
        self._stream = PackedStream.open(shards, span=segment_len + 1, group_ranks=group_ranks, bos_id=bos_id)
        self._settings = {"batch_tokens": batch_tokens, "group_ranks": group_ranks, "files": _names_digest(shards)}
        self._rank, self._world_size, self._rows = rank, world_size, rows_per_micro_batch or rows
        self._bos_id, self._max_doc_len, self._max_seqlen = bos_id, max_doc_len, max_doc_len or segment_len
        self._prefetch, self._step = prefetch, 0
        self._pending: deque[Future[list[Batch]]] = deque()
        self._pool = _reading_thread()

    def next_step(self) -> list[Batch]:
        """Return this rank's micro-batches of the next step, each of (rows, T) tokens, pinned where there is CUDA.

        What went wrong in the reading thread is raised here.
        """
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._pool.submit(self._read_step, self._step + len(self._pending)))
        batches = self._pending[0].result()
        self._pending.popleft()
        self._step += 1
        return batches

    def seek(self, step: int) -> None:
        """Make `step` (0, 1, …) the next one; nothing between is read."""
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
        epoch, shard, cursor = self._stream.locate(self._step * VIRTUAL_RANKS)
        return {"step": self._step, "epoch": epoch, "shard": shard, "cursor": cursor, **self._settings}

    def restore(self, position: dict[str, Any]) -> None:
        """Go on from a `position`; UsageError if it was taken over other shards or another batch size."""
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
        rows = [self._stream.read(first + row) for row in range(self._rank, VIRTUAL_RANKS, self._world_size)]
        return [self._batch(np.stack(rows[at : at + self._rows])) for at in range(0, len(rows), self._rows)]

    def _batch(self, spans: npt.NDArray[np.int64]) -> Batch:
        tokens = torch.from_numpy(spans[:, :-1].copy())  # (B, T)
        targets = torch.from_numpy(spans[:, 1:].copy())  # (B, T)
        cu_seqlens = segment_rows(tokens, bos_id=self._bos_id, max_doc_len=self._max_doc_len, bucket=CU_BUCKET)
        if torch.cuda.is_available():  # the pinned allocator reuses its blocks, and only after their copies are done
            tokens, targets, cu_seqlens = tokens.pin_memory(), targets.pin_memory(), cu_seqlens.pin_memory()
        return Batch(tokens, targets, cu_seqlens, self._max_seqlen)


def _first_start(path: Path, tokens: Tokens, bos_id: int) -> int:
    for at in range(0, tokens.size, _SCAN_TOKENS):
        starts = np.flatnonzero(tokens[at : at + _SCAN_TOKENS] == bos_id)
        if starts.size:
            return at + int(starts[0])
    raise BadFileError(path, f"it has no document start (id {bos_id})", "run `golf data prepare` again")


def _names_digest(paths: Sequence[Path]) -> str:
    return sha256_bytes(canonical_json([[path.name, path.stat().st_size] for path in paths]).encode())


def _reading_thread() -> ThreadPoolExecutor:
    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1, "golf-loader")
    # The current device is per thread: pinning from a fresh one would open a context on GPU 0 for every rank.
    return ThreadPoolExecutor(1, "golf-loader", torch.cuda.set_device, (torch.cuda.current_device(),))
