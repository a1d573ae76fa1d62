"""A start is timed from outside: twice, with one folder for everything that is compiled, empty the first time."""

import json
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.bench import start
from golf.bench.start import take_first_step, time_starts
from golf.bench.synthetic import make_dataset
from golf.distributed import single_world
from golf.errors import WorkerDiedError
from golf.log import Log
from golf.model.plan import LayerPlan
from golf.train_state import TrainState
from tests.pico import pico_recipe

CACHES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
)


def stand_in(folder: Path, body: str) -> str:
    """A program that is called instead of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_times_are_those_between_the_stamps_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    stamps = {"import": 101.0, "build": 103.0, "prime": 110.0, "first step": 110.5}
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"echo '{json.dumps(stamps)}'"))
    found = {one.name: (one.seconds, one.count) for one in time_starts(["pr1787"]).measurements}
    parts = {"": 10.5, "/import": 1.0, "/build": 2.0, "/prime": 7.0, "/first step": 0.5}
    assert found == {f"start/{label}{part}": (value, 1) for label in ("cold", "warm") for part, value in parts.items()}


def test_both_processes_have_the_same_words_and_caches_which_are_empty_at_first_and_removed_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    lines = [f'echo "$*" >> {said}', *(f'echo "${name}" >> {said}' for name in CACHES)]
    lines += [f'ls -d "$TRITON_CACHE_DIR" >> {said} 2>/dev/null || echo none >> {said}', 'mkdir "$TRITON_CACHE_DIR"']
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "\n".join([*lines, "echo '{\"first step\": 1e12}'"])))
    time_starts(["a.toml", "--set", "x.y=z w"])
    (words, *caches, before), (again, *filled, after) = (said.read_text().splitlines()[at : at + 7] for at in (0, 7))
    assert words == again == "-m golf bench first-step a.toml --set x.y=z w --json"
    assert caches == filled
    assert len(set(caches)) == len(CACHES)
    assert before == "none"
    assert after == caches[1]
    assert not Path(caches[1]).parent.exists()


def test_a_process_that_fails_is_told_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "exit 5"))
    with pytest.raises(WorkerDiedError, match="the first step ended with exit code 5; its message is above"):
        time_starts(["pr1787"])


def test_the_stamps_of_a_first_step_are_in_order_and_after_now(tmp_path: Path) -> None:
    recipe = pico_recipe("run.priming_steps=1")
    before = time.monotonic()
    dataset, world = make_dataset(tmp_path, recipe), single_world(torch.device("cpu"))
    stamps = take_first_step(recipe, dataset, world, Log(rank=1))
    assert list(stamps) == ["import", "build", "prime", "first step"]
    assert before < stamps["import"] < stamps["build"] < stamps["prime"] < stamps["first step"]


def test_the_step_is_one_and_comes_after_the_priming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, said = pico_recipe(), list[str]()
    monkeypatch.setattr(start, "prime", lambda *rest, **settings: said.append(f"prime {settings}"))

    taken = TrainState.forward_backward

    def watched(state: TrainState, plan: LayerPlan, *, late_qat: bool) -> Tensor:
        said.append("step")
        return taken(state, plan, late_qat=late_qat)

    monkeypatch.setattr(TrainState, "forward_backward", watched)
    take_first_step(recipe, make_dataset(tmp_path, recipe), single_world(torch.device("cpu")), Log(rank=1))
    assert said == ["prime {'keep_muon_momentum': False}", "step"]
