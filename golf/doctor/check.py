"""One check of the machine: a verdict, what was found and, unless all is well, the remedy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from golf.errors import GolfError

Verdict = Literal["ok", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "fail")  # from good to bad

_UNFORESEEN = "mend what this names, then run golf doctor again"

Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class Check:
    """What one look at the machine found. A warning costs speed or comfort, a failure stops a run sooner or later."""

    name: str
    verdict: Verdict
    value: str
    remedy: str = ""  # one clause

    def __post_init__(self) -> None:
        if (self.verdict == "ok") == bool(self.remedy):
            raise ValueError(f"check {self.name!r} is {self.verdict}, its remedy {self.remedy!r}; ok alone has none")


def attempt(name: str, read: Callable[[], Fact]) -> tuple[Fact | None, list[Check]]:
    """Return what `read` returns, or None and a failed check of that `name` with the exception's text."""
    try:
        return read(), []
    except Exception as error:  # whatever it is: the other checks go on, and this one says it
        return None, [_crash(name, error)]


def guarded(name: str, examine: Callable[[], Check | Sequence[Check]]) -> list[Check]:
    """Return the check or checks of `examine`, or one failed check of that `name` with the exception's text."""
    found, crash = attempt(name, examine)
    return [found] if isinstance(found, Check) else [*(found or ()), *crash]


def worst(checks: Sequence[Check]) -> Verdict:
    """Return the worst verdict; ok if there is no check."""
    return max((check.verdict for check in checks), key=VERDICTS.index, default="ok")


def report(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the overall verdict and every check as plain values."""
    rows = [
        {"name": check.name, "verdict": check.verdict, "value": check.value, "remedy": check.remedy} for check in checks
    ]
    return {"verdict": worst(checks), "checks": rows}


def format_checks(checks: Sequence[Check]) -> str:
    """Lay the checks out for the terminal, a line each, the remedy in a line below, the overall verdict last.

    By hand, not as the other tables are: pandas may be what the machine lacks.
    """
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(_printable(f"{check.verdict:<6}{check.name:<{width}}  {check.value}").rstrip())
        if check.remedy:
            lines.append(_printable(f"{'':<6}{'':<{width}}  -> {check.remedy}"))
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in VERDICTS}
    said = f"{len(checks)} checks: {counts['fail']} failed, {counts['warn']} warned"
    return "\n".join([*lines, "", f"{worst(checks)}: {said}"])


def in_gib(count: float) -> str:
    """Write a number of bytes in GiB, with one decimal."""
    return f"{count / 2**30:,.1f} GiB"


def _crash(name: str, error: Exception) -> Check:
    """Turn an exception into a failed check; golf's own say their remedy after the last semicolon."""
    text = " ".join(str(error).split())
    if isinstance(error, GolfError):
        value, _, remedy = text.rpartition("; ")
        return Check(name, "fail", value, remedy) if value else Check(name, "fail", remedy, _UNFORESEEN)
    return Check(name, "fail", f"{type(error).__name__}: {text}", _UNFORESEEN)


def _printable(text: str) -> str:
    """Show control characters instead of obeying them: names may come from files and drivers."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
