"""Several processes of one command: who is blamed, who is given time, and that nobody lives on."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from golf.errors import GolfError, InterruptedRunError, UsageError, WorkerDiedError
from golf.launch import RankFailedError, blame, launch, run_together
from tests.session.test_launch import lives, wait_until

START = "import os, signal, subprocess, sys, time\nrank = int(os.environ['RANK'])\n"


def together(program: str, *, processes: int = 4, seconds: float = 20.0) -> tuple[GolfError | None, float]:
    """Run a small program in place of a training on several ranks; what was raised, and after how many seconds."""
    started, raised = time.monotonic(), None
    try:
        run_together([sys.executable, "-S", "-c", START + program], processes, grace_seconds=seconds)
    except GolfError as error:
        raised = error
    return raised, time.monotonic() - started


def test_ranks_that_end_well_are_no_failure() -> None:
    assert together("assert os.environ['WORLD_SIZE'] == '3'", processes=3)[0] is None


def test_the_first_rank_that_fails_ends_the_others_at_once() -> None:
    error, seconds = together("sys.exit(3) if rank == 2 else time.sleep(60)")
    assert isinstance(error, RankFailedError)
    assert (str(error), error.exit_code) == ("rank 2 failed with exit code 3; its message is above", 3)
    assert seconds < 20


def test_ranks_that_heed_no_signal_are_killed_after_the_grace() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1)\n"
    error, seconds = together(deaf + "os.kill(os.getpid(), 9 if rank == 1 else 0)\ntime.sleep(60)", seconds=2.0)
    assert str(error) == "rank 1 died (signal 9); resume the run from its last boundary"
    assert 3.0 < seconds < 20


def test_a_rank_that_has_work_to_save_is_given_the_time(tmp_path: Path) -> None:
    program = f"""
def save(*_):
    time.sleep(1)
    open({str(tmp_path / "saved")!r}, "w").close()
    sys.exit()

signal.signal(signal.SIGTERM, save)
open({str(tmp_path)!r} + f"/ready-{{rank}}", "w").close()
while rank or not os.path.exists({str(tmp_path / "ready-1")!r}):
    time.sleep(0.01)
sys.exit(5)
"""
    error, _ = together(program, processes=2)
    assert "rank 0 failed with exit code 5" in str(error)
    assert (tmp_path / "saved").exists()


def test_the_stopped_rank_is_named_not_those_that_missed_it_and_gets_no_grace() -> None:
    program = "os.kill(os.getpid(), signal.SIGSTOP if rank == 2 else 0)\ntime.sleep(1)\nsys.exit(7)"
    error, seconds = together(program, seconds=30.0)
    assert isinstance(error, WorkerDiedError)
    assert str(error) == "rank 2 is stopped; resume the run from its last boundary"
    assert seconds < 20


def test_a_ranks_helpers_end_with_it(tmp_path: Path) -> None:
    """They are of its session."""
    program = f"""
if rank == 0:
    helper = subprocess.Popen(["sleep", "60"])
    open({str(tmp_path / "draft")!r}, "w").write(str(helper.pid))
    os.rename({str(tmp_path / "draft")!r}, {str(tmp_path / "helper")!r})
    time.sleep(60)
while not os.path.exists({str(tmp_path / "helper")!r}):
    time.sleep(0.01)
sys.exit(3)
"""
    assert "rank 1 failed with exit code 3" in str(together(program, processes=2)[0])
    helper = int((tmp_path / "helper").read_text())
    wait_until(lambda: not lives(helper), seconds=20)  # it was sent its signal, and has still to act on it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_sent_on_to_every_rank_which_is_then_waited_for(tmp_path: Path, number: int) -> None:
    program = f"""
def save(number, _):
    time.sleep(0.5 * rank)
    open({str(tmp_path)!r} + f"/{{rank}}-{{number}}", "w").close()
    sys.exit(130)

for number in (1, 2, 15):
    signal.signal(number, save)
open({str(tmp_path)!r} + f"/ready-{{rank}}", "w").close()
time.sleep(60)
"""
    launcher = threading.get_ident()

    def press() -> None:
        wait_until(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(3)))
        signal.pthread_kill(launcher, number)

    thread = threading.Thread(target=press)
    thread.start()
    error, _ = together(program, processes=3)
    thread.join()
    assert isinstance(error, InterruptedRunError)
    assert {path.name for path in tmp_path.glob("?-*")} == {f"{rank}-{int(number)}" for rank in range(3)}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """As nohup does with SIGHUP."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        error, _ = together("sys.exit(0 if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else 3)", processes=2)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert error is None


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ({0: 1, 1: -9}, 1),  # rank 0 lost its peer and fell over it
        ({0: -15, 1: -9}, 1),  # rank 0 was ended by the launcher
        ({0: 7, 1: -9}, 1),  # rank 0 missed it
        ({0: -9, 1: 1}, 0),
        ({0: -15, 1: -11}, 1),
        ({0: -15, 1: -15}, 0),
    ],
)
def test_the_rank_that_died_is_told_from_those_that_fell_over_it(codes: dict[int, int], rank: int) -> None:
    error = blame(codes)
    assert isinstance(error, WorkerDiedError)
    assert error.exit_code == 7
    assert f"rank {rank} died (signal {-codes[rank]})" in str(error)


@pytest.mark.parametrize(
    ("codes", "rank", "code"),
    [
        ({0: 1, 1: 6}, 1, 6),
        ({0: 3, 1: -15}, 0, 3),
        ({0: 1, 1: 1}, 0, 1),
        ({0: 7, 1: 1}, 1, 1),
        ({0: 7, 1: 5}, 1, 5),
        ({0: 0, 1: 7}, 1, 7),
        ({0: 0, 1: 130}, 1, 130),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed(codes: dict[int, int], rank: int, code: int) -> None:
    error = blame(codes)
    assert isinstance(error, RankFailedError)
    assert (error.exit_code, str(error)) == (code, f"rank {rank} failed with exit code {code}; its message is above")


def test_an_unknown_exit_code_is_told() -> None:
    assert str(blame({0: 0, 1: 99})) == "rank 1 died (exit code 99); resume the run from its last boundary"


def test_of_equal_failures_the_first_is_told() -> None:
    assert "rank 1 failed" in str(blame({1: 3, 0: 3}))


@pytest.mark.parametrize("codes", [{0: 130, 1: 130}, {0: 0, 1: 130}, {0: -2, 1: -9}, {1: 1, 0: 130}])
def test_ranks_that_were_interrupted_have_not_failed_if_rank_0_has_not(codes: dict[int, int]) -> None:
    error = blame(codes, interrupted=True)
    assert isinstance(error, InterruptedRunError)
    assert str(error) == "interrupted; rank 0 has said how to go on, on stderr"


@pytest.mark.parametrize(("codes", "code"), [({0: 5, 1: 130}, 5), ({1: 6, 0: 6}, 6), ({0: -9, 1: -2}, 7)])
def test_a_failure_of_rank_0_is_told_though_the_run_was_interrupted(codes: dict[int, int], code: int) -> None:
    error = blame(codes, interrupted=True)
    assert error is not None
    assert error.exit_code == code


def test_an_interrupted_rank_0_that_never_ended_has_saved_nothing() -> None:
    error = blame({1: 130}, interrupted=True)
    assert isinstance(error, InterruptedRunError)
    assert "rank 0 had not saved the run after 300 s" in str(error)


@pytest.mark.parametrize("interrupted", [False, True])
def test_all_well_is_well_even_if_the_interruption_came_too_late(interrupted: bool) -> None:
    assert blame({0: 0, 1: 0}, interrupted=interrupted) is None


def test_a_failed_rank_is_not_excused_by_one_that_happens_to_be_stopped() -> None:
    assert "rank 0 failed with exit code 5" in str(blame({0: 5}, stopped=[1]))


@pytest.mark.parametrize("processes", [3, 5, 6, 7])
def test_a_number_that_cannot_share_the_virtual_ranks_starts_nothing(processes: int) -> None:
    with pytest.raises(UsageError, match=f"{processes} processes: use 1, 2, 4 or 8"):
        launch(["train", "demo"], processes)
