"""Ctrl-C, SIGTERM and a hang-up: the folders that a benchmark made are gone, and so are the processes it started."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from golf.bench.interruption import ended_in_order
from golf.errors import InterruptedRunError
from tests.bench.test_start import stand_in
from tests.children import SERVER
from tests.session_tools import Place, golf_child

SENTENCE = "Error: interrupted; a benchmark has no result before its end, run it again\n"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def bench_child(said: Path, words: list[str | Path], folder: Path, python: str = sys.executable) -> None:
    """The body of a child process that keeps its temporary files in `folder` and starts `python` as Python."""
    tempfile.tempdir, sys.executable = str(folder), python
    golf_child(said, words)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """An empty folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_benchmark_whose_made_up_data_are_then_gone(
    finished: Place, tmp_path: Path, temporary: Path, number: int
) -> None:
    words = ["bench", "preflight", finished.toml, "--steps", "100000000"]
    child = SERVER.Process(target=bench_child, args=(tmp_path / "said", words, temporary))
    child.start()
    wait_until(lambda: bool(list(temporary.glob("golf-bench-*/manifest.json"))))
    os.kill(child.pid or 0, number)
    child.join(60)
    assert child.exitcode == 130
    assert list(temporary.iterdir()) == []
    said = (tmp_path / "said").read_text()
    assert said == SENTENCE


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_also_ends_the_process_that_a_benchmark_of_the_start_waits_for(
    finished: Place, tmp_path: Path, temporary: Path, number: int
) -> None:
    lines = [f"trap 'touch {tmp_path / 'told'}; exit 130' TERM", f"touch {tmp_path / 'begun'}"]
    python = stand_in(tmp_path, "\n".join([*lines, "sleep 30 > /dev/null & wait"]))
    words = ["bench", "start", finished.toml]
    child = SERVER.Process(target=bench_child, args=(tmp_path / "said", words, temporary, python))
    child.start()
    wait_until((tmp_path / "begun").exists)
    os.kill(child.pid or 0, number)
    child.join(60)
    assert child.exitcode == 130
    assert (tmp_path / "told").exists()
    assert list(temporary.iterdir()) == []
    assert (tmp_path / "said").read_text() == SENTENCE


def test_a_first_step_that_is_interrupted_leaves_the_sentence_to_its_caller(finished: Place, tmp_path: Path) -> None:
    endless = ["--set", "run.priming_steps=100000000", "--data", str(finished.data)]
    command = [sys.executable, "-m", "golf", "bench", "first-step", str(finished.toml), *endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "prime" in process.stderr.readline()
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Error" not in said


def test_every_rank_clears_up_and_one_of_them_speaks(finished: Place, temporary: Path) -> None:
    words = ["bench", "preflight", str(finished.toml), "--steps", "100000000", "--gpus", "2"]
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "golf", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until(lambda: len(list(temporary.glob("golf-bench-*/manifest.json"))) == 2)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []
    assert said.count(SENTENCE) == 1
    assert said.endswith("Error: interrupted; rank 0 has said how to go on, on stderr\n")


def test_a_second_signal_does_not_disturb_the_clearing_up_unless_it_is_ctrl_c() -> None:
    cleared = []

    def interrupted(second: int) -> None:
        with ended_in_order():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(second)
                cleared.append(second)

    for second in SIGNALS:
        with pytest.raises(InterruptedRunError):
            interrupted(second)
    assert cleared == [signal.SIGTERM, signal.SIGHUP]


def test_a_hang_up_that_is_ignored_stays_so_and_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_in_order():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
