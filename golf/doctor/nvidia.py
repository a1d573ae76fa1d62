"""What nvidia-smi says of the GPUs: read alone, no setting is changed."""

import csv
import re
import shutil
import subprocess
from dataclasses import dataclass

from golf.errors import EnvironmentUnfitError

_SECONDS = 20  # a driver that hangs does so for good
_FIELDS = (
    "index",
    "uuid",
    "driver_version",
    "memory.total",
    "memory.free",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "power.limit",
    "power.default_limit",
    "ecc.errors.uncorrected.volatile.total",
)
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # named anew by driver 535
_SLOWDOWNS = {  # bits of that mask which cost speed; not among them: idle 0x1, display clocks 0x100
    0x2: "a clocks setting",
    0x4: "the power cap",
    0x8: "a hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "the power brake",
}
_ABSENT = {"[N/A]", "N/A", "[Not Supported]", "Not Supported"}  # as a GPU without ECC, or a virtual one, has it
_UNDERLINED = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU as nvidia-smi sees it; None where it does not say."""

    index: int  # nvidia-smi's, which CUDA_VISIBLE_DEVICES does not change
    uuid: str
    driver: str
    total_bytes: int | None
    free_bytes: int | None  # without what other processes have, before this one takes anything
    celsius: float | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    power_watts: float | None  # the limit in force
    default_power_watts: float | None
    uncorrected_errors: int | None  # of ECC since the driver was loaded; None also where ECC is off
    slowdowns: tuple[str, ...]
    complaints: tuple[str, ...]  # what stood where a value should, such as [GPU requires reset]


def read_gpus() -> list[Reading] | None:
    """Ask nvidia-smi about every GPU of the machine; None if there is no such program.

    Raises EnvironmentUnfitError if it fails, subprocess.TimeoutExpired if it does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    said = ""
    for reasons in _REASONS:
        fields = ",".join((*_FIELDS, reasons))
        ended = _run(program, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        said = (ended.stdout + ended.stderr).strip()
        if "No devices were found" in said:
            return []
        if ended.returncode == 0:
            return parse_query(ended.stdout)
        if "not a valid field" not in said:
            break
    raise EnvironmentUnfitError(f"nvidia-smi failed ({said}); see that the driver is loaded, or choose another host")


def parse_query(text: str) -> list[Reading]:
    """Read the comma-separated answer to the query, a line a GPU, in nvidia-smi's order."""
    return [_reading(cells) for cells in csv.reader(text.splitlines(), skipinitialspace=True) if cells]


def read_links() -> dict[tuple[int, int], str]:
    """Return how each pair of GPUs (nvidia-smi's indices) is connected; nothing where nvidia-smi cannot say."""
    program = shutil.which("nvidia-smi")
    ended = _run(program, "topo", "-m") if program else None
    return parse_links(ended.stdout) if ended and ended.returncode == 0 else {}


def parse_links(text: str) -> dict[tuple[int, int], str]:
    """Read the matrix of `nvidia-smi topo -m`: NV18 for 18 NVLinks, PIX, PXB, PHB, NODE or SYS for ways over PCIe."""
    rows = [_UNDERLINED.sub("", line).split() for line in text.splitlines()]
    header = next((cells for cells in rows if cells and cells[0] == "GPU0" and "X" not in cells), [])
    gpus = [cell for cell in header if re.fullmatch(r"GPU\d+", cell)]
    found = {}
    for cells in rows:
        if cells and cells[0] in gpus and "X" in cells:
            for other, link in zip(gpus, cells[1:], strict=False):  # columns of network cards and cores follow
                if link != "X":
                    found[int(cells[0][3:]), int(other[3:])] = link
    return found


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)


def _reading(cells: list[str]) -> Reading:
    index, uuid, driver, *values, mask = cells
    total, free, celsius, clock, max_clock, power, default_power, errors = map(_number, values)
    bits = int(mask, 16) if mask.startswith("0x") else 0
    return Reading(
        index=int(index),
        uuid=uuid,
        driver=driver,
        total_bytes=None if total is None else int(total * 2**20),
        free_bytes=None if free is None else int(free * 2**20),
        celsius=celsius,
        clock_mhz=clock,
        max_clock_mhz=max_clock,
        power_watts=power,
        default_power_watts=default_power,
        uncorrected_errors=None if errors is None else int(errors),
        slowdowns=tuple(name for bit, name in _SLOWDOWNS.items() if bits & bit),
        complaints=tuple(value for value in values if _number(value) is None and value not in _ABSENT),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
