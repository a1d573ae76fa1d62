"""Failures a user can cause or meet, each with the exit code that scripts may rely on.

0 ok · 1 a gate said no · 2 usage · 3 bad input file · 4 environment not fit · 5 out of memory or disk ·
6 numerical fault · 7 a rank or worker died · 130 interrupted.
"""

from pathlib import Path


class GolfError(Exception):
    """A failure that is told in one sentence, without a traceback."""

    exit_code = 1


class UsageError(GolfError):
    """The command or recipe asks for something that does not exist or contradicts itself."""

    exit_code = 2


class BadFileError(GolfError):
    """An input file cannot be used: says which one, why, and what to do."""

    exit_code = 3

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self.remedy = Path(path), reason, remedy


class EnvironmentUnfitError(GolfError):
    """The machine lacks a package, a permission or a device."""

    exit_code = 4


class ResourceError(GolfError):
    """Memory or disk ran out; what was finished before is intact."""

    exit_code = 5


class NumericalFaultError(GolfError):
    """A NaN, an infinity or a singular matrix where a number must be."""

    exit_code = 6


class WorkerDiedError(GolfError):
    """A rank or a worker process ended before its work did."""

    exit_code = 7


class InterruptedRunError(GolfError):
    """The user stopped the work; the sentence says what is kept."""

    exit_code = 130


def require_least(least: int, table: str, **values: float) -> None:
    """Raise UsageError, naming the recipe's `table` and key, for the first of `values` below `least`."""
    for name, value in values.items():
        require(value >= least, f"{table}.{name} must be at least {least}")


def require_between(least: int, most: int, table: str, **values: float) -> None:
    """Raise UsageError, naming the recipe's `table` and key, for the first of `values` outside `least` to `most`."""
    for name, value in values.items():
        require(least <= value <= most, f"{table}.{name} must be between {least:,} and {most:,}")


def require_fraction(table: str, **values: float) -> None:
    """Raise UsageError, naming the recipe's `table` and key, for the first of `values` that is not in [0, 1)."""
    for name, value in values.items():
        require(0 <= value < 1, f"{table}.{name} must be in [0, 1)")


def require(holds: bool, message: str) -> None:
    """Raise UsageError with `message` unless it `holds`."""
    if not holds:
        raise UsageError(message)
