"""What a container may use of its machine: limits of memory and of processor time, of either version of cgroups."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


class Limits(NamedTuple):
    """None where there is no limit."""

    memory_bytes: int | None
    cores: float | None


def read_limits(membership: str, root: Path = ROOT) -> Limits:
    """Find the strictest limits of the groups that `membership`, the text of /proc/self/cgroup, names."""
    memory: list[int] = []
    cores: list[float] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for folder in _folders(root, controllers, path):
            memory += _memory(folder)
            cores += _cores(folder)
    return Limits(min(memory, default=None), min(cores, default=None))


def _folders(root: Path, controllers: str, path: str) -> Iterator[Path]:
    """Yield a group's folder and those above it, whose limits hold too; a container may see the topmost alone."""
    hierarchies = [root / name for name in controllers.split(",")] if controllers else [root, root / "unified"]
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for hierarchy in hierarchies:
        for depth in range(len(parts) + 1):
            yield hierarchy.joinpath(*parts[:depth])


def _memory(folder: Path) -> Iterator[int]:
    """Yield a group's limits: version 2 says "max" for none, version 1 a number beyond any memory."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _read(folder / name)
        if text.isdigit():
            yield int(text)


def _cores(folder: Path) -> Iterator[float]:
    """Yield a group's processor time over its period: version 2 in one file, version 1 in two, there -1 for none."""
    words = _read(folder / "cpu.max").split()
    if not words:
        words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
    if len(words) == 2 and all(word.isdigit() for word in words):
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
