"""Other processes seen from outside, and the watch over them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from golf.peers import has_ended, identity, is_stopped, watched


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started
        started.kill()


def stop(process: "subprocess.Popen[bytes]") -> str:
    """Stop it; return its identity."""
    known = identity(str(process.pid))
    process.send_signal(signal.SIGSTOP)
    wait_until_stopped(process)
    return known


def wait_until_stopped(process: "subprocess.Popen[bytes]") -> None:
    os.waitpid(process.pid, os.WUNTRACED)


def test_an_identity_is_the_same_from_inside_and_outside() -> None:
    assert identity() == identity(str(os.getpid()))
    assert identity().split()[0] == str(os.getpid())


def test_the_identity_of_a_process_that_cannot_be_seen_is_empty() -> None:
    assert identity("99999999") == ""


def test_two_processes_differ_in_more_than_their_number(process: "subprocess.Popen[bytes]") -> None:
    assert identity().split()[1] != identity(str(process.pid)).split()[1]


def test_a_process_is_stopped_from_the_signal_until_it_goes_on(process: "subprocess.Popen[bytes]") -> None:
    known = identity(str(process.pid))
    before, after = is_stopped(known), is_stopped(stop(process))
    process.send_signal(signal.SIGCONT)
    os.waitpid(process.pid, os.WCONTINUED)
    assert (before, after, is_stopped(known)) == (False, True, False)


def test_a_name_that_looks_like_a_state_is_not_taken_for_one(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b"
    shutil.copy(str(shutil.which("sleep")), program)
    with subprocess.Popen([program, "60"]) as started:
        known = stop(started)
        assert (is_stopped(known), has_ended(known)) == (True, False)
        started.kill()


def test_a_process_that_nobody_has_missed_yet_has_ended(process: "subprocess.Popen[bytes]") -> None:
    known = identity(str(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # and is still in the table
    assert has_ended(known)


def test_a_process_whose_number_was_given_again_has_ended(process: "subprocess.Popen[bytes]") -> None:
    other = f"{process.pid} 1"
    stop(process)
    assert (has_ended(other), is_stopped(other)) == (True, False)


def test_of_a_process_that_was_never_seen_nothing_is_known() -> None:
    assert (has_ended(""), is_stopped("")) == (False, False)


def test_a_process_that_stays_stopped_is_told_once_with_its_rank(process: "subprocess.Popen[bytes]") -> None:
    told: list[int] = []
    with watched({1: identity(), 3: stop(process)}, told.append, seconds=0.15):
        end = time.monotonic() + 30
        while not told and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
    assert told == [3]


def test_a_process_that_goes_on_in_time_is_not_told(process: "subprocess.Popen[bytes]") -> None:
    told: list[int] = []
    known = stop(process)
    with watched({3: known}, told.append, seconds=0.6):
        time.sleep(0.35)
        process.send_signal(signal.SIGCONT)
        os.waitpid(process.pid, os.WCONTINUED)
        time.sleep(0.1)
        stop(process)
        time.sleep(0.35)
    assert told == []


def test_after_the_block_nobody_watches(process: "subprocess.Popen[bytes]") -> None:
    told: list[int] = []
    with watched({3: stop(process)}, told.append, seconds=0.3):
        pass
    time.sleep(0.5)
    assert told == []
