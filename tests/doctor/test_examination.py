"""The whole examination: what is missing fails the checks that need it, and these alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from golf.doctor import examination as under_test
from golf.doctor.check import Check
from golf.doctor.examination import examine

ALWAYS = ["memory", "cpu cores", "cpu threads", "shared memory", "open files", "text encoding", "clock", "data"]


def named(name: str) -> Any:
    return lambda *values, **more: [Check(name, "ok", "1")]


def broken(*values: Any, **more: Any) -> Any:
    raise RuntimeError("broken")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every part replaced by one that takes no time and is well; a test breaks what it likes."""
    monkeypatch.setattr(under_test, "read_gpus", lambda: None)
    monkeypatch.setattr(under_test, "read_mounts", list)
    monkeypatch.setattr(under_test, "_examine_packages", named("packages"))
    monkeypatch.setattr(under_test, "_examine_gpus", lambda readings: (3, named("gpus")()))
    monkeypatch.setattr(under_test, "_examine_compiler", named("compiler"))
    monkeypatch.setattr(under_test, "_check_codec", lambda codec: Check(f"codec {codec}", "ok", "1"))
    monkeypatch.setattr(under_test, "_examine_disk", lambda root, mounts: (5, named("disk")()))
    monkeypatch.setattr(under_test, "examine_host", named("host"))
    monkeypatch.setattr(under_test, "_examine_data", named("data"))
    return monkeypatch


def verdicts(describe_attention: Any = lambda: ("plain", "")) -> dict[str, str]:
    checks = examine(root=Path("none"), data=None, describe_attention=describe_attention)
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check.verdict for check in checks}


@pytest.mark.usefixtures("light")
def test_every_part_is_examined_once() -> None:
    codecs = ["codec brotli", "codec zstd", "codec lzma"]
    assert list(verdicts()) == ["packages", "gpus", "attention", "compiler", *codecs, "disk", "host", "data"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("read_gpus", "nvidia-smi"),
        ("read_mounts", "mounts"),
        ("_examine_packages", "packages"),
        ("_examine_gpus", "gpus"),
        ("_examine_compiler", "compiler"),
        ("_examine_disk", "disk"),
        ("examine_host", "host"),
        ("_examine_data", "data"),
    ],
)
def test_a_part_that_breaks_fails_and_stops_no_other(light: pytest.MonkeyPatch, part: str, name: str) -> None:
    whole = verdicts()
    light.setattr(under_test, part, broken)
    assert verdicts() == {**whole, name: "fail"}


@pytest.mark.usefixtures("light")
def test_the_attention_is_what_the_caller_says_and_its_failure_is_told() -> None:
    checks = examine(root=Path("none"), data=None, describe_attention=lambda: ("of a kind", ""))
    assert Check("attention", "ok", "of a kind") in checks
    checks = examine(root=Path("none"), data=None, describe_attention=lambda: ("slow", "get another"))
    assert Check("attention", "warn", "slow", "get another") in checks
    assert verdicts(describe_attention=broken)["attention"] == "fail"


def test_facts_reach_the_checks_that_need_them(light: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def gpus(readings: Any) -> tuple[int, list[Check]]:
        seen["readings"] = readings
        return 3, []

    def disk(root: Path, mounts: Any) -> tuple[int, list[Check]]:
        seen.update(root=root, mounts=mounts)
        return 5, []

    def compiler(mounts: Any, gpus: int) -> list[Check]:
        seen.update(compiler=(mounts, gpus))
        return []

    def host(**values: int) -> list[Check]:
        seen.update(host=values)
        return []

    light.setattr(under_test, "read_gpus", lambda: ["reading"])
    light.setattr(under_test, "read_mounts", lambda: ["mount"])
    light.setattr(under_test, "_examine_gpus", gpus)
    light.setattr(under_test, "_examine_disk", disk)
    light.setattr(under_test, "_examine_compiler", compiler)
    light.setattr(under_test, "examine_host", host)
    light.setattr(under_test, "_examine_data", lambda data: seen.update(data=data) or [])
    examine(root=Path("a"), data=Path("b"), describe_attention=lambda: ("plain", ""))
    assert seen == {
        "readings": ["reading"],
        "root": Path("a"),
        "mounts": ["mount"],
        "compiler": (["mount"], 3),
        "host": {"gpus": 3, "checkpoint_bytes": 5},
        "data": Path("b"),
    }


def test_nvidia_smi_is_asked_before_torch_takes_memory(light: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(part: str, result: Any) -> Any:
        order.append(part)
        return result

    light.setattr(under_test, "read_gpus", lambda: noted("nvidia-smi", None))
    light.setattr(under_test, "_examine_gpus", lambda readings: noted("torch", (0, [])))
    light.setattr(under_test, "_examine_packages", lambda: noted("packages", []))  # they import torch
    verdicts()
    assert order[0] == "nvidia-smi"


@pytest.mark.parametrize(
    ("missing", "failing"),
    [
        (("torch", "pandas", "brotli"), {"package torch", "package brotli", "gpus", "disk", "codec zstd"}),
        (("packaging", "torch"), {"packages", "gpus", "disk"}),
    ],
    ids=["torch", "packaging"],
)
def test_without_a_package_the_doctor_still_speaks(tmp_path: Path, missing: tuple[str, ...], failing: set[str]) -> None:
    """In an interpreter of its own, in which importing these raises an ImportError."""
    code = f"import sys\nfor name in {missing!r}: sys.modules[name] = None\nfrom golf.cli import main\nmain()"
    words = ["doctor", "--root", str(tmp_path), "--json"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 4, ended.stderr
    checks = {check["name"]: check["verdict"] for check in json.loads(ended.stdout)["checks"]}
    assert {name for name, verdict in checks.items() if verdict == "fail"} >= failing
    assert checks.get("package pandas") in ("warn", None)  # no training needs it
    assert checks.keys() >= set(ALWAYS)
    assert "Traceback" not in ended.stderr
