"""Checks: verdicts, what becomes of exceptions, and both forms of the result."""

from pathlib import Path

import pytest

from golf.doctor.check import Check, attempt, format_checks, guarded, in_gib, report, worst
from golf.errors import BadFileError, EnvironmentUnfitError

OK, WARN, FAIL = Check("a", "ok", "1"), Check("bcd", "warn", "2", "do it"), Check("e", "fail", "3", "leave it")


def raising(error: Exception) -> Check:
    (check,) = guarded("x", lambda: _raise(error))
    return check


def _raise(error: Exception) -> Check:
    raise error


def test_a_check_that_is_not_ok_has_a_remedy() -> None:
    with pytest.raises(ValueError, match="'x' is warn"):
        Check("x", "warn", "1")


def test_a_check_that_is_ok_has_no_remedy() -> None:
    with pytest.raises(ValueError, match="'x' is ok"):
        Check("x", "ok", "1", "do it")


@pytest.mark.parametrize(
    ("checks", "verdict"), [([], "ok"), ([OK], "ok"), ([OK, WARN, OK], "warn"), ([WARN, FAIL, OK], "fail")]
)
def test_the_overall_verdict_is_the_worst(checks: list[Check], verdict: str) -> None:
    assert worst(checks) == verdict


def test_what_a_check_returns_is_passed_on() -> None:
    assert guarded("x", lambda: OK) == [OK]
    assert guarded("x", lambda: [OK, FAIL]) == [OK, FAIL]
    assert attempt("x", lambda: 3) == (3, [])


def test_a_crash_becomes_a_failed_check_with_the_text_in_one_line() -> None:
    check = raising(KeyError("one\n  two"))
    assert (check.name, check.verdict, check.value) == ("x", "fail", r"KeyError: 'one\n two'")
    assert "golf doctor" in check.remedy
    assert raising(ValueError("one\n  two")).value == "ValueError: one two"


def test_a_fact_that_cannot_be_read_is_none_and_a_failed_check() -> None:
    fact, checks = attempt("x", lambda: _raise(ValueError("no")))
    assert fact is None
    assert [check.value for check in checks] == ["ValueError: no"]


def test_a_failure_of_golf_is_told_with_its_own_remedy() -> None:
    assert raising(EnvironmentUnfitError("no zstd; but lzma; pip install it")) == Check(
        "x", "fail", "no zstd; but lzma", "pip install it"
    )
    assert raising(BadFileError(Path("a;b"), "is odd; very", "mend it")) == Check(
        "x", "fail", "a;b: is odd; very", "mend it"
    )


def test_a_failure_of_golf_without_a_remedy_is_told_as_well() -> None:
    check = raising(EnvironmentUnfitError("all is lost"))
    assert (check.verdict, check.value) == ("fail", "all is lost")


def test_a_user_who_interrupts_is_heard() -> None:
    with pytest.raises(KeyboardInterrupt):
        guarded("x", lambda: _interrupt())


def _interrupt() -> Check:
    raise KeyboardInterrupt


def test_the_report_lists_every_check_and_the_verdict() -> None:
    assert report([OK, WARN]) == {
        "verdict": "warn",
        "checks": [
            {"name": "a", "verdict": "ok", "value": "1", "remedy": ""},
            {"name": "bcd", "verdict": "warn", "value": "2", "remedy": "do it"},
        ],
    }


def test_the_terminal_gets_a_line_a_check_its_remedy_below_and_the_counts() -> None:
    assert format_checks([OK, WARN, FAIL]).splitlines() == [
        "ok    a    1",
        "warn  bcd  2",
        "           -> do it",
        "fail  e    3",
        "           -> leave it",
        "",
        "fail: 3 checks: 1 failed, 1 warned",
    ]


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert "\x1b" not in format_checks([Check("a", "warn", "\x1b[2J", "\x1b[2J")])


def test_bytes_are_written_in_gib() -> None:
    assert in_gib(3 * 2**29) == "1.5 GiB"
    assert in_gib(2**41) == "2,048.0 GiB"
