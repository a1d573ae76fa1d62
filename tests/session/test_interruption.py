"""Ctrl-C, SIGTERM and a hang-up: the run is saved, the exit code is 130, and the sentence says how to continue."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf.averaging import Averages
from golf.checkpoint import find_checkpoint, load_checkpoint
from golf.errors import InterruptedRunError
from golf.log import read_events
from golf.saver import Saver
from tests.children import SERVER
from tests.session_tools import Place, cut_back, golf_child

ENDLESS = ("--set", "schedule.iterations=1000000", "--set", "run.log_every=1", "--set", "average.shadow_snapshots=0")


def words(place: Place, name: str) -> list[str | Path]:
    return ["train", place.toml, "--data", place.data, "--root", place.root, "--name", name, *ENDLESS]


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_training(place: Place, name: str) -> bool:
    path = place.run(name) / "events.jsonl"
    return path.exists() and b'"step": 6' in path.read_bytes()


def check_interrupted(place: Place, name: str, code: int | None, said: str) -> None:
    """Assert that the run was saved, that its events are whole, and that the sentence names the way on."""
    assert code == 130
    sentence = next(line for line in said.splitlines() if line.startswith("Error: stopped at step "))
    spec = sentence.rpartition("continue with: golf train --resume ")[2]
    manifest = load_checkpoint(find_checkpoint(spec, root=place.root)).manifest
    assert manifest.boundary == "interrupted"
    assert f"stopped at step {manifest.step};" in sentence
    steps = [event["step"] for event in read_events(place.run(name) / "events.jsonl") if event["event"] == "train"]
    assert steps == list(range(1, manifest.step + 1))
    assert b"Traceback" not in said.encode()
    assert not list(place.run(name).rglob(".golf-tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_run_and_exits_130(place: Place, number: int) -> None:
    said = place.folder / "said"
    child = SERVER.Process(target=golf_child, args=(said, words(place, "stopped")))
    child.start()
    wait_until(lambda: is_training(place, "stopped"))
    os.kill(child.pid or 0, number)
    child.join(30)
    check_interrupted(place, "stopped", child.exitcode, said.read_text())


def test_ctrl_c_saves_a_run_that_was_started_by_the_command(place: Place) -> None:
    command = [sys.executable, "-m", "golf", *map(str, words(place, "stopped"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until(lambda: is_training(place, "stopped"))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    check_interrupted(place, "stopped", process.returncode, said)


def save_for_ever(saver: Saver, names: list[str], *rest: object) -> None:
    if names == ["interrupted"]:
        saver.folder.results.mkdir()
        time.sleep(600)


def golf_child_that_saves_for_ever(said: Path, line: list[str | Path]) -> None:
    Saver.save = save_for_ever  # type: ignore[assignment,method-assign]  # in this child alone
    golf_child(said, line)


def test_a_second_ctrl_c_acts_at_once(place: Place) -> None:
    said = place.folder / "said"
    child = SERVER.Process(target=golf_child_that_saves_for_ever, args=(said, words(place, "stopped")))
    child.start()
    wait_until(lambda: is_training(place, "stopped"))
    os.kill(child.pid or 0, signal.SIGINT)
    wait_until((place.run("stopped") / "results").exists)  # the saving has begun, and would last ten minutes
    os.kill(child.pid or 0, signal.SIGINT)
    child.join(20)
    assert child.exitcode == 130
    assert "interrupted; everything finished is on disk" in said.read_text()
    read_events(place.run("stopped") / "events.jsonl")


def test_a_signal_that_was_ignored_stays_ignored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup does with SIGHUP."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send_at_first_step(monkeypatch, signal.SIGHUP)
        assert place.start("nohup")["steps"] == 20
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_after_an_interruption_the_signals_are_as_before(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    send_at_first_step(monkeypatch, signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped at step 1"):
        place.start("stopped")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def send_at_first_step(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    update = Averages.update

    def pressed(averages: Averages, **values: Any) -> None:
        update(averages, **values)
        if values["step"] == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Averages, "update", pressed)


def pressed(*args: object, **values: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("phase", ["golf.posttrain._rehearse_backward", "golf.train.prime"])
def test_before_the_first_step_ctrl_c_says_to_start_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(phase, pressed)
    with pytest.raises(InterruptedRunError, match=r"nothing saved yet; start it again with the same command$"):
        place.start("stopped")
    monkeypatch.undo()
    assert place.start("stopped")["steps"] == 20


@pytest.mark.parametrize("phase", ["golf.workbench.evaluate", "golf.workbench.collect_hessians"])
def test_after_the_last_step_ctrl_c_says_how_to_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    cut_back(place, "done", "lr_floor")
    monkeypatch.setattr(phase, pressed)
    with pytest.raises(InterruptedRunError, match="continue with: golf train --resume ") as told:
        place.resume("done")
    monkeypatch.undo()
    spec = str(told.value).rpartition(" ")[2]
    assert find_checkpoint(spec, root=Path("elsewhere")).stem == "final_ema"
    assert place.resume("done")["steps"] == 20


def test_ctrl_c_while_the_last_weights_are_saved_is_heeded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Saver.finish

    def late(saver: Saver, *args: Any) -> str:
        pressed()
        return finish(saver, *args)

    monkeypatch.setattr(Saver, "finish", late)
    with pytest.raises(InterruptedRunError, match=r"continue with: golf train --resume .*/stopped$"):
        place.start("stopped")
    monkeypatch.undo()
    assert not (place.run("stopped") / "final.json").exists()
    assert place.resume("stopped")["boundary"] == "final_ema"
