"""What a benchmark found: times, other numbers, and what went wrong."""

import dataclasses

from golf.bench.measurement import Figure, Measurement


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """Lists to be added to; a failure is a sentence."""

    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Take in what another benchmark found."""
        self.measurements.extend(other.measurements)
        self.figures.extend(other.figures)
        self.failures.extend(other.failures)
