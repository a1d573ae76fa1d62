"""Several processes started by one command: it works, it says what failed, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from golf.checkpoint import boundaries, find_checkpoint, load_checkpoint
from golf.errors import GolfError, UsageError, WorkerDiedError
from golf.files import read_json
from golf.launch import RankFailedError, launch
from golf.log import read_events
from tests.session_tools import Place, golf

ENDLESS = ("--set", "schedule.iterations=1000000", "--set", "run.log_every=1", "--set", "average.shadow_snapshots=0")


def start(place: Place, *words: str) -> "subprocess.Popen[str]":
    """Start `golf train` on two processes, with a folder for temporary files of its own."""
    command = [sys.executable, "-m", "golf", "train", "pico.toml", "--name", "two", "--gpus", "2", *words]
    scratch = place.folder / "scratch"
    scratch.mkdir()
    return subprocess.Popen(
        command,
        cwd=place.folder,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(process: "subprocess.Popen[str]") -> dict[int, int]:
    """The process id of each rank below a launcher."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                words = dict(word.partition("=")[::2] for word in (folder / "environ").read_text().split("\0"))
                if "RANK" in words:
                    found[int(words["RANK"])] = int(folder.name)
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def endless(place: Place) -> Iterator["subprocess.Popen[str]"]:
    """Two processes in the middle of a training that would not end."""
    events = place.run("two") / "events.jsonl"
    with start(place, *ENDLESS) as process:
        try:
            wait_until(lambda: events.exists() and b'"step": 6' in events.read_bytes())
            yield process
        finally:
            process.kill()


def test_one_command_trains_on_two_processes_and_prints_one_document(place: Place) -> None:
    with start(place, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out) == read_json(place.run("two") / "final.json")
    assert "Warning" not in err
    assert {manifest.world_size for manifest in boundaries(place.run("two"))} == {2}
    assert err.count("2 x cpu") == 1  # rank 0 alone speaks
    assert list((place.folder / "scratch").iterdir()) == []


def test_a_rank_that_is_killed_ends_the_command_with_7_and_its_number(
    place: Place, endless: "subprocess.Popen[str]"
) -> None:
    ranks = ranks_of(endless)
    assert sorted(ranks) == [0, 1]
    started = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, err = endless.communicate(timeout=60)
    assert endless.returncode == 7
    assert time.monotonic() - started < 60
    assert "Error: rank 1 died (signal 9); resume the run from its last boundary" in err
    assert list((place.folder / "scratch").iterdir()) == []
    assert not any(lives(pid) for pid in ranks.values())
    for manifest in boundaries(place.run("two")):
        load_checkpoint(place.run("two") / f"{manifest.boundary}.json")
    read_events(place.run("two") / "events.jsonl")


def test_ctrl_c_saves_the_run_of_two_processes_and_exits_130(place: Place, endless: "subprocess.Popen[str]") -> None:
    ranks = ranks_of(endless)
    endless.send_signal(signal.SIGINT)
    _, err = endless.communicate(timeout=60)
    assert endless.returncode == 130
    sentence = next(line for line in err.splitlines() if line.startswith("Error: stopped at step "))
    assert err.count("Error: stopped at step ") == 1  # rank 0 alone speaks
    spec = sentence.rpartition(" ")[2]
    found = find_checkpoint(str(place.folder / spec), root=place.root)
    assert load_checkpoint(found).manifest.boundary == "interrupted"
    assert not any(lives(pid) for pid in ranks.values())
    read_events(place.run("two") / "events.jsonl")


def failing(monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], *, at: dict[int, int] | None = None) -> GolfError:
    """What `launch` raises when the ranks end with these codes, at these seconds."""
    failures = {}
    for rank, code in codes.items():
        failures[rank] = ProcessFailure(local_rank=rank, pid=rank + 10, exitcode=code, error_file="nowhere")
        failures[rank].timestamp = (at or {}).get(rank, 100)

    def run(*arguments: str) -> None:
        raise ChildFailedError("golf", failures)

    monkeypatch.setattr("golf.launch.elastic_launch", lambda config, program: run)
    with pytest.raises(GolfError) as told:
        launch(["train", "demo"], 2)
    return told.value


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ({0: 1, 1: -9}, 1),  # rank 0 lost its peer and fell over it
        ({0: -15, 1: -9}, 1),  # rank 0 was ended by the launcher
        ({0: -9, 1: 1}, 0),
        ({0: -15, 1: -11}, 1),
        ({0: -15, 1: -15}, 0),
    ],
)
def test_the_rank_that_died_is_told_from_those_that_fell_over_it(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], rank: int
) -> None:
    error = failing(monkeypatch, codes)
    assert isinstance(error, WorkerDiedError)
    assert error.exit_code == 7
    assert f"rank {rank} died (signal {-codes[rank]})" in str(error)


@pytest.mark.parametrize(
    ("codes", "rank", "code"), [({0: 1, 1: 6}, 1, 6), ({0: 3, 1: -15}, 0, 3), ({0: 1, 1: 1}, 0, 1)]
)
def test_the_exit_code_is_that_of_the_rank_that_failed(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], rank: int, code: int
) -> None:
    error = failing(monkeypatch, codes)
    assert isinstance(error, RankFailedError)
    assert (error.exit_code, str(error)) == (code, f"rank {rank} failed with exit code {code}; its message is above")


def test_of_equal_failures_the_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rank 1 failed" in str(failing(monkeypatch, {0: 3, 1: 3}, at={0: 101, 1: 100}))


@pytest.mark.parametrize("processes", [3, 5, 6, 7])
def test_a_number_that_cannot_share_the_virtual_ranks_starts_nothing(processes: int) -> None:
    with pytest.raises(UsageError, match=f"{processes} processes: use 1, 2, 4 or 8"):
        launch(["train", "demo"], processes)


def test_with_json_the_launcher_alone_prints_the_failure(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", finished.toml, "--root", finished.root, "--data", finished.folder / "nowhere", "--json")
    failing(monkeypatch, {0: 2, 1: 2})  # what the ranks below have done
    launcher = golf(capsys, *words, "--gpus", "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    rank = golf(capsys, *words)
    assert (launcher.code, rank.code) == (2, 2)
    assert launcher.json == {"error": "rank 0 failed with exit code 2; its message is above", "exit_code": 2}
    assert rank.out == ""
    assert "no data in" in rank.err
