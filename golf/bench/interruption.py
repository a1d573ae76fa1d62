"""Ctrl-C, SIGTERM and a hang-up end a benchmark in order: what it made is removed, and a sentence says what is lost."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from golf.errors import InterruptedRunError

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let the first of these signals raise KeyboardInterrupt within the block; nohup stays obeyed.

    Of later ones only a further Ctrl-C does: a hang-up often follows a SIGTERM, and would cut the clearing up short.
    Raises InterruptedRunError when the block has ended so.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 or number == signal.SIGINT:
            raise KeyboardInterrupt

    found = {number: signal.getsignal(number) for number in _HEEDED}
    previous = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, note)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; a benchmark has no result before its end, run it again") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
