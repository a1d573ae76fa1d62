"""The machine around the GPUs: memory, processor cores and threads, shared memory, open files, text encoding, clock."""

import locale
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path

from golf.doctor.cgroup import MEMBERSHIP, Limits, read_limits
from golf.doctor.check import Check, attempt, guarded, in_gib

_CORES_PER_GPU = 2  # one drives the GPU, one reads data and writes checkpoints
_RANK_BYTES = 4 * 2**30  # of a process with CUDA, NCCL and a compiler beside it; an estimate
_SMALL_RUN_BYTES = 2**30  # golf demo takes 742 MiB
_GATHERED = 2  # checkpoints in memory: one being written, one being gathered
_SHARED_BYTES = 2**30  # NCCL's documentation asks for --shm-size=1g; containers begin with 64 MB
_OPEN_FILES = 1024  # a mapped shard is one, and a data set may have over a hundred
_TICK_SECONDS = 1e-6
_MEMORY_TABLE = Path("/proc/meminfo")
_SHARED_MEMORY = Path("/dev/shm")


def examine_host(*, gpus: int, checkpoint_bytes: int) -> list[Check]:
    """Check what `gpus` processes, of which the first gathers checkpoints of so many bytes, need around them."""
    limits, unread = attempt("container limits", _limits)
    memory_limit, quota = limits or Limits(None, None)
    return [
        *unread,
        *guarded("memory", lambda: _examine_memory(memory_limit, gpus, checkpoint_bytes)),
        *guarded("cpu cores", lambda: check_cores(_allowed_cores(), quota, gpus=gpus)),
        *guarded("cpu threads", lambda: _examine_threads(quota, gpus)),
        *guarded("shared memory", lambda: check_shared_memory(_shared_memory(), gpus=gpus)),
        *guarded("open files", lambda: check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
        *guarded("text encoding", lambda: check_encoding(locale.getencoding(), sys.stdout.encoding)),
        *guarded("clock", lambda: check_clock(time.get_clock_info("perf_counter").resolution)),
    ]


def check_memory(available: int, total: int, *, gpus: int, checkpoint_bytes: int) -> Check:
    """Compare bytes of memory with an estimate of a run's need; never a failure, some machines grow as it is used."""
    needed = gpus * _RANK_BYTES + _GATHERED * checkpoint_bytes if gpus else _SMALL_RUN_BYTES
    value = f"{in_gib(available)} of {in_gib(total)} available"
    if available < needed:
        remedy = f"choose a machine with more, a run takes about {in_gib(needed)}"
        return Check("memory", "warn", value, remedy)
    return Check("memory", "ok", value)


def check_cores(allowed: int, quota: float | None, *, gpus: int) -> Check:
    """Compare the cores that this process may run on, and its group's share of time, with two a GPU."""
    cores, needed = min(float(allowed), quota or float(allowed)), _CORES_PER_GPU * gpus
    value = f"{cores:g}" if quota is None else f"{cores:g}, {allowed} allowed and a time limit of {quota:g}"
    if cores < needed:
        return Check("cpu cores", "warn", value, f"choose a machine with {needed} or more, {_CORES_PER_GPU} a GPU")
    return Check("cpu cores", "ok", value)


def check_threads(wanted: str | None, share: int, cores: float, *, gpus: int) -> Check:
    """Compare the CPU threads of a rank with the cores that it has: with more, ranks slow each other down.

    `wanted` is OMP_NUM_THREADS, `share` what golf's launcher gives to each of several ranks where it is not set.
    """
    most = max(1, int(cores) // max(1, gpus))
    name, value = "cpu threads", f"OMP_NUM_THREADS is {'not set' if wanted is None else wanted}"
    if wanted is None and gpus < 2:
        return Check(name, "ok", value)
    if wanted is None:
        value += f", golf's launcher gives {share} to a rank"
    threads = str(share) if wanted is None else wanted.split(",")[0].strip()  # further ones are for nested regions
    if not threads.isdecimal():
        return Check(name, "warn", f"{value}, which is no number", "unset OMP_NUM_THREADS")
    if int(threads) > most:
        return Check(name, "warn", f"{value}, more than the cores a rank has", f"set OMP_NUM_THREADS to {most}")
    return Check(name, "ok", value)


def check_shared_memory(size: int | None, *, gpus: int) -> Check:
    """Check that NCCL has room to exchange in; alone a GPU exchanges nothing."""
    value = "no /dev/shm" if size is None else in_gib(size)
    if gpus > 1 and (size is None or size < _SHARED_BYTES):
        return Check("shared memory", "warn", value, "start the container with --shm-size=1g or more, for NCCL")
    return Check("shared memory", "ok", value)


def check_open_files(limit: int) -> Check:
    """Check the number of files that a process may have open."""
    value = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}"
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        return Check("open files", "warn", value, f"run ulimit -n {_OPEN_FILES} first")
    return Check("open files", "ok", value)


def check_encoding(files: str, terminal: str | None) -> Check:
    """Check that text files and the terminal take every sign that golf writes."""
    found = {re.sub("[-_]", "", name.lower()) for name in (files, terminal or "utf-8")}
    value = files if terminal is None else f"files {files}, terminal {terminal}"
    if found != {"utf8"}:
        return Check("text encoding", "warn", value, "set LC_ALL=C.UTF-8")
    return Check("text encoding", "ok", value)


def check_clock(resolution: float) -> Check:
    """Check that the clock that training is timed by has a `resolution` (s) below a microsecond."""
    value = f"resolution {resolution * 1e9:g} ns"
    if resolution >= _TICK_SECONDS:
        return Check("clock", "warn", value, "choose another host, times of single steps would be rounded")
    return Check("clock", "ok", value)


def parse_memory(text: str) -> tuple[int, int]:
    """Return the bytes of memory, all and available, that /proc/meminfo tells of in kB."""
    kilobytes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    return int(kilobytes["MemTotal"]) * 1024, int(kilobytes["MemAvailable"]) * 1024


def _limits() -> Limits:
    return read_limits(MEMBERSHIP.read_text(encoding="utf-8")) if MEMBERSHIP.exists() else Limits(None, None)


def _examine_memory(limit: int | None, gpus: int, checkpoint_bytes: int) -> Check:
    total, available = _memory()
    ceiling = total if limit is None else limit
    return check_memory(min(available, ceiling), min(total, ceiling), gpus=gpus, checkpoint_bytes=checkpoint_bytes)


def _examine_threads(quota: float | None, gpus: int) -> Check:
    from golf.ranks import share_of_cores, threads_wanted  # imports torch, whose threads they are

    allowed = _allowed_cores()
    cores = min(float(allowed), quota or float(allowed))
    return check_threads(threads_wanted(), share_of_cores(max(1, gpus)), cores, gpus=gpus)


def _memory() -> tuple[int, int]:
    if _MEMORY_TABLE.exists():
        return parse_memory(_MEMORY_TABLE.read_text(encoding="ascii"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS: what of it is free is not told
    return total, total


def _shared_memory() -> int | None:
    return shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else None


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
