"""The result of a benchmark as a file: what was measured, where, and beside which ceilings."""

import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any

import torch

from golf.bench.findings import Findings
from golf.bench.machine import describe_machine
from golf.bench.measurement import Figure, Measurement
from golf.errors import BadFileError
from golf.files import read_json, write_json
from golf.sweep.table import format_table, make_table

SCHEMA_VERSION = 1

_ROUNDED = 4  # digits of a number that is read, not computed with


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One benchmark's result."""

    command: str
    settings: dict[str, Any]  # recipe, sizes, number of GPUs: what must agree for a comparison
    machine: dict[str, Any]
    time: str  # UTC, ISO 8601
    measurements: tuple[Measurement, ...]
    figures: tuple[Figure, ...]
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "settings": self.settings,
            "machine": self.machine,
            "time": self.time,
            "measurements": [one.to_dict() for one in self.measurements],
            "figures": [one._asdict() for one in self.figures],
            "failures": list(self.failures),
        }


def make_report(command: str, findings: Findings, device: torch.device, *, settings: dict[str, Any]) -> Report:
    """Put together what was found on this machine, now."""
    return Report(
        command=command,
        settings=settings,
        machine=describe_machine(device),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        measurements=tuple(findings.measurements),
        figures=tuple(findings.figures),
        failures=tuple(findings.failures),
    )


def write_report(report: Report, path: Path) -> None:
    """Write `report` to `path`, atomically."""
    write_json(path, report.to_dict())


def read_report(path: Path) -> Report:
    """Read a report; BadFileError if it is none, or of a newer golf."""
    values = read_json(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise BadFileError(path, "it is not a result of golf bench", "name a file that --out wrote")
    if version > SCHEMA_VERSION:
        raise BadFileError(path, f"it is of schema version {version}, this golf reads {SCHEMA_VERSION}", "upgrade golf")
    kept = {field.name for field in dataclasses.fields(Measurement)}
    try:
        return Report(
            command=values["command"],
            settings=dict(values["settings"]),
            machine=dict(values["machine"]),
            time=values["time"],
            measurements=tuple(
                _checked(Measurement(**{key: value for key, value in one.items() if key in kept}))
                for one in values["measurements"]
            ),
            figures=tuple(Figure(**one) for one in values["figures"]),
            failures=tuple(values["failures"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(path, f"an entry is missing or of the wrong kind ({error})", "measure again") from None


def _checked(one: Measurement) -> Measurement:
    """Raise ValueError unless times and noise are numbers that can be compared."""
    noise = () if one.noise is None else (one.noise,)
    if not isinstance(one.name, str):
        raise ValueError(f"the name {one.name!r} is no text")
    for value in (one.seconds, one.low, one.high, *noise):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise ValueError(f"{one.name}: {value!r} is no finite number")
    return one


def format_report(report: Report) -> str:
    """Lay a report out for the terminal: the machine, the times, the other numbers."""
    machine = report.machine
    where = f"{len(machine['gpus'])} x {machine['gpus'][0]}" if machine.get("gpus") else machine["cpu"]
    versions = machine["versions"]
    head = f"golf bench {report.command}, {report.time}, on {where}, PyTorch {versions['torch']}"
    parts = [head, format_table(make_table([_time_row(one) for one in report.measurements]))]
    if report.figures:
        parts.append("\n".join(f"{one.name}: {_rounded(one.value):,} {one.unit}".rstrip() for one in report.figures))
    if machine["device"] != "cuda":
        parts.append("measured on the CPU: this says nothing about the speed on a GPU")
    return "\n\n".join(parts)


def _time_row(one: Measurement) -> dict[str, Any]:
    """Return the row of a table; what was not counted is left out."""
    row = {
        "name": one.name,
        "ms": one.seconds * 1e3,
        "low": one.low * 1e3,
        "high": one.high * 1e3,
        "n": one.count,
        "noise %": None if one.noise is None else one.noise * 100,
        "TB/s": one.tb_per_second,
        "TFLOP/s": one.tflop_per_second,
        "share %": None if one.share is None else one.share * 100,
    }
    return {key: _rounded(value) if isinstance(value, float) else value for key, value in row.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{_ROUNDED}g}") if isinstance(value, float) else value
