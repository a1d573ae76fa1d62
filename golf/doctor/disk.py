"""The disk that checkpoints go to: room, speed and kind."""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from golf.doctor.check import Check, guarded, in_gib
from golf.doctor.footprint import Footprint
from golf.doctor.mounts import Mount, existing, mount_of, obstacle

_PROBE_BYTES = 256 * 2**20
_PROBE_SECONDS = 5.0  # a slower disk is told by fewer bytes
_BLOCK_BYTES = 32 * 2**20
_WRITING_SHARE = 0.1  # of the training time, for all checkpoints; the next one has to wait for the one being written


def examine_disk(root: Path, mounts: Sequence[Mount], needed: Footprint) -> list[Check]:
    """Check the disk below `root`, which need not exist yet. Writes and removes a nameless file of 256 MiB.

    Where no folder can be made, that is the only finding: the disk above it is not the one to be used.
    """
    blocking = obstacle(root)
    if blocking is not None:
        return [Check("disk", "fail", f"{blocking} is no folder", "name a folder with --root")]
    folder = existing(root)
    return [
        check_kind(folder, mount_of(folder, mounts)),
        *guarded("disk space", lambda: check_space(shutil.disk_usage(folder).free, needed)),
        *guarded("disk speed", lambda: _examine_speed(folder, needed)),
    ]


def check_kind(folder: Path, mount: Mount | None) -> Check:
    """Check that what is written to `folder` is on a disk of this machine."""
    if mount is None:
        return Check("disk kind", "ok", f"{folder}, of unknown kind")
    value = f"{folder} on {mount.form}"
    if mount.kind == "network":
        return Check(
            "disk kind", "warn", f"{value}, a network file system", "name a folder on a local disk with --root"
        )
    if mount.kind == "memory":
        return Check("disk kind", "warn", f"{value}, kept in memory", "name a folder on a disk with --root")
    return Check("disk kind", "ok", value)


def check_space(free: int, needed: Footprint) -> Check:
    """Compare `free` bytes with the checkpoints of a run; there should be room for two, as the first is kept."""
    files = needed.full_count + needed.shadow_count + bool(needed.final_bytes)
    value = f"{in_gib(free)} free, a {needed.recipe} run writes {in_gib(needed.total_bytes)} in {files} checkpoints"
    if free < needed.total_bytes:
        return Check("disk space", "fail", value, "free some space, or name a folder on another disk with --root")
    if free < 2 * needed.total_bytes:
        return Check("disk space", "warn", value, "free some space, a second run would not fit")
    return Check("disk space", "ok", value)


def check_speed(bytes_per_second: float, needed: Footprint) -> Check:
    """Compare the speed of the disk with what a run must write while it trains."""
    writing = needed.total_bytes / bytes_per_second
    value = f"{bytes_per_second / 1e6:,.0f} MB/s with fsync, a {needed.recipe} run's checkpoints in {writing:.0f} s"
    if writing > _WRITING_SHARE * needed.seconds:
        return Check("disk speed", "warn", value, "name a folder on a faster disk with --root")
    return Check("disk speed", "ok", value)


def write_speed(folder: Path, *, size: int = _PROBE_BYTES, seconds: float = _PROBE_SECONDS) -> float:
    """Write up to `size` bytes to a nameless file in `folder`, for some `seconds`; return bytes per second on disk."""
    block = os.urandom(min(_BLOCK_BYTES, size))  # what a file system that compresses cannot make smaller
    written, started = 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # gone when closed, also by a kill
        while written < size and time.perf_counter() - started < seconds:
            written += file.write(block[: size - written])
            os.fsync(file.fileno())
        return written / (time.perf_counter() - started)


def _examine_speed(folder: Path, needed: Footprint) -> Check:
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("disk speed", "fail", f"{folder} cannot be written", "name another folder with --root")
    if shutil.disk_usage(folder).free < 2 * _PROBE_BYTES:  # a full disk would hurt whoever else writes to it
        return Check("disk speed", "warn", "not measured, the disk is nearly full", "free some space")
    return check_speed(write_speed(folder), needed)
