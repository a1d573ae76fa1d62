"""Several processes started by one command: it works, it says what failed, and nothing is left running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # is there, under `if is_available()`

from golf.checkpoint import boundaries, find_checkpoint, load_checkpoint
from golf.distributed import open_world
from golf.files import read_json
from golf.launch import RankFailedError
from golf.log import read_events
from golf.ranks import rank_environment
from tests.children import SERVER
from tests.session_tools import Place, golf

ENDLESS = ("--set", "schedule.iterations=1000000", "--set", "run.log_every=1", "--set", "average.shadow_snapshots=0")


def start(place: Place, processes: int, *words: str) -> "subprocess.Popen[str]":
    """Start `golf train` on several processes, with a folder for temporary files of its own."""
    command = [sys.executable, "-m", "golf", "train", "pico.toml", "--name", "two", "--gpus", str(processes), *words]
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


@contextlib.contextmanager
def endless(place: Place, processes: int) -> Iterator["subprocess.Popen[str]"]:
    """Processes in the middle of a training that would not end."""
    events = place.run("two") / "events.jsonl"
    with start(place, processes, *ENDLESS) as process:
        try:
            wait_until(lambda: events.exists() and b'"step": 6' in events.read_bytes())
            yield process
        finally:
            process.kill()


def test_one_command_trains_on_two_processes_and_prints_one_document(place: Place) -> None:
    with start(place, 2, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out) == read_json(place.run("two") / "final.json")
    assert "Warning" not in err
    assert {manifest.world_size for manifest in boundaries(place.run("two"))} == {2}
    assert err.count("2 x cpu") == 1  # rank 0 alone speaks
    assert list((place.folder / "scratch").iterdir()) == []


def test_a_rank_that_is_killed_ends_the_command_with_7_and_its_number(place: Place) -> None:
    with endless(place, 4) as process:
        ranks = ranks_of(process)
        assert sorted(ranks) == [0, 1, 2, 3]
        started = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert time.monotonic() - started < 60
    assert err.endswith("Error: rank 1 died (signal 9); resume the run from its last boundary\n")
    assert "Traceback" not in err
    assert list((place.folder / "scratch").iterdir()) == []
    assert not any(lives(pid) for pid in ranks.values())
    for manifest in boundaries(place.run("two")):
        load_checkpoint(place.run("two") / f"{manifest.boundary}.json")
    read_events(place.run("two") / "events.jsonl")


def test_ctrl_c_saves_the_run_of_two_processes_and_exits_130(place: Place) -> None:
    with endless(place, 2) as process:
        ranks = ranks_of(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    sentence = next(line for line in err.splitlines() if line.startswith("Error: stopped at step "))
    assert err.count("Error: stopped at step ") == 1  # rank 0 alone speaks
    spec = sentence.rpartition(" ")[2]
    found = find_checkpoint(str(place.folder / spec), root=place.root)
    assert load_checkpoint(found).manifest.boundary == "interrupted"
    assert not any(lives(pid) for pid in ranks.values())
    read_events(place.run("two") / "events.jsonl")


def train_as_rank(rank: int, port: int, folder: Path, said: Path) -> None:
    """Train without end as one of four processes, as the body of a child, with a short patience for stopped ranks."""
    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(rank_environment(rank, 4, port))
    with open_world(stopped_seconds=2.0) as world:
        Place(folder).start("four", *ENDLESS[1::2], world=world)


def test_a_rank_that_is_stopped_in_training_ends_the_others_with_7_and_its_number(place: Place) -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    said = [place.folder / f"said-{rank}" for rank in range(4)]
    ranks = [
        SERVER.Process(target=train_as_rank, args=(rank, store.port, place.folder, said[rank])) for rank in range(4)
    ]
    events = place.run("four") / "events.jsonl"
    try:
        for process in ranks:
            process.start()
        wait_until(lambda: events.exists() and b'"step": 6' in events.read_bytes())
        os.kill(ranks[2].pid or 0, signal.SIGSTOP)
        started = time.monotonic()
        for rank in (0, 1, 3):
            ranks[rank].join(60)
        assert time.monotonic() - started < 30
        assert [process.exitcode for process in ranks] == [7, 7, None, 7]
        for rank in (0, 1, 3):
            assert "Error: rank 2 is stopped" in said[rank].read_text()
    finally:
        for process in ranks:
            process.kill()
            process.join()


def test_with_json_the_launcher_alone_prints_the_failure(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise RankFailedError(0, 2)

    words = ("train", finished.toml, "--root", finished.root, "--data", finished.folder / "nowhere", "--json")
    monkeypatch.setattr("golf.launch.run_together", failing)
    launcher = golf(capsys, *words, "--gpus", "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    rank = golf(capsys, *words)
    assert (launcher.code, rank.code) == (2, 2)
    assert launcher.json == {"error": "rank 0 failed with exit code 2; its message is above", "exit_code": 2}
    assert rank.out == ""
    assert "no data in" in rank.err


def test_ranks_are_started_before_torch_is_imported() -> None:
    code = "import sys, golf.launch, golf.ranks, golf.recipe, golf.tools.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
