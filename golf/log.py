"""What a run says: lines for the person at the console, one JSON line per event for every later reader.

A `Log` is passed to whoever speaks. It is silent on every rank but 0. The console is stderr (stdout is for results):
rich on a terminal, plain lines elsewhere. Events go to a file that is only ever appended to, one write per line, so a
kill can tear at most its last line; opening the file again cuts such a line off, and `read_events` passes over it.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from golf.errors import BadFileError, EnvironmentUnfitError, NumericalFaultError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Log:
    """The voice of one process. Without a path nothing is recorded; on a rank other than 0 nothing is said at all."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        rank: int = 0,
        stream: TextIO | None = None,
        progress_seconds: float = 5.0,
    ) -> None:
        self.path = path if rank == 0 else None
        self.progress_seconds = progress_seconds  # between two lines of progress where there is no terminal
        self._stream = (stream or sys.stderr) if rank == 0 else None
        self._rich = Console(file=self._stream) if self._stream is not None and self._stream.isatty() else None
        self._handle: int | None = None

    def event(self, name: str, /, **values: Any) -> None:
        """Append one line {"event": name, "time": unix seconds, **values}; it is with the system when this returns.

        Values are what JSON holds. A NaN or an infinity raises NumericalFaultError: it is trouble, never a
        placeholder; a metric that is absent is left out. Raises ResourceError when the disk is full.
        """
        if self.path is None:
            return
        if taken := {"event", "time"} & values.keys():
            raise ValueError(f"an event may not carry a value called {taken.pop()!r}: the line has its own")
        line = _line({"event": name, "time": round(time.time(), 3), **values})
        if self._handle is None:
            self._handle = _open_for_append(self.path)
        _append(self._handle, line, self.path)

    def note(self, text: str) -> None:
        """Say one line on the console; nothing is recorded."""
        if self._rich is not None:
            self._rich.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except BrokenPipeError:  # whoever listened has gone: no reason to lose a run
                self._stream = None

    @contextlib.contextmanager
    def progress(self, total: int, label: str) -> "Iterator[Progress]":
        """Show how far a piece of work has come, as a bar on a terminal and as a line now and then elsewhere."""
        if self._rich is None:
            yield Progress(self, total, label)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self._rich) as bar:
            yield Progress(self, total, label, bar)

    def close(self) -> None:
        """Close the event file; a later event opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Progress:
    """How far a piece of work has come; made by Log.progress."""

    def __init__(self, log: Log, total: int, label: str, bar: RichProgress | None = None) -> None:
        self.done, self.total, self.label = 0, total, label
        self._log, self._bar = log, bar
        self._task = bar.add_task(label, total=total) if bar is not None else None
        self._start = self._said = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self.done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if now - self._said >= self._log.progress_seconds:
            self._said = now
            remaining = (now - self._start) * (self.total - self.done) / max(self.done, 1)
            self._log.note(f"{self.label}: {self.done}/{self.total}, {remaining:.0f} s left")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a log, in order. A torn last line is passed over; any other bad line is a BadFileError."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", "check the path") from None
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise BadFileError(path, f"line {number} is not an event", "remove that line")
        events.append(event)
    return events


def series(events: Iterable[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Return `key` by step, in order, of the events that carry both.

    Of a step logged twice, as after a resume, the later event counts.
    """
    return dict(sorted({event["step"]: event[key] for event in events if "step" in event and key in event}.items()))


def _line(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        wrong = [f"{key} = {value!r}" for key, value in values.items() if not _is_json(value)]
        text = f"event '{values['event']}': {', '.join(wrong)} is not a finite number"
        raise NumericalFaultError(text) from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _open_for_append(path: Path) -> int:
    """Open an event file, cutting off the torn line that a kill may have left at its end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(handle, whole)
    except OSError as error:
        reason = f"{path}: events cannot be written here ({error.strerror}); choose another folder"
        raise EnvironmentUnfitError(reason) from error
    return handle


def _append(handle: int, line: bytes, path: Path) -> None:
    try:
        written = os.write(handle, line)  # one call a line: a short count means that the disk filled up in the middle
    except OSError as error:
        if error.errno not in _FULL:
            raise EnvironmentUnfitError(f"{path}: cannot be appended to ({error.strerror})") from error
        written = 0
    if written < len(line):
        os.truncate(handle, os.fstat(handle).st_size - written)
        raise ResourceError(f"{path}: no space left for the event log; free some space and resume the run")
