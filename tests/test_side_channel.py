"""Words between ranks: rank 0's arrives everywhere, and whoever does not come is named."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]  # are there, under `if is_available()`
from torch.distributed.distributed_c10d import Store

from golf import side_channel
from golf.errors import WorkerDiedError
from golf.peers import identity
from golf.side_channel import SideChannel

LIMIT = 60.0  # never reached
BINARY = bytes(range(256)) + b"\0 1 \xff"


def channels(size: int, processes: Mapping[int, str] | None = None) -> list[SideChannel]:
    store = HashStore()
    return [SideChannel(store, rank, size, processes or {}) for rank in range(size)]


def at_once(*works: Callable[[], bytes]) -> list["Future[bytes]"]:
    """Run every function in a thread of its own, to its end."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [pool.submit(work) for work in works]


def shared(ends: list[SideChannel], data: bytes, limit: float = LIMIT) -> list["Future[bytes]"]:
    """What a round gives on every rank that takes part; others than rank 0 have a word of their own."""

    def work(end: SideChannel) -> Callable[[], bytes]:
        return lambda: end.share(b"not this" if end.rank else data, limit_seconds=limit)

    return at_once(*[work(end) for end in ends])


def said(future: "Future[bytes]") -> str:
    """The sentence of the WorkerDiedError that a round ended with."""
    error = future.exception()
    assert isinstance(error, WorkerDiedError)
    return str(error)


@pytest.mark.parametrize("data", [b"", b"0 ", BINARY], ids=["empty", "like a count", "binary"])
def test_every_rank_gets_rank_0s_word(data: bytes) -> None:
    assert [future.result() for future in shared(channels(3), data)] == 3 * [data]


def test_a_long_word_arrives_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_channel, "_PIECE", 7)
    assert [future.result() for future in shared(channels(3), BINARY)] == 3 * [BINARY]


def test_a_word_longer_than_the_store_takes_at_once_arrives() -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ends = [SideChannel(TCPStore("localhost", store.port, is_master=False), rank, 2, {}) for rank in range(2)]
    data = BINARY * (9 * 2**20 // len(BINARY))
    assert [future.result() == data for future in shared(ends, data)] == [True, True]


def test_rounds_are_not_mistaken_for_each_other() -> None:
    ends = channels(3)
    for number in range(5):
        assert [future.result() for future in shared(ends, b"%d" % number)] == 3 * [b"%d" % number]


def test_rank_0_goes_on_only_when_all_have_come() -> None:
    ends, came = channels(3), []

    def late() -> bytes:
        time.sleep(0.2)
        came.append(2)
        return ends[2].share(b"", limit_seconds=LIMIT)

    def first() -> bytes:
        ends[0].share(b"x", limit_seconds=LIMIT)
        return bytes(came)

    assert at_once(first, late, lambda: ends[1].share(b"", limit_seconds=LIMIT))[0].result() == b"\2"


def test_the_store_does_not_grow_with_the_rounds() -> None:
    ends = channels(3)
    counts = []
    for _ in range(4):
        shared(ends, BINARY)
        counts.append(ends[0].store.num_keys())
    assert counts == 4 * [1]


def test_a_rank_that_does_not_come_is_named_on_all_others() -> None:
    ends = channels(4)
    sentence = "rank 2 has not come for 0 s; resume the run from its last boundary"
    assert [said(future) for future in shared([ends[0], ends[1], ends[3]], b"x", 0.1)] == 3 * [sentence]


def test_all_ranks_that_do_not_come_are_named() -> None:
    ends = channels(4)
    assert "ranks 1, 3 have not come" in said(shared([ends[0], ends[2]], b"x", 0.1)[0])


def test_rank_0_too_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_channel, "_MARGIN", 0.1)
    ends = channels(3)
    for future in shared(ends[1:], b"x", 0.1):
        assert "rank 0 has not come" in said(future)


def test_rank_0_is_waited_for_longer_than_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the others would blame it before it has said whom it misses."""
    monkeypatch.setattr(side_channel, "_MARGIN", 30.0)
    ends = channels(3)

    def first() -> bytes:
        time.sleep(0.3)
        return ends[0].share(b"x", limit_seconds=0.1)

    futures = at_once(first, lambda: ends[1].share(b"", limit_seconds=0.1))
    assert ["rank 2 has not come" in said(future) for future in futures] == [True, True]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_whose_process_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    monkeypatch.setattr(side_channel, "_LOOK_ROUND", 0.1)
    with subprocess.Popen(["sleep", "60"]) as process:
        known = identity(str(process.pid))
        process.kill()
    ends = channels(2, {lost: known, 1 - lost: identity()})
    (future,) = shared([ends[1 - lost]], b"x")
    assert said(future) == f"rank {lost} has ended; resume the run from its last boundary"


def test_a_rank_that_spoke_before_it_ended_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is seen between two looks into the store."""
    ends = channels(2, {0: "an ended process"})

    def has_ended(process: str) -> bool:
        if not ends[0].said:
            ends[0].share(b"farewell", limit_seconds=LIMIT)
        return True

    monkeypatch.setattr(side_channel, "_LOOK_ROUND", 0.0)
    monkeypatch.setattr(side_channel, "has_ended", has_ended)
    assert ends[1].share(b"", limit_seconds=LIMIT) == b"farewell"


def test_a_store_that_is_gone_ends_the_waiting() -> None:
    program = (
        "import sys\nfrom torch.distributed import TCPStore\n"
        "store = TCPStore('localhost', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        store: Store = TCPStore(
            "localhost", int(process.stdout.readline()), is_master=False, timeout=timedelta(seconds=9)
        )
        end = SideChannel(store, 1, 2, {})
        process.kill()
        process.wait()
        with pytest.raises(WorkerDiedError, match="the process that started this rank no longer answers"):
            end.share(b"", limit_seconds=LIMIT)


class Clock:
    """Time in which nothing but sleeping takes any."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_the_store_is_asked_at_once_and_then_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(side_channel, "time", clock)
    with pytest.raises(WorkerDiedError):
        channels(2)[0].share(b"x", limit_seconds=99.0)
    assert 99.0 < clock.now < 99.2
    assert (clock.pauses[0], clock.pauses[-1]) == (0.0002, 0.1)
    assert clock.pauses == sorted(clock.pauses)
    assert len(clock.pauses) < 1500


class PressedError(Exception):
    """What a signal's handler raises."""


def test_a_signal_is_heeded_while_a_rank_waits() -> None:
    def press(number: int, frame: object) -> None:
        raise PressedError

    previous = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(PressedError):
            channels(2)[0].share(b"x", limit_seconds=LIMIT)
    finally:
        signal.signal(signal.SIGALRM, previous)
