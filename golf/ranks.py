"""What ranks are told through the environment, of which this is the only reader, and how they share out the work.

Nothing here needs torch, so golf's launcher can start its ranks before it imports anything that takes seconds.
"""

import os

from golf.errors import UsageError

VIRTUAL_RANKS = 8  # data is laid out for this many ranks, whatever the number of processes

_THREADS = "OMP_NUM_THREADS"
_KEPT_KERNELS = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1"  # else each process compiles FlashAttention-4's anew


def check_size(size: int) -> None:
    """Raise UsageError unless the virtual ranks can be shared out equally among `size` processes."""
    if VIRTUAL_RANKS % size:
        raise UsageError(f"{size} processes: use 1, 2, 4 or 8, a divisor of the {VIRTUAL_RANKS} virtual ranks")


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment of one of `size` processes of this machine, whose store is at `port`, as torchrun's is."""
    settings = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is there, no rank makes it
        "TORCHELASTIC_RESTART_COUNT": 0,
    }
    defaults = {
        _THREADS: str(share_of_cores(size)),  # ranks that take all cores each crawl
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # when a rank is lost, the others say so; torch's warnings would bury it
    }
    return defaults | os.environ | {key: str(value) for key, value in settings.items()}


def share_of_cores(size: int) -> int:
    """Return how many CPU threads each of `size` ranks gets from golf's launcher, unless OMP_NUM_THREADS is set."""
    return max(1, _cores() // size)


def threads_wanted() -> str | None:
    """Return OMP_NUM_THREADS, what the user wants of CPU threads in every process; None if it is not set."""
    return os.environ.get(_THREADS)


def world_size() -> int:
    """Return how many processes golf's launcher or torchrun started; 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_rank() -> int:
    """Return the number of this process among all; 0 for one alone, and for the launcher itself."""
    return int(os.environ.get("RANK", "0"))


def own_local_rank() -> int:
    """Return the number of this process among those of its machine. Raises KeyError if it is alone."""
    return int(os.environ["LOCAL_RANK"])


def keep_compiled_kernels() -> None:
    """Let what FlashAttention-4 compiles stay on disk, unless the user has said otherwise."""
    os.environ.setdefault(*_KEPT_KERNELS)


def inside_launcher() -> bool:
    """Whether golf's launcher or torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
