"""Start one command on several processes of this machine, as torchrun does, and report how they ended.

The launcher keeps the store at which the ranks meet, so that the rest can still say who is missing when one is lost.
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from golf.errors import GolfError, InterruptedRunError, WorkerDiedError
from golf.peers import identity, is_stopped
from golf.ranks import check_size, rank_environment

GRACE_SECONDS = 15.0  # from SIGTERM to SIGKILL for the ranks that are left when one has failed
SAVING_SECONDS = 300.0  # from Ctrl-C to SIGKILL: the run is being saved

_LOOK = 0.05  # seconds between two looks
_TOLD = {1, 2, 3, 4, 5, 6, 7, 130}  # exit codes whose sentence the rank has already printed
_INTERRUPTED = {0, InterruptedRunError.exit_code, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP}
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Process = subprocess.Popen[bytes]


class RankFailedError(GolfError):
    """A rank ended with a documented exit code of its own."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"rank {rank} failed with exit code {exit_code}; its message is above")
        self.exit_code = exit_code


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `golf ARGUMENTS` in `processes` processes that see each other; wait for them.

    Raises UsageError for a number that cannot share the virtual ranks, and what `run_together` does.
    """
    check_size(processes)
    run_together([sys.executable, "-m", "golf", *arguments], processes)


def run_together(command: Sequence[str], processes: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """Run `command` in `processes` processes; the first that fails ends them all, in little more than `grace_seconds`.

    Raises what `blame` returns. Ctrl-C, SIGTERM and a hang-up are sent on to every rank, which then saves its work.
    """
    ranks: list[Process] = []
    with socket.create_server(("localhost", 0)) as door, _received() as received:
        try:
            for rank in range(processes):
                environment = rank_environment(rank, processes, door.getsockname()[1])
                ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            with _store_behind(door):
                codes = _wait(ranks, received)
            stopped = [rank for rank, process in enumerate(ranks) if _is_stopped(process)]
        finally:
            _end(ranks, grace_seconds)
    error = blame(codes, stopped=stopped, interrupted=bool(received))
    if error is not None:
        raise error


@contextlib.contextmanager
def _store_behind(door: socket.socket) -> Iterator[None]:
    """Keep the store at which the ranks meet for as long as the block lasts; some may be waiting at the `door` already.

    Importing torch takes seconds, in which the ranks do the same.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # is there, under `if is_available()`

    port = door.getsockname()[1]
    listening = os.dup(door.fileno())  # which the store closes
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False, master_listen_fd=listening)
    yield
    del store


def blame(codes: Mapping[int, int], *, stopped: Sequence[int] = (), interrupted: bool = False) -> GolfError | None:
    """Return what to tell of ranks that ended with these exit codes, in this order; None if all is well.

    RankFailedError with the exit code of the rank that failed first, WorkerDiedError naming the rank that a signal
    ended or, of those that are `stopped`, the one that the others missed, InterruptedRunError after Ctrl-C.
    """
    if interrupted and 0 not in codes:
        return InterruptedRunError(f"interrupted; rank 0 had not saved the run after {SAVING_SECONDS:.0f} s")
    failures = {rank: code for rank, code in codes.items() if code}
    if not failures:
        return None
    if interrupted and codes[0] in _INTERRUPTED:
        return InterruptedRunError("interrupted; rank 0 has said how to go on, on stderr")
    rank, code = min(failures.items(), key=lambda item: _suspicion(item[1]))
    if code == WorkerDiedError.exit_code and stopped:
        return WorkerDiedError(f"rank {stopped[0]} is stopped; resume the run from its last boundary")
    if code in _TOLD:
        return RankFailedError(rank, code)
    cause = f"signal {-code}" if code < 0 else f"exit code {code}"
    return WorkerDiedError(f"rank {rank} died ({cause}); resume the run from its last boundary")


def _suspicion(code: int) -> int:
    """Rank exit codes by how surely theirs was the first failure, not a consequence."""
    if code == -signal.SIGTERM:
        return 3  # how the survivors are ended
    if code == WorkerDiedError.exit_code:
        return 2  # a rank that missed another one
    return 1 if code == 1 else 0  # a rank that lost its peer ends with a traceback


def _wait(ranks: Sequence[Process], received: Sequence[int]) -> dict[int, int]:
    """Send on the signals `received` until all ranks have ended or one has failed; return exit codes as they came."""
    codes: dict[int, int] = {}
    sent, deadline = 0, math.inf
    while len(codes) < len(ranks) and time.monotonic() < deadline:
        time.sleep(_LOOK)
        for number in received[sent:]:
            _send(ranks, number)
            sent, deadline = sent + 1, time.monotonic() + SAVING_SECONDS
        _note(codes, ranks)
        if any(codes.values()) and not received:
            _note(codes, ranks)  # one that the last look missed may be the cause of this failure
            break
    return codes


def _note(codes: dict[int, int], ranks: Sequence[Process]) -> None:
    for rank, process in enumerate(ranks):
        code = process.poll()
        if rank not in codes and code is not None:
            codes[rank] = code


def _end(ranks: Sequence[Process], grace_seconds: float) -> None:
    """End the ranks that are left; one that waits in a GPU's call heeds SIGKILL alone, a stopped one as well."""
    _send(ranks, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(process.poll() is None and not _is_stopped(process) for process in ranks):
        time.sleep(_LOOK)
    _send(ranks, signal.SIGKILL)
    for process in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel itself may be stuck in a driver
            process.wait(grace_seconds)


def _is_stopped(process: Process) -> bool:
    return is_stopped(identity(str(process.pid)))


def _send(ranks: Sequence[Process], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            os.killpg(process.pid, number)  # each leads a session of its own, its helpers included


@contextlib.contextmanager
def _received() -> Iterator[list[int]]:
    """Collect the signals to be sent on; one that is ignored stays ignored, as nohup wants it."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in _FORWARDED}
    heeded = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number in heeded:
            signal.signal(number, previous[number])
