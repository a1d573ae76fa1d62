"""Run one function on several ranks: processes that meet at a file, forked from the warm server."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]  # is there, under `if is_available()`

from golf.distributed import World, joined
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
    torch.set_num_threads(1)
    if size == 1:
        sending.send(work(World(0, 1, 0, CPU), *args))
        return
    with joined(FileStore(str(meeting), size), rank, size, rank, CPU) as world:
        sending.send(work(world, *args))
        world.barrier()  # nobody leaves while another one is in a collective
