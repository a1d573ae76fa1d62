"""The processes of the other ranks, seen from outside: have they ended, or are they stopped?

A rank that is stopped (SIGSTOP, Ctrl-Z, a memory guard) nobody reports: it just never comes, and the others wait for it
within a GPU's or a socket's call, in which a process heeds no signal. So a thread of each rank watches the others.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_LOOKS = 15  # how often in a row a process must be found stopped
_STOPPED = "T"  # "t", of a debugger, is somebody at work
_ENDED = "ZX"  # but not yet missed by its parent
_PAUSE = 0.02  # seconds between two looks whether one has ended


def identity(number: str = "self") -> str:
    """Name a process, by default this one, for all of this machine: its number and when it began; "" if it is unseen.

    A number alone is given again, and means another process in another container.
    """
    return _read(number)[0]


def is_stopped(process: str) -> bool:
    """Whether the process of that identity is there and stopped."""
    return _read(process.partition(" ")[0]) == (process, _STOPPED) if process else False


def has_ended(process: str) -> bool:
    """Whether the process of that identity, which was seen once, is no more; of "" nothing is known."""
    if not process:
        return False
    found, state = _read(process.partition(" ")[0])
    return found != process or state in _ENDED


def await_end(peers: Mapping[int, str], *, seconds: float) -> list[int]:
    """Return the ranks of the processes of `peers` that have ended, once one has, or none after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        ended = [rank for rank, process in peers.items() if has_ended(process)]
        if ended or not peers or time.monotonic() > deadline:
            return ended
        time.sleep(_PAUSE)


@contextlib.contextmanager
def watched(peers: Mapping[int, str], tell: Callable[[int], None], *, seconds: float) -> Iterator[None]:
    """Within the block, call `tell(rank)`, from a thread, once a process of `peers` was stopped for `seconds`."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(peers, tell, seconds / _LOOKS, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(peers: Mapping[int, str], tell: Callable[[int], None], interval: float, over: threading.Event) -> None:
    """Count looks, not time: who was stopped itself, together with a peer, must not blame it when both go on."""
    looks = dict.fromkeys(peers, 0)
    while not over.wait(interval):
        for rank, process in peers.items():
            looks[rank] = looks[rank] + 1 if is_stopped(process) else 0
            if looks[rank] == _LOOKS:
                tell(rank)


def _read(number: str) -> tuple[str, str]:
    """Return identity and state letter of a process; empty if there is none, or no /proc."""
    try:
        stat = (Path("/proc") / number / "stat").read_text()
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return f"{stat.partition(' ')[0]} {fields[19]}", fields[0]
