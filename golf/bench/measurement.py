"""One timing: how long it took, how steady it was, and what was done in that time."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """The least that a computation has to do; 0 where it is not counted."""

    bytes: int = 0  # each input read once, each output written once
    flop: int = 0  # of matrix products, a multiplication and an addition being two

    def plus(self, other: "Work") -> "Work":
        """Return the work of doing both."""
        return Work(self.bytes + other.bytes, self.flop + other.flop)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Repeated timings of one thing."""

    name: str
    seconds: float  # median
    low: float  # quartiles, in seconds
    high: float
    count: int
    noise: float | None = None  # |median of the first half / of the second - 1|: the same thing against itself
    bytes_moved: int = 0
    flop: int = 0
    share: float | None = None  # of the speed that the ceilings allow this work

    @classmethod
    def of(cls, name: str, samples: Sequence[float], work: Work = Work()) -> "Measurement":  # noqa: B008  # immutable
        """Sum up `samples` in seconds, in the order in which they were taken; one sample has no noise."""
        low, median, high = (float(value) for value in np.quantile(samples, (0.25, 0.5, 0.75)))
        half = len(samples) // 2
        noise = abs(float(np.median(samples[:half]) / np.median(samples[half:])) - 1) if half else None
        return cls(
            name=name,
            seconds=median,
            low=low,
            high=high,
            count=len(samples),
            noise=noise,
            bytes_moved=work.bytes,
            flop=work.flop,
        )

    @property
    def tb_per_second(self) -> float | None:
        """Achieved traffic in 10^12 bytes a second; None where bytes are not counted."""
        return self.bytes_moved / self.seconds / 1e12 if self.bytes_moved else None

    @property
    def tflop_per_second(self) -> float | None:
        """Achieved arithmetic in 10^12 operations a second; None where they are not counted."""
        return self.flop / self.seconds / 1e12 if self.flop else None

    def to_dict(self) -> dict[str, Any]:
        """Return all values, the achieved rates too, as JSON."""
        rates = {"tb_per_second": self.tb_per_second, "tflop_per_second": self.tflop_per_second}
        return dataclasses.asdict(self) | rates


class Figure(NamedTuple):
    """A number that is no time."""

    name: str
    value: float
    unit: str
