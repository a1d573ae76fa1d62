"""Worlds of several processes of which one is lost: stopped, missing or failed."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]  # are there, under `if is_available()`

from golf.distributed import Pending, World, open_world
from golf.errors import UsageError, WorkerDiedError
from golf.peers import identity
from golf.ranks import rank_environment
from golf.side_channel import SideChannel
from tests.children import SERVER


def as_rank(rank: int, size: int, port: int, said: Path, work: str) -> None:
    """Be one of the processes of a launcher, as the body of a child; stderr goes to a file."""
    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(rank_environment(rank, size, port))
    with open_world(stopped_seconds=1.0) as world:
        BODIES[work](world, said)


def reduce_for_ever(world: World, said: Path) -> None:
    """Say so, then wait within gloo for the rank that never comes."""
    tensor = torch.ones(3)
    world.sum_(tensor)
    (said.parent / f"at-work-{world.rank}").touch()
    while world.rank != 2:
        world.sum_(tensor)
    time.sleep(600)


def miss_rank_1(world: World, said: Path) -> None:
    """All but rank 1 come; it would take the time to leave a world in order, of which nobody must hear."""
    try:
        if world.rank == 1:
            time.sleep(600)
        world.barrier(limit_seconds=0.3)
    finally:
        (said.parent / f"left-{world.rank}").touch()


def fail_on_rank_1(world: World, said: Path) -> None:
    if world.rank == 1:
        raise UsageError("rank 1 alone has a wrong setting")


BODIES = {"reduce": reduce_for_ever, "miss": miss_rank_1, "fail": fail_on_rank_1}


class Ranks:
    """Forked processes that open a world as below a launcher."""

    def __init__(self, size: int, folder: Path, work: str) -> None:
        self.store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.said = [folder / f"said-{rank}" for rank in range(size)]
        self.processes = [
            SERVER.Process(target=as_rank, args=(rank, size, self.store.port, self.said[rank], work))
            for rank in range(size)
        ]

    def __enter__(self) -> "Ranks":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def codes(self, but: int) -> list[int | None]:
        """The exit codes of all ranks but one, waited for."""
        for rank, process in enumerate(self.processes):
            if rank != but:
                process.join(60)
        return [process.exitcode for process in self.processes]


def wait_for(paths: list[Path]) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stopped_rank_ends_the_others_by_name_while_they_wait_in_a_collective(tmp_path: Path) -> None:
    with Ranks(4, tmp_path, "reduce") as ranks:
        wait_for([tmp_path / f"at-work-{rank}" for rank in range(4)])
        os.kill(ranks.processes[2].pid or 0, signal.SIGSTOP)
        started = time.monotonic()
        assert ranks.codes(but=2) == [7, 7, None, 7]
        assert time.monotonic() - started < 20
        for rank in (0, 1, 3):
            # The first to know ends, and the others miss it when they would know themselves.
            sentence = r"Error: rank 2 is stopped(, for 1 s now)?; resume the run from its last boundary\n"
            assert re.fullmatch(sentence, ranks.said[rank].read_text())


def test_a_killed_rank_ends_the_others_by_name_and_without_a_traceback(tmp_path: Path) -> None:
    with Ranks(4, tmp_path, "reduce") as ranks:
        wait_for([tmp_path / f"at-work-{rank}" for rank in range(4)])
        os.kill(ranks.processes[2].pid or 0, signal.SIGKILL)
        assert ranks.codes(but=-1) == [7, 7, -signal.SIGKILL, 7]
        sentence = r"Error: ranks? (\d, )*2(, \d)* ha(s|ve) ended; resume the run from its last boundary\n"
        for rank in (0, 1, 3):
            assert re.fullmatch(sentence, ranks.said[rank].read_text())


def test_a_rank_that_misses_another_one_leaves_its_work_in_order_and_ends_with_7(tmp_path: Path) -> None:
    with Ranks(4, tmp_path, "miss") as ranks:
        assert ranks.codes(but=1) == [7, None, 7, 7]
        assert [(tmp_path / f"left-{rank}").exists() for rank in range(4)] == [True, False, True, True]
        for rank in (0, 2, 3):
            assert ranks.said[rank].read_text().splitlines()[-1] == (
                "Error: rank 1 has not come for 0 s; resume the run from its last boundary"
            )


def test_any_other_error_is_the_ranks_own(tmp_path: Path) -> None:
    with Ranks(2, tmp_path, "fail") as ranks:
        assert ranks.codes(but=-1) == [0, 1]
        assert "UsageError: rank 1 alone has a wrong setting" in ranks.said[1].read_text()


BROKEN = RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1\nGLHF!")


class Broken:
    """A collective under way whose connection breaks."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def wait(self) -> None:
        raise self.error


def channel(process: str) -> SideChannel:
    """That of rank 0 of two, the other one being `process`."""
    return SideChannel(HashStore(), 0, 2, {1: process} if process else {})


@pytest.mark.parametrize("error", [BROKEN, dist.DistBackendError("NCCL error: remote process exited")])
def test_a_collective_that_breaks_names_the_rank_that_has_ended(error: Exception) -> None:
    pending = Pending(torch.ones(3), Broken(error), channel=channel("0 0"))  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(WorkerDiedError, match=r"^rank 1 has ended; resume the run from its last boundary$"):
        pending.wait()


def test_a_collective_that_breaks_while_nobody_is_seen_to_end_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("golf.side_channel._ENDING", 0.05)
    expected = "a collective failed ([/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1 GLHF!)"
    for process in ("", identity()):  # on another machine; still alive
        pending = Pending(torch.ones(3), Broken(BROKEN), channel=channel(process))  # type: ignore[arg-type]  # a stand-in
        with pytest.raises(WorkerDiedError) as told:
            pending.wait()
        assert str(told.value) == f"{expected}; resume the run from its last boundary"


def test_a_rank_that_is_still_leaving_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are closed before its process is gone."""
    looks = iter([False, False, True])
    monkeypatch.setattr("golf.peers.has_ended", lambda process: next(looks))
    assert str(channel("1 1").loss("a collective failed")).startswith("rank 1 has ended")


def test_a_stopped_rank_is_named_not_one_that_ended_because_it_missed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.side_channel.is_stopped", lambda process: process == "2 2")
    among = SideChannel(HashStore(), 0, 3, {1: "0 0", 2: "2 2"})
    assert str(among.loss("a collective failed")) == "rank 2 is stopped; resume the run from its last boundary"


@pytest.mark.parametrize(
    "start",
    [
        lambda world, tensor: world.sum_(tensor),
        lambda world, tensor: world.mean_(tensor),
        lambda world, tensor: world.start_scatter_mean(tensor, tensor[:1]),
        lambda world, tensor: world.gather(tensor),
    ],
)
def test_a_connection_that_is_broken_before_a_collective_starts_is_told_too(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[World, Tensor], object]
) -> None:
    def broken(*tensors: Tensor, async_op: bool) -> None:
        raise BROKEN

    for name in ("dist.all_reduce", "_reduce_scatter", "_all_gather"):
        monkeypatch.setattr(f"golf.distributed.{name}", broken)
    with pytest.raises(WorkerDiedError, match="rank 1 has ended"):
        start(World(0, 2, 0, torch.device("cpu"), channel("0 0")), torch.ones(2, 3))


def test_an_error_that_is_no_connections_stays_what_it_is() -> None:
    error = RuntimeError("tensors of different sizes")
    pending = Pending(torch.ones(3), Broken(error), channel=channel("0 0"))  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(RuntimeError) as told:
        pending.wait()
    assert told.value is error
