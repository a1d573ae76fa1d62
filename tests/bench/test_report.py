"""A report goes to a file and comes back; for the terminal it is the machine, a table and the other numbers."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.bench.findings import Findings
from golf.bench.measurement import Figure, Measurement
from golf.bench.report import format_report, make_report, read_report, write_report
from golf.errors import BadFileError
from tests.bench.reports import MACHINE, report_of

REPORT = report_of({"a/forward": [2.5, 1.5], "b": [0.5]}, failures=("b: too slow",))


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == REPORT


def test_the_file_has_the_achieved_rates_for_other_readers(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "r.json")
    values = json.loads((tmp_path / "r.json").read_text())
    assert values["schema_version"] == 1
    assert [one["tb_per_second"] for one in values["measurements"]] == [0.5, 2.0]
    assert [one["tflop_per_second"] for one in values["measurements"]] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": None}, "it is not a result of golf bench; name a file that --out wrote"),
        ({"schema_version": 2}, "it is of schema version 2, this golf reads 1; upgrade golf"),
        ({"measurements": [{"name": "a"}]}, "an entry is missing or of the wrong kind"),
        ({"measurements": 3}, "an entry is missing or of the wrong kind"),
        ({"figures": [{"name": "a", "worth": 3}]}, "an entry is missing or of the wrong kind"),
        ({"machine": 3}, "an entry is missing or of the wrong kind"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(REPORT.to_dict() | change))
    with pytest.raises(BadFileError, match=reason):
        read_report(tmp_path / "r.json")


def test_a_file_that_is_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(BadFileError, match="it is not a result of golf bench"):
        read_report(tmp_path / "r.json")


def test_the_terminal_has_the_machine_the_times_in_milliseconds_and_the_other_numbers() -> None:
    head, *lines = format_report(REPORT).splitlines()
    assert head == "golf bench kernels, 2026-01-02T03:04:05+00:00, on 2 x NVIDIA H200, PyTorch 2.11.0+cu130"
    assert [line.split() for line in lines if line and "---" not in line] == [
        ["name", "ms", "low", "high", "n", "noise", "%", "TB/s", "TFLOP/s"],
        ["a/forward", "2000", "1750", "2250", "2", "66.67", "0.5", "1"],
        ["b", "500", "500", "500", "1", "-", "2", "4"],
        ["peak:", "3,000,000", "bytes"],
    ]


def test_times_and_shares_are_rounded_to_four_digits() -> None:
    share = Measurement.of("a", [0.00123456])
    shared = Measurement(name="b", seconds=1.0, low=1.0, high=1.0, count=1, share=0.876543)
    text = format_report(
        report_of({}, measurements=(share, shared), figures=(Figure("rate", 1_234_567.8, "tokens/s"),))
    )
    assert "1.235" in text
    assert "87.65" in text
    assert "rate: 1,235,000.0 tokens/s" in text


def test_a_report_of_a_cpu_says_that_it_is_one() -> None:
    text = format_report(report_of({"a": [1.0]}, machine=MACHINE | {"device": "cpu", "gpus": []}))
    assert "on AMD EPYC, PyTorch" in text
    assert text.endswith("measured on the CPU: this says nothing about the speed on a GPU")


def test_findings_become_a_report_of_now_and_of_this_machine() -> None:
    found = Findings([Measurement.of("a", [1.0])], [Figure("b", 2.0, "")], ["c"])
    report = make_report("step", found, torch.device("cpu"), settings={"gpus": 1})
    assert (report.command, report.settings, report.failures) == ("step", {"gpus": 1}, ("c",))
    assert (report.measurements, report.figures) == (tuple(found.measurements), tuple(found.figures))
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(report.time)
    assert 0 <= age.total_seconds() < 60
    assert torch.__version__.startswith(report.machine["versions"]["torch"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seconds", "1"),
        ("seconds", None),
        ("seconds", True),
        ("low", float("nan")),
        ("high", float("inf")),
        ("name", 5),
    ],
)
def test_a_time_that_is_no_number_is_refused_by_its_file(tmp_path: Path, key: str, value: object) -> None:
    values = REPORT.to_dict()
    values["measurements"][0][key] = value
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(BadFileError, match=r"r.json: .*(no finite number|is no text)"):
        read_report(tmp_path / "r.json")


def test_a_noise_that_is_no_number_is_refused(tmp_path: Path) -> None:
    values = REPORT.to_dict()
    values["measurements"][0]["noise"] = float("nan")
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(BadFileError, match="no finite number"):
        read_report(tmp_path / "r.json")
