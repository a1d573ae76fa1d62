"""Ranks and the few collectives golf uses; one process is simply size 1.

What hosts tell each other goes through the side channel and never touches a GPU. Tensors go through NCCL, or gloo
where there is no GPU.
"""

import contextlib
import datetime
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from golf.errors import UsageError, WorkerDiedError
from golf.peers import has_ended, identity, watched
from golf.ranks import check_size, keep_compiled_kernels, own_local_rank, world_size
from golf.side_channel import SideChannel

STEP_SECONDS = 40.0  # for how long a rank may keep the others waiting between two training steps
PHASE_SECONDS = 3600.0  # and in a phase in which rank 0 alone works for minutes, packing the artifact say
STOPPED_SECONDS = 15.0  # for how long a rank's process may be stopped

_TIMEOUT = datetime.timedelta(minutes=10)  # of one collective: ranks may have compiled for minutes before they meet

_RENAMED = hasattr(dist, "all_gather_single")  # in PyTorch 2.13, which warns of the old names
_all_gather = dist.all_gather_single if _RENAMED else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if _RENAMED else dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class Pending:
    """A collective under way."""

    result: Tensor
    work: dist.Work | None = None  # None: it needed none
    divisor: int = 1
    channel: SideChannel | None = None  # to the other processes, of which one may be lost meanwhile

    def wait(self) -> Tensor:
        """Return the result, to be called once; on a GPU it is the stream that waits for it, not the host.

        Raises WorkerDiedError, naming the ranks that have ended, when the connection to one broke.
        """
        if self.work is not None:
            with _telling_loss(self.channel):
                self.work.wait()
        return self.result.div_(self.divisor) if self.divisor > 1 else self.result


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` processes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    channel: SideChannel | None = None  # to the other processes

    @property
    def is_main(self) -> bool:
        """Whether this process decides, logs and writes."""
        return self.rank == 0

    def limit_threads(self, count: int) -> None:
        """Compute with `count` threads where there is no GPU; 0 leaves PyTorch its choice."""
        if count and self.device.type == "cpu":
            torch.set_num_threads(count)

    def sum_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over ranks."""
        self.start_sum_(tensor).wait()

    def mean_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its mean over ranks."""
        self.start_mean_(tensor).wait()

    def start_sum_(self, tensor: Tensor) -> Pending:
        """Start to replace `tensor` by its sum over ranks; this and every start raise as `Pending.wait` does."""
        if self.size == 1:
            return Pending(tensor)
        with _telling_loss(self.channel):
            return Pending(tensor, dist.all_reduce(tensor, async_op=True), channel=self.channel)

    def start_mean_(self, tensor: Tensor) -> Pending:
        """Start to replace `tensor` by its mean over ranks."""
        return replace(self.start_sum_(tensor), divisor=self.size)

    def start_scatter_mean(self, stacked: Tensor, shard: Tensor) -> Pending:
        """Start the mean over ranks of `stacked` (N, ...); each rank gets its N/size rows, in `shard`.

        A process alone gets `stacked` itself.
        """
        if self.size == 1:
            return Pending(stacked)
        with _telling_loss(self.channel):
            return Pending(shard, _reduce_scatter(shard, stacked, async_op=True), self.size, self.channel)

    def gather(self, shard: Tensor) -> Tensor:
        """Concatenate every rank's `shard` (n, ...) along the first dimension; all shards have one shape."""
        return self.start_gather(shard, shard.new_empty(shard.shape[0] * self.size, *shard.shape[1:])).wait()

    def start_gather(self, shard: Tensor, whole: Tensor) -> Pending:
        """Start to concatenate every rank's `shard` (n, ...) in `whole` (size n, ...).

        A process alone gets `shard` itself.
        """
        if self.size == 1:
            return Pending(shard)
        with _telling_loss(self.channel):
            return Pending(whole, _all_gather(whole, shard.contiguous(), async_op=True), channel=self.channel)

    def agree(self, values: Sequence[float], *, limit_seconds: float = PHASE_SECONDS) -> list[float]:
        """Return rank 0's `values` on every rank, once all have come; the GPU is not waited for.

        Raises WorkerDiedError naming the ranks that have not come after `limit_seconds`.
        """
        data = self._share(struct.pack(f"<{len(values)}d", *values), limit_seconds)
        return [*struct.unpack(f"<{len(data) // 8}d", data)]

    def agree_text(self, text: str) -> str:
        """Return rank 0's `text` on every rank."""
        return self.share_bytes(text.encode()).decode()

    def share_bytes(self, data: bytes, *, limit_seconds: float = PHASE_SECONDS) -> bytes:
        """Return rank 0's `data` on every rank; raises as `agree` does."""
        return self._share(data, limit_seconds)

    def barrier(self, *, limit_seconds: float = PHASE_SECONDS) -> None:
        """Wait for every rank's host, not for its GPU; raises as `agree` does."""
        self._share(b"", limit_seconds)

    def synchronize(self) -> None:
        """Wait until everything that was queued on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _share(self, data: bytes, limit_seconds: float) -> bytes:
        if self.size == 1:
            return data
        assert self.channel is not None
        return self.channel.share(data, limit_seconds=limit_seconds)


def single_world(device: torch.device | None = None) -> World:
    """One process on `device`, by default the first GPU or else the CPU."""
    return World(0, 1, 0, device or _device(0))


@contextlib.contextmanager
def open_world(*, stopped_seconds: float = STOPPED_SECONDS) -> Iterator[World]:
    """Join the processes that golf's launcher or torchrun started (NCCL on GPUs, gloo on CPUs), or be alone.

    When a process of another rank was stopped for `stopped_seconds`, this one says so and ends with exit code 7,
    whatever it is waiting for.
    """
    keep_compiled_kernels()
    size = world_size()
    if size == 1:
        yield single_world()
        return
    check_size(size)
    local_rank = own_local_rank()
    device = _device(local_rank)
    store, rank, _ = next(rendezvous("env://", timeout=_TIMEOUT))
    with joined(store, rank, size, local_rank, device, stopped_seconds=stopped_seconds) as world:
        yield world


@contextlib.contextmanager
def joined(
    store: Store,
    rank: int,
    size: int,
    local_rank: int,
    device: torch.device,
    *,
    stopped_seconds: float = STOPPED_SECONDS,
) -> Iterator[World]:
    """Be rank `rank` of `size` processes that meet at `store`, as `open_world` says.

    A WorkerDiedError within the block ends this process, with its exit code, after the block is left.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    on = device if backend == "nccl" else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT, device_id=on)
    own = PrefixStore("golf", store)
    processes = _processes(own, rank, size)

    def end(peer: int) -> None:
        _end(f"rank {peer} is stopped, for {stopped_seconds:.0f} s now; resume the run from its last boundary")

    is_orderly = False
    try:
        with watched(processes, end, seconds=stopped_seconds):
            yield World(rank, size, local_rank, device, SideChannel(own, rank, size, processes))
        is_orderly = True
    except WorkerDiedError as error:
        _end(str(error))  # to leave in order would be to wait for the lost rank
    finally:
        if is_orderly or backend == "gloo":  # NCCL's end waits for what is queued, which may be for ever
            dist.destroy_process_group()


@contextlib.contextmanager
def _telling_loss(channel: SideChannel | None) -> Iterator[None]:
    """Turn what a collective raises when a connection breaks into a WorkerDiedError; any other error is a bug's."""
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own, but says in which of its files it happened
        if channel is None or not (isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error)):
            raise
        raise channel.loss(f"a collective failed ({' '.join(str(error).split())})") from error


def _processes(store: Store, rank: int, size: int) -> dict[int, str]:
    """Tell the other ranks which process this is; return those of theirs that can be seen from here."""
    store.set(f"process/{rank}", identity())
    told = {peer: store.get(f"process/{peer}").decode() for peer in range(size) if peer != rank}
    return {peer: process for peer, process in told.items() if process and not has_ended(process)}


def _end(sentence: str) -> NoReturn:
    """Say `sentence` and end this process at once, from any thread: its main thread may be waiting for ever."""
    os.write(2, f"Error: {sentence}\n".encode())
    os._exit(WorkerDiedError.exit_code)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(f"process {local_rank} has no GPU: this machine has {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
