"""A series of shards, written document by document."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from golf.data.shards import Tokens, shard_header
from golf.files import atomic_path

_LEAST_SHARE = 100  # a shard begins with at least a hundredth of the full size


class ShardWriter:
    """Writes `<stem>_000000.bin`, … of at most `shard_tokens` tokens, never cutting a document.

    The loader cannot use a shard shorter than one step, so the next shard begins only once a hundredth of it has come
    together; a shorter rest joins the last one. Two writers fed documents of equal lengths cut at the same places.
    Use as a context: its clean end finishes the last shard, an error leaves nothing of it.
    """

    def __init__(self, folder: Path, stem: str, *, shard_tokens: int) -> None:
        self.paths: list[Path] = []
        self.tokens = 0  # over all shards
        self._folder, self._stem, self._shard_tokens = folder, stem, shard_tokens
        self._stack = ExitStack()  # owns the shard being written
        self._file: BinaryIO | None = None
        self._written = 0  # tokens in it
        self._held: list[Tokens] = []  # documents that will begin the next one
        self._held_tokens = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
        elif self._file:
            self._write_held(self._file)
            self._finish(self._file)

    def append(self, document: Tokens) -> None:
        """Add one document."""
        self.tokens += document.size
        file = self._file or self._begin()
        has_room = self._written == 0 or self._written + document.size <= self._shard_tokens
        if has_room and not self._held:
            self._write(file, document)
            return
        self._held.append(document)
        self._held_tokens += document.size
        if self._held_tokens * _LEAST_SHARE >= self._shard_tokens:
            self._finish(file)
            self._write_held(self._begin())

    def _begin(self) -> BinaryIO:
        path = self._folder / f"{self._stem}_{len(self.paths):06d}.bin"
        temp = self._stack.enter_context(atomic_path(path))
        self._file = self._stack.enter_context(temp.open("wb"))
        self._file.write(shard_header(0))
        self._written = 0
        self.paths.append(path)
        return self._file

    def _write(self, file: BinaryIO, document: Tokens) -> None:
        file.write(document.astype("<u2", copy=False).data)
        self._written += document.size

    def _write_held(self, file: BinaryIO) -> None:
        for document in self._held:
            self._write(file, document)
        self._held, self._held_tokens = [], 0

    def _finish(self, file: BinaryIO) -> None:
        file.seek(0)
        file.write(shard_header(self._written))
        self._stack.close()
