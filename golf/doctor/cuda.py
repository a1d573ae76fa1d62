"""What PyTorch says of CUDA and of the GPUs that it sees."""

import contextlib
import ctypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process may use, by torch's index."""

    index: int
    name: str
    capability: tuple[int, int]
    uuid: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Cuda:
    """Whether and why PyTorch can use GPUs; versions are (major, minor)."""

    build: tuple[int, int] | None  # what torch was built for; None for a CPU build
    driver: tuple[int, int] | None  # the latest that the driver knows; None without a driver
    warning: str  # what torch said when it looked
    gpus: tuple[Gpu, ...]


def read_cuda() -> Cuda:
    """Look for GPUs. Takes no memory on any."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gpus = _gpus() if torch.cuda.is_available() else ()
    build = _version(torch.version.cuda) if torch.version.cuda else None
    return Cuda(build, _driver(), " ".join(str(warning.message) for warning in told), gpus)


def free_bytes(gpu: Gpu) -> int:
    """Ask the driver for a GPU's free memory; less what this process takes by asking."""
    return int(torch.cuda.mem_get_info(gpu.index)[0])


def pairs_with_access(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those pairs of torch's indices whose GPUs can both read the other's memory."""
    able = torch.cuda.can_device_access_peer
    return [(one, other) for one, other in pairs if able(one, other) and able(other, one)]


def _gpus() -> tuple[Gpu, ...]:
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = (facts.major, facts.minor)
        found.append(Gpu(index, facts.name, capability, str(facts.uuid), facts.total_memory))
    return tuple(found)


def _driver() -> tuple[int, int] | None:
    """Ask the driver's own library, which answers also where torch was built for a later CUDA than it knows."""
    number = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):  # no such library, or not a driver's
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value // 1000, number.value % 1000 // 10  # 12080 is 12.8
    return None


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
