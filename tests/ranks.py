"""Run one function on several ranks: processes joined by gloo through a file, forked from the warm server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from golf.distributed import World
from tests.children import SERVER

CPU = torch.device("cpu")


def run_ranks(size: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return `work(world, *args)` of every rank; plain values and numpy arrays come back, tensors must not.

    A rank that raises fails the test. One rank is a process too, so that all have one thread and compare bit by bit.
    """
    meeting = folder / f"ranks-{size}-{len(list(folder.iterdir()))}"
    started = []
    for rank in range(size):
        receiving, sending = SERVER.Pipe(duplex=False)
        child = SERVER.Process(target=_member, args=(rank, size, meeting, sending, work, args))
        child.start()
        sending.close()
        started.append((child, receiving))
    answers = [_answer(receiving) for _, receiving in started]
    for child, _ in started:
        child.join(60)
    assert [child.exitcode for child, _ in started] == size * [0]
    return answers


def _answer(receiving: Connection) -> Any:
    with receiving:
        try:
            return receiving.recv() if receiving.poll(200) else None
        except EOFError:
            return None


def _member(rank: int, size: int, meeting: Path, sending: Connection, work: Callable[..., Any], args: Any) -> None:
    with _joined(rank, size, meeting) as world:
        sending.send(work(world, *args))


@contextmanager
def _joined(rank: int, size: int, meeting: Path) -> Iterator[World]:
    torch.set_num_threads(1)
    if size == 1:
        yield World(0, 1, 0, CPU)
        return
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        yield World(rank, size, rank, CPU)
        dist.barrier()
    finally:
        dist.destroy_process_group()
