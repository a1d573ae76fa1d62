"""Two results of golf bench side by side: what became faster or slower by more than the noise."""

import dataclasses
from typing import Any, NamedTuple

from golf.bench.measurement import Figure, Measurement
from golf.bench.report import Report
from golf.sweep.table import format_table, make_table


class Change(NamedTuple):
    """One thing measured twice."""

    name: str
    before: float  # seconds
    after: float
    noise: float  # relative: the largest difference of a thing from itself, or half distance of quartiles; 0 if unknown
    verdict: str  # faster, slower or same (within the noise)

    @property
    def percent(self) -> float:
        """How much more time it takes."""
        return 100 * (self.after / self.before - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """All changes, and what makes them hard to believe."""

    changes: tuple[Change, ...]
    figures: tuple[tuple[Figure, Figure], ...]  # the same number before and after
    alone: tuple[str, ...]  # names in one of the two only
    differing: tuple[str, ...]  # sentences: machine, versions, settings

    def slower_than(self, percent: float) -> list[Change]:
        """Return what became slower by more than `percent` and by more than its noise."""
        return [change for change in self.changes if change.verdict == "slower" and change.percent > percent]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        rows = [change._asdict() | {"percent": change.percent} for change in self.changes]
        figures = [before._asdict() | {"value": before.value, "after": after.value} for before, after in self.figures]
        return {"changes": rows, "figures": figures, "alone": list(self.alone), "differing": list(self.differing)}


def compare_reports(first: Report, second: Report) -> Comparison:
    """Join two reports by name, in the order of the first."""
    times, times_after = ({one.name: one for one in report.measurements} for report in (first, second))
    figures, figures_after = ({one.name: one for one in report.figures} for report in (first, second))
    names, names_after = [*times, *figures], [*times_after, *figures_after]
    return Comparison(
        changes=tuple(
            _change(one, times_after[name])
            for name, one in times.items()
            if name in times_after
            and min(one.seconds, times_after[name].seconds) > 0  # a difference may be lost in noise
        ),
        figures=tuple((figures[name], figures_after[name]) for name in figures if name in figures_after),
        alone=tuple(name for name in (*names, *names_after) if (name in names) != (name in names_after)),
        differing=(*_differences(first, second), *_failures("before", first), *_failures("after", second)),
    )


def format_comparison(comparison: Comparison) -> str:
    """Lay a comparison out for the terminal."""
    rows = [
        {
            "name": change.name,
            "before ms": float(f"{change.before * 1e3:.4g}"),
            "after ms": float(f"{change.after * 1e3:.4g}"),
            "change %": float(f"{change.percent:.2f}"),
            "noise %": float(f"{change.noise * 100:.2f}"),
            "verdict": change.verdict,
        }
        for change in comparison.changes
    ]
    parts = [f"differs: {sentence}" for sentence in comparison.differing]
    parts.append(format_table(make_table(rows)) if rows else "nothing was timed in both")
    parts += [f"{one.name}: {one.value:,.6g} -> {after.value:,.6g} {one.unit}" for one, after in comparison.figures]
    parts += [f"in one of them only: {name}" for name in comparison.alone]
    return "\n".join(parts)


def _change(before: Measurement, after: Measurement) -> Change:
    noise = max(
        found for one in (before, after) for found in (one.noise or 0.0, (one.high - one.low) / 2 / one.seconds)
    )
    ratio = after.seconds / before.seconds
    verdict = "same" if 1 / (1 + noise) <= ratio <= 1 + noise else "slower" if ratio > 1 else "faster"
    return Change(before.name, before.seconds, after.seconds, noise, verdict)


def _differences(first: Report, second: Report) -> list[str]:
    """Tell every fact that should be the same for the times to be comparable; golf's revision is meant to differ."""
    before, after = (_facts(report) for report in (first, second))
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key, 'none')} before, {after.get(key, 'none')} after" for key in keys]


def _failures(when: str, report: Report) -> list[str]:
    return [f"{when}, this failed: {failure}" for failure in report.failures]


def _facts(report: Report) -> dict[str, Any]:
    machine = {key: value for key, value in report.machine.items() if key not in ("versions", "revision")}
    versions: dict[str, Any] = report.machine["versions"]
    return machine | versions | {f"setting {key}": value for key, value in report.settings.items()}
