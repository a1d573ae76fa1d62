"""The log: events that survive a kill, a console that speaks on rank 0 alone."""

import io
import json
import math
import os
import pty
import re
import resource
import time
from pathlib import Path

import pytest

from golf.errors import BadFileError, EnvironmentUnfitError, NumericalFaultError
from golf.log import Log, read_events
from tests.children import exit_code_of


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    with Log(path) as log:
        log.event("train", step=1, train_loss=3.5)
        log.event("boundary", step=1, boundary="init", parents=["a"], looping=False)
    train, boundary = read_events(path)
    assert train.pop("time") == pytest.approx(time.time(), abs=60)
    assert train == {"event": "train", "step": 1, "train_loss": 3.5}
    assert (boundary["parents"], boundary["looping"]) == (["a"], False)


def test_an_event_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    log = Log(tmp_path / "events.jsonl")
    log.event("train", step=1)
    assert len(read_events(tmp_path / "events.jsonl")) == 1
    log.close()


def test_a_second_log_appends(tmp_path: Path) -> None:
    for step in range(3):
        with Log(tmp_path / "events.jsonl") as log:
            log.event("train", step=step)
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [0, 1, 2]


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_line_that_a_kill_tore_is_dropped_on_reopening(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "train", "step": 2}\n'[:-cut])
    with Log(path) as log:
        log.event("train", step=3)
    assert [event["step"] for event in read_events(path)] == [1, 3]


def test_the_reader_passes_over_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "tr')
    assert read_events(path) == [{"event": "train", "step": 1}]


@pytest.mark.parametrize("line", ["", "{", "3", "[]", '{"step": 1}', "[" * 100_000])
def test_any_other_bad_line_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"event": "a"}}\n{line}\n{{"event": "b"}}\n')
    with pytest.raises(BadFileError, match="line 2 is not an event"):
        read_events(path)


def test_a_missing_log_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="No such file"):
        read_events(tmp_path / "events.jsonl")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_by_name(tmp_path: Path, value: float) -> None:
    log = Log(tmp_path / "events.jsonl")
    with pytest.raises(NumericalFaultError, match=f"event 'train': train_loss = {value} is not a finite number"):
        log.event("train", step=1, train_loss=value)
    assert not (tmp_path / "events.jsonl").exists()


def test_a_value_may_not_take_the_place_of_the_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'time'"):
        Log(tmp_path / "events.jsonl").event("train", time=3)


def test_other_ranks_say_and_record_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path / "events.jsonl", rank=1)
    log.event("train", step=1)
    log.note("hello")
    with log.progress(3, "work") as progress:
        progress.advance(3)
    assert not (tmp_path / "events.jsonl").exists()
    assert capsys.readouterr() == ("", "")


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Log().note("[bold]as it stands[/bold]")
    assert capsys.readouterr() == ("", "[bold]as it stands[/bold]\n")


def test_a_console_whose_reader_left_does_not_stop_the_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as stream:
        log = Log(stream=stream)
        log.note("nobody hears this")
        log.note("nor this")


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    with Log(stream=stream, progress_seconds=0.05).progress(200, "score") as progress:
        for _ in range(100):
            progress.advance(2)
            time.sleep(0.002)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 8
    assert all(re.fullmatch(r"score: \d+/200, \d+ s left", line) for line in lines)


def test_quick_work_shows_no_progress_line() -> None:
    stream = io.StringIO()
    with Log(stream=stream).progress(2, "score") as progress:
        progress.advance(2)
    assert stream.getvalue() == ""


def test_on_a_terminal_progress_is_a_bar_and_notes_keep_their_text() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        log = Log(stream=stream)
        with log.progress(4, "score") as progress:
            progress.advance(4)
        log.note("[1, 2] \N{SNOWMAN}")
        shown = ""
        while not shown.endswith("\r\n") or "\N{SNOWMAN}" not in shown:  # a terminal hands over what it has so far
            shown += os.read(master, 65536).decode()
    os.close(master)
    assert "4/4" in shown
    assert "\x1b[" in shown
    assert shown.endswith("[1, 2] \N{SNOWMAN}\r\n")


def write_until_full(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    log = Log(path)
    for step in range(100):
        log.event("train", step=step)


def test_a_full_disk_exits_5_and_leaves_whole_lines(tmp_path: Path) -> None:
    assert exit_code_of(write_until_full, tmp_path / "events.jsonl") == 5
    text = (tmp_path / "events.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == [0, 1, 2]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnfitError, match="events cannot be written here"):
        Log(tmp_path / "file" / "events.jsonl").event("train")
