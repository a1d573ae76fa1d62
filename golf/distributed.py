"""Ranks and the few collectives golf uses. The only reader of the environment; one process is simply size 1."""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from golf.errors import UsageError

VIRTUAL_RANKS = 8  # data is laid out for this many ranks, whatever the number of processes
_TIMEOUT = datetime.timedelta(minutes=10)  # rank 0 alone packs the artifact; of a dead rank the launcher knows at once

_RENAMED = hasattr(dist, "all_gather_single")  # in PyTorch 2.13, which warns of the old names
_all_gather = dist.all_gather_single if _RENAMED else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if _RENAMED else dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` processes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

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
        if self.size > 1:
            dist.all_reduce(tensor)

    def mean_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its mean over ranks."""
        self.sum_(tensor)
        tensor.div_(self.size)

    def scatter_mean(self, stacked: Tensor) -> Tensor:
        """Mean over ranks of `stacked` (N, ...), of which each rank gets its N/size rows."""
        if self.size == 1:
            return stacked
        shard = stacked.new_empty(stacked.shape[0] // self.size, *stacked.shape[1:])
        _reduce_scatter(shard, stacked)
        return shard.div_(self.size)

    def gather(self, shard: Tensor) -> Tensor:
        """Concatenate every rank's `shard` (n, ...) along the first dimension; all shards have one shape."""
        if self.size == 1:
            return shard
        whole = shard.new_empty(shard.shape[0] * self.size, *shard.shape[1:])
        _all_gather(whole, shard.contiguous())
        return whole

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's `values` on every rank."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return [float(value) for value in tensor.tolist()]

    def agree_text(self, text: str) -> str:
        """Return rank 0's `text` on every rank."""
        return self.share_bytes(text.encode()).decode()

    def share_bytes(self, data: bytes) -> bytes:
        """Return rank 0's `data` on every rank."""
        if self.size == 1:
            return data
        (length,) = self.agree([len(data)])
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        buffer = buffer.to(self.device)
        dist.broadcast(buffer, src=0)
        return bytes(buffer.cpu().numpy())

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def check_size(size: int) -> None:
    """Raise UsageError unless the virtual ranks can be shared out equally among `size` processes."""
    if VIRTUAL_RANKS % size:
        raise UsageError(f"{size} processes: use 1, 2, 4 or 8, a divisor of the {VIRTUAL_RANKS} virtual ranks")


def single_world(device: torch.device | None = None) -> World:
    """One process on `device`, by default the first GPU or else the CPU."""
    return World(0, 1, 0, device or _device(0))


@contextlib.contextmanager
def open_world() -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield single_world()
        return
    check_size(size)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = _device(local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT, device_id=device if backend == "nccl" else None)
    try:
        yield World(dist.get_rank(), size, local_rank, device)
    finally:
        dist.destroy_process_group()


def inside_launcher() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(f"process {local_rank} has no GPU: this machine has {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
