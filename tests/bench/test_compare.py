"""Two reports are joined by name; a change within the noise is none, and what makes them incomparable is told."""

import pytest

from golf.bench.compare import compare_reports, format_comparison
from golf.bench.measurement import Figure
from tests.bench.reports import MACHINE, report_of

STEADY = [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "percent"),
    [
        (STEADY, [1.5] * 4, "slower", 50.0),
        (STEADY, [0.5] * 4, "faster", -50.0),
        (STEADY, STEADY, "same", 0.0),
        ([1.0, 1.0, 1.25, 1.25], [1.25] * 4, "same", 11.1),  # the first half is 20 % from the second
        (STEADY, [0.9, 1.3] * 2, "same", 10.0),  # its quartiles are 18 % to either side
        ([1.0], [1.25], "slower", 25.0),  # nothing is known of the noise
    ],
)
def test_a_change_is_one_if_it_is_beyond_the_noise(
    before: list[float], after: list[float], verdict: str, percent: float
) -> None:
    (change,) = compare_reports(report_of({"a": before}), report_of({"a": after})).changes
    assert (change.name, change.verdict) == ("a", verdict)
    assert change.percent == pytest.approx(percent, abs=0.05)


def test_the_noise_of_either_report_counts() -> None:
    noisy, steady = report_of({"a": [1.0, 1.0, 2.0, 2.0]}), report_of({"a": STEADY})
    for pair in ((noisy, steady), (steady, noisy)):
        (change,) = compare_reports(*pair).changes
        assert change.noise == 0.5


def test_reports_are_joined_by_name_in_the_order_of_the_first() -> None:
    first, second = report_of({"a": [1.0], "b": [2.0], "c": [3.0]}), report_of({"c": [3.0], "d": [4.0], "b": [1.0]})
    found = compare_reports(first, second)
    assert [(change.name, change.before, change.after) for change in found.changes] == [("b", 2, 1), ("c", 3, 3)]
    assert found.alone == ("a", "d")


def test_other_numbers_are_joined_too() -> None:
    first = report_of({}, figures=(Figure("peak", 3.0, "bytes"), Figure("old", 1.0, "")))
    second = report_of({}, figures=(Figure("peak", 4.0, "bytes"),))
    found = compare_reports(first, second)
    assert found.figures == ((Figure("peak", 3.0, "bytes"), Figure("peak", 4.0, "bytes")),)
    assert found.alone == ("old",)


def test_another_machine_version_or_setting_is_told_but_not_another_revision() -> None:
    versions = MACHINE["versions"] | {"torch": "2.13.0"}
    machine = MACHINE | {"driver": "590", "revision": "abc", "versions": versions}
    second = report_of({"a": [1.0]}, machine=machine, settings={"recipe": "pr1787", "gpus": 8, "steps": 3})
    assert compare_reports(report_of({"a": [1.0]}), second).differing == (
        "driver: 580.95.05 before, 590 after",
        "torch: 2.11.0+cu130 before, 2.13.0 after",
        "setting gpus: 1 before, 8 after",
        "setting steps: none before, 3 after",
    )


def test_failures_of_either_report_are_told() -> None:
    found = compare_reports(report_of({}, failures=("x broke",)), report_of({}, failures=("y broke",)))
    assert found.differing == ("before, this failed: x broke", "after, this failed: y broke")


def test_what_is_slower_than_asked_and_than_its_noise() -> None:
    first = report_of({"a": STEADY, "b": STEADY, "c": STEADY, "d": STEADY})
    second = report_of({"a": [1.02] * 4, "b": [1.04] * 4, "c": [0.9] * 4, "d": [1.0, 1.0, 1.2, 1.2]})
    found = compare_reports(first, second)
    assert [change.name for change in found.slower_than(3)] == ["b"]
    assert [change.name for change in found.slower_than(1)] == ["a", "b"]


def test_the_terminal_has_a_row_for_every_change() -> None:
    first, second = report_of({"a": [0.001], "b": [1.0]}), report_of({"a": [0.0015], "c": [1.0]})
    assert [line.split() for line in format_comparison(compare_reports(first, second)).splitlines()] == [
        ["name", "before", "ms", "after", "ms", "change", "%", "noise", "%", "verdict"],
        ["----", "---------", "--------", "--------", "-------", "-------"],
        ["a", "1", "1.5", "50", "0", "slower"],
        ["peak:", "3e+06", "->", "3e+06", "bytes"],
        ["in", "one", "of", "them", "only:", "b"],
        ["in", "one", "of", "them", "only:", "c"],
    ]


def test_reports_with_nothing_in_common_say_so() -> None:
    text = format_comparison(compare_reports(report_of({"a": [1.0]}), report_of({"b": [1.0]})))
    assert text.startswith("nothing was timed in both")


def test_the_json_has_changes_with_percent_and_numbers_before_and_after() -> None:
    values = compare_reports(report_of({"a": [1.0]}), report_of({"a": [1.5]})).to_dict()
    assert values["changes"] == [
        {"name": "a", "before": 1.0, "after": 1.5, "noise": 0.0, "verdict": "slower", "percent": 50.0}
    ]
    assert values["figures"] == [{"name": "peak", "value": 3_000_000, "unit": "bytes", "after": 3_000_000}]
    assert values["alone"] == values["differing"] == []
