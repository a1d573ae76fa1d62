"""Small reports to be written, read and compared."""

from collections.abc import Mapping
from typing import Any

from golf.bench.measurement import Figure, Measurement, Work
from golf.bench.report import Report

MACHINE: dict[str, Any] = {
    "device": "cuda",
    "gpus": ["NVIDIA H200", "NVIDIA H200"],
    "driver": "580.95.05",
    "cpu": "AMD EPYC",
    "cpu_cores": 16,
    "revision": "0123456789ab",
    "versions": {"python": "3.12.3", "torch": "2.11.0+cu130", "triton": "3.6.0"},
}


def report_of(times: Mapping[str, list[float]], **changes: Any) -> Report:
    """A report with these samples, each of one terabyte and two teraflop."""
    work = Work(bytes=10**12, flop=2 * 10**12)
    values: dict[str, Any] = {
        "command": "kernels",
        "settings": {"recipe": "pr1787", "gpus": 1},
        "machine": MACHINE,
        "time": "2026-01-02T03:04:05+00:00",
        "measurements": tuple(Measurement.of(name, samples, work) for name, samples in times.items()),
        "figures": (Figure("peak", 3_000_000, "bytes"),),
        "failures": (),
    }
    return Report(**(values | changes))
