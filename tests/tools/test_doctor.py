"""golf doctor: what this machine is told, both forms of the result, and the exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from golf.doctor import examination
from golf.doctor.check import Check
from tests.pico import pico_dataset
from tests.session_tools import golf

OK, WARN, FAIL = Check("a", "ok", "1"), Check("b", "warn", "2", "do it"), Check("c", "fail", "3", "leave it")


def found(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Let the examination find these."""
    monkeypatch.setattr(examination, "examine", lambda **settings: list(checks))


@pytest.mark.parametrize(
    ("checks", "verdict", "code"), [([OK], "ok", 0), ([OK, WARN], "warn", 0), ([FAIL, WARN, OK], "fail", 4)]
)
def test_the_exit_code_is_4_if_anything_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, checks: list[Check], verdict: str, code: int
) -> None:
    found(monkeypatch, *checks)
    said = golf(capsys, "doctor", "--json")
    assert (said.code, said.json["verdict"]) == (code, verdict)
    assert [row["name"] for row in said.json["checks"]] == [check.name for check in checks]
    assert golf(capsys, "doctor").code == code


def test_the_terminal_gets_every_check_and_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, OK, FAIL)
    lines = golf(capsys, "doctor").out.splitlines()
    assert lines[:3] == ["ok    a  1", "fail  c  3", "         -> leave it"]
    assert lines[-1] == "fail: 2 checks: 1 failed, 0 warned"


def test_the_folders_are_those_of_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def examine(*, root: Path, data: Path | None, describe_attention: Callable[[], str]) -> list[Check]:
        seen.append((root, data))
        return [OK]

    monkeypatch.setattr(examination, "examine", examine)
    golf(capsys, "doctor")
    golf(capsys, "doctor", "--root", "a", "--data", "b")
    assert seen == [(Path("checkpoints"), None), (Path("a"), Path("b"))]


def test_this_machine_will_do_for_the_tests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Really examined; what it lacks for a record is at most a warning or a disk too small for one."""
    data = pico_dataset(tmp_path / "data").folder
    said = golf(capsys, "doctor", "--root", tmp_path / "checkpoints", "--data", data, "--json")
    rows = {row["name"]: row for row in said.json["checks"]}
    assert {"python", "package torch", "cuda", "gpus", "attention", "triton cache", "codec brotli"} <= rows.keys()
    assert {"disk space", "disk speed", "memory", "cpu cores", "cpu threads", f"data {data}"} <= rows.keys()
    sound = ["python", "package torch", "attention", "codec brotli", "codec zstd", "codec lzma", "disk speed"]
    assert [rows[name]["verdict"] for name in sound] == ["ok"] * 7
    assert rows[f"data {data}"]["value"].startswith("2 training and 1 validation shards")
    assert "scaled_dot_product_attention" in rows["attention"]["value"]
    assert all(bool(row["remedy"]) == (row["verdict"] != "ok") for row in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_root_that_is_a_file_ends_with_exit_code_4(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part in ("_examine_packages", "_examine_compiler", "_examine_data", "examine_host"):
        monkeypatch.setattr(examination, part, lambda *values, **more: [])
    (tmp_path / "file").write_text("")
    said = golf(capsys, "doctor", "--root", tmp_path / "file", "--json")
    assert said.code == 4
    failed = [row for row in said.json["checks"] if row["verdict"] == "fail"]
    assert [(row["name"], row["value"]) for row in failed] == [("disk", f"{tmp_path / 'file'} is no folder")]
