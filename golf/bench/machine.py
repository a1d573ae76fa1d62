"""The machine and the versions that numbers belong to."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from golf.run_folder import versions

_EXTRA = ("triton", "flash-attn-4", "flash-attn-3")  # kernels that are not golf's; absent ones are left out


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return names of the processors, the driver, versions and golf's revision, as JSON."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_name(_read(Path("/proc/cpuinfo"))) or platform.processor() or platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "versions": versions() | _found_versions() | {"cuda": torch.version.cuda or "none"},
        "revision": _revision(Path(__file__).parents[2]),
    }
    if device.type == "cuda":
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        facts["driver"] = driver_version(_read(Path("/proc/driver/nvidia/version"))) or "unknown"
    return facts


def memory_bytes(device: torch.device) -> int:
    """Return how large the memory is that tensors on `device` lie in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_name(cpuinfo: str) -> str | None:
    """Return the processor's name in Linux's /proc/cpuinfo."""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    return found[1] if found else None


def driver_version(text: str) -> str | None:
    """Return the driver's version in NVIDIA's /proc/driver/nvidia/version."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _found_versions() -> dict[str, str]:
    found = {}
    for name in _EXTRA:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision(root: Path) -> str:
    """Return git's name for the source in `root`, "-dirty" if it was changed since; "none" if that is no repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        known = (root / ".git").exists()  # else git would find one further up, which is not golf's
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() if known else "none"
    except (OSError, subprocess.CalledProcessError):
        return "none"
