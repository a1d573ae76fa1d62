"""The GPUs that golf would train on: how many, how free, how sound and how connected."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

from golf.doctor.check import Check, guarded, in_gib
from golf.doctor.cuda import Cuda, Gpu, free_bytes, pairs_with_access
from golf.doctor.nvidia import Reading, read_links
from golf.ranks import VIRTUAL_RANKS

_LEAST = (8, 0)  # compute capability; older GPUs have no bfloat16
_TUNED = (9, 0)  # Hopper: what the kernels' sizes were chosen on
_FREE_SHARE = 0.95  # of an idle GPU's memory, at least; the driver keeps less than the rest for itself
_HOT_CELSIUS = 80.0  # with nothing running; a Hopper GPU slows down a few degrees above
_REPLACE = "replace this GPU, or the pod"


def examine_gpus(cuda: Cuda, readings: Sequence[Reading] | None) -> list[Check]:
    """Check driver, number, memory, health and connections; `readings` are None where there is no nvidia-smi."""
    seen = [(gpu, _reading_of(gpu, readings or ())) for gpu in cuda.gpus]
    checks = [check_cuda(cuda, len(readings or ())), check_count(cuda.gpus, len(readings or ()))]
    for gpu, reading in seen:
        checks += guarded(f"gpu {gpu.index}", partial(_examine_memory, gpu, reading))
        checks += guarded(f"gpu {gpu.index} health", partial(check_health, gpu.index, reading))
    return checks + guarded("gpu links", partial(_examine_links, seen))


def check_cuda(cuda: Cuda, physical: int) -> Check:
    """Compare torch's build with the driver; `physical` is the number of GPUs that nvidia-smi knows."""
    if cuda.build is None:
        if physical == 0:
            return Check("cuda", "ok", "torch is a CPU build")
        return Check("cuda", "fail", f"torch is a CPU build, but GPUs here: {physical}", "install torch's CUDA build")
    build = f"torch is built for CUDA {_dotted(cuda.build)}"
    if cuda.driver is None:
        if physical == 0:
            return Check("cuda", "ok", f"{build}; there is no driver")
        return Check("cuda", "fail", f"{build}; libcuda.so.1 is not found", "start the container with its GPUs' driver")
    value = f"{build}, the driver knows {_dotted(cuda.driver)}"
    if cuda.driver[0] < cuda.build[0]:  # within one major version, later builds run on earlier drivers
        remedy = f"choose a host of CUDA {cuda.build[0]}, or install torch for CUDA {cuda.driver[0]}"
        return Check("cuda", "fail", value, remedy)
    if not cuda.gpus and (physical or cuda.warning):
        said = f"; torch sees none of {physical} GPUs" + (f" ({cuda.warning})" if cuda.warning else "")
        return Check("cuda", "fail", value + said, "start the container with its GPUs, check CUDA_VISIBLE_DEVICES")
    return Check("cuda", "ok", value)


def check_count(gpus: Sequence[Gpu], physical: int) -> Check:
    """Check that the virtual ranks can be shared out among the GPUs and that these are of one kind."""
    count, names = len(gpus), sorted({gpu.name for gpu in gpus})
    if count == 0:
        remedy = "train records on 1, 2, 4 or 8 Hopper GPUs"
        return Check("gpus", "warn", "no GPU: the demo and small runs only", remedy)
    value = f"{count} × {' and '.join(names)}" + (f", of {physical} in the machine" if physical > count else "")
    if len(names) > 1:
        return Check("gpus", "warn", value, "choose GPUs of one kind with CUDA_VISIBLE_DEVICES")
    if VIRTUAL_RANKS % count:
        most = max(size for size in range(1, min(count, VIRTUAL_RANKS) + 1) if VIRTUAL_RANKS % size == 0)
        return Check("gpus", "warn", value, f"train with --gpus {most}, a divisor of the {VIRTUAL_RANKS} virtual ranks")
    return Check("gpus", "ok", value)


def check_gpu(gpu: Gpu, free: int, total: int) -> Check:
    """Check a GPU's age, and that nobody else uses its memory (bytes)."""
    capability = _dotted(gpu.capability)
    value = f"{gpu.name}, compute capability {capability}, {in_gib(free)} of {in_gib(total)} free"
    name = f"gpu {gpu.index}"
    if gpu.capability < _LEAST:
        return Check(name, "fail", value, f"use a GPU of compute capability {_dotted(_LEAST)} or later, for bfloat16")
    if free < _FREE_SHARE * total:
        return Check(name, "warn", value, "end the other processes on it; nvidia-smi lists them")
    if gpu.capability < _TUNED:
        return Check(name, "warn", value, "use a Hopper GPU (H100, H200), for which the kernels are tuned")
    return Check(name, "ok", value)


def check_health(index: int, reading: Reading | None) -> Check:
    """Check errors, throttling, power limit and temperature; `reading` is None where nvidia-smi does not know it."""
    name = f"gpu {index} health"
    if reading is None:
        return Check(name, "warn", "unknown to nvidia-smi", "have nvidia-smi work in the container")
    value = _health(reading)
    if reading.complaints:
        return Check(name, "fail", f"{value}; nvidia-smi reads {', '.join(reading.complaints)}", _REPLACE)
    if reading.uncorrected_errors:
        return Check(name, "fail", value, _REPLACE)
    if reading.slowdowns:
        return Check(name, "warn", value, f"{_REPLACE}, if it stays so")
    if _is_capped(reading):
        return Check(name, "warn", value, "choose a host that does not cap the power")
    if reading.celsius is not None and reading.celsius >= _HOT_CELSIUS:
        return Check(name, "warn", value, "let it cool down, or choose another host")
    return Check(name, "ok", value)


def check_links(
    pairs: Sequence[tuple[int, int]], with_access: Sequence[tuple[int, int]], links: Mapping[tuple[int, int], str]
) -> Check:
    """Check that every pair of GPUs can read each other's memory, and does so over NVLink as far as is known."""
    kinds = sorted({links[pair] for pair in pairs if pair in links})
    value = f"{len(with_access)} of {len(pairs)} pairs with peer access, over {', '.join(kinds) or 'unknown links'}"
    if len(with_access) < len(pairs):
        return Check("gpu links", "warn", value, "choose a host with NVLink, gradients go through its memory here")
    if any(not kind.startswith("NV") for kind in kinds):
        return Check("gpu links", "warn", value, "choose a host with NVLink, gradients go over PCIe here")
    return Check("gpu links", "ok", value)


def _examine_memory(gpu: Gpu, reading: Reading | None) -> Check:
    """Prefer what nvidia-smi read before this process took memory of its own."""
    if reading is not None and reading.free_bytes is not None and reading.total_bytes is not None:
        return check_gpu(gpu, reading.free_bytes, reading.total_bytes)
    return check_gpu(gpu, free_bytes(gpu), gpu.total_bytes)


def _examine_links(seen: Sequence[tuple[Gpu, Reading | None]]) -> list[Check]:
    pairs = list(combinations([gpu.index for gpu, _ in seen], 2))
    if not pairs:
        return []
    index_of = {reading.index: gpu.index for gpu, reading in seen if reading is not None}  # nvidia-smi's -> torch's
    known = {
        (index_of[one], index_of[other]): link
        for (one, other), link in read_links().items()
        if one in index_of and other in index_of
    }
    return [check_links(pairs, pairs_with_access(pairs), known)]


def _reading_of(gpu: Gpu, readings: Sequence[Reading]) -> Reading | None:
    """Find what nvidia-smi says of a GPU, whose order it may not share; torch leaves out the prefix GPU-."""
    return next((reading for reading in readings if reading.uuid.removeprefix("GPU-") == gpu.uuid), None)


def _health(reading: Reading) -> str:
    errors = "no ECC" if reading.uncorrected_errors is None else f"ECC errors {reading.uncorrected_errors}"
    facts = [
        f"driver {reading.driver}",
        f"{reading.celsius:g} °C" if reading.celsius is not None else "",
        f"SM clock {reading.clock_mhz:g} of {reading.max_clock_mhz:g} MHz"
        if reading.clock_mhz is not None and reading.max_clock_mhz is not None
        else "",
        f"power limit {reading.power_watts:g} of {reading.default_power_watts:g} W"
        if reading.power_watts is not None and reading.default_power_watts is not None
        else "",
        errors,
        f"slowed by {', '.join(reading.slowdowns)}" if reading.slowdowns else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def _is_capped(reading: Reading) -> bool:
    power, default = reading.power_watts, reading.default_power_watts
    return power is not None and default is not None and power < default


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
