"""Steps are timed as the training takes them, in parts that add up, with what they did and whether they compiled."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.bench import training
from golf.bench.ceilings import Ceilings
from golf.bench.findings import Findings
from golf.bench.flop import model_flop
from golf.bench.synthetic import make_dataset
from golf.bench.training import take_steps, time_steps
from golf.data.documents import Batch
from golf.distributed import World, single_world
from golf.model.plan import plan_layers
from golf.optim.optimizer import Optimizer
from golf.recording import Recorder
from golf.train_state import TrainState
from tests.pico import pico_recipe
from tests.ranks import run_ranks
from tests.session_tools import watch_visits

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e9, 1e9)


@contextlib.contextmanager
def pico_state(folder: Path, world: World, *overrides: str) -> Iterator[TrainState]:
    recipe = pico_recipe(*overrides)
    state = TrainState.build(recipe, make_dataset(folder, recipe), world)
    with contextlib.closing(state.loader):
        yield state


def time_pico(world: World, folder: Path, *overrides: str, steps: int = 3) -> Findings:
    with pico_state(folder / f"data-{world.rank}", world, *overrides) as state:
        plans = {looping: plan_layers(state.recipe.model, looping=looping) for looping in (False, True)}
        return time_steps(state, plans, world, CEILINGS, steps=steps)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return time_pico(single_world(CPU), tmp_path_factory.mktemp("steps"))


def test_a_step_with_the_loop_off_and_on_is_timed_whole_and_in_parts(found: Findings) -> None:
    parts = ["", "/forward + backward", "/forward", "/backward", "/optimizer", "/averages"]
    names = [one.name for one in found.measurements]
    assert names == [f"step/{label}{part}" for label in ("loop off", "loop on") for part in parts]
    assert {one.count for one in found.measurements} == {3}


def test_steps_are_of_the_graph_that_their_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visits = watch_visits(monkeypatch)
    time_pico(single_world(CPU), tmp_path, steps=3)
    assert visits == (2 + 3 + 3) * [4] + (2 + 3 + 3) * [6]  # the warm-up, the steps, the forwards alone


def test_the_arithmetic_of_a_step_is_that_of_its_plan_a_third_of_it_forward(found: Findings) -> None:
    config = pico_recipe().model
    times = {one.name: one for one in found.measurements}
    for label, looping in (("loop off", False), ("loop on", True)):
        flop = model_flop(config, plan_layers(config, looping=looping), 256)
        parts = ("", "/forward + backward", "/forward", "/backward", "/optimizer")
        assert [times[f"step/{label}{part}"].flop for part in parts] == [flop, flop, flop // 3, flop - flop // 3, 0]


def test_a_share_is_of_the_ceilings_given(found: Findings) -> None:
    whole = found.measurements[0]
    assert whole.share == whole.flop / 1e9 / whole.seconds


def test_the_throughput_is_that_of_the_median_step(found: Findings) -> None:
    rates = {one.name: one.value for one in found.figures if one.unit == "tokens/s"}
    times = {one.name: one.seconds for one in found.measurements}
    assert rates == {f"step/{label}/throughput": 256 / times[f"step/{label}"] for label in ("loop off", "loop on")}


def test_no_memory_of_a_gpu_is_claimed_on_a_cpu(found: Findings) -> None:
    assert [one.name for one in found.figures if one.unit == "bytes"] == []


def test_nothing_is_compiled_where_nothing_is_compiled(found: Findings) -> None:
    counts = {one.name: one.value for one in found.figures if "compiled" in one.name}
    assert counts == {"step/loop off/compiled after the warm-up": 0, "step/loop on/compiled after the warm-up": 0}
    assert found.failures == []


def test_a_recipe_without_a_loop_has_one_kind_of_step(tmp_path: Path) -> None:
    found = time_pico(single_world(CPU), tmp_path, "model.loop=false", "schedule.loop_at=false")
    assert {one.name.split("/")[1] for one in found.measurements} == {"loop off"}


def test_the_parts_of_a_step_add_up_to_it(tmp_path: Path) -> None:
    with pico_state(tmp_path, single_world(CPU)) as state:
        plan = plan_layers(state.recipe.model, looping=False)
        laps = take_steps(state, plan, single_world(CPU), 3)
    forward = [0.25 * seconds for seconds in laps["forward + backward"]]
    whole, both, before, after, optimizer, averages = training._parts("x", laps, forward, 12)
    sums = [sum(parts) for parts in zip(laps["forward + backward"], laps["optimizer"], laps["averages"], strict=True)]
    assert whole.seconds == pytest.approx(sorted(sums)[1], rel=1e-12)
    assert both.seconds == pytest.approx(before.seconds + after.seconds, rel=1e-12)
    assert optimizer.seconds == sorted(laps["optimizer"])[1]
    assert averages.seconds == sorted(laps["averages"])[1]


def test_weights_and_averages_move_with_every_step(tmp_path: Path) -> None:
    with pico_state(tmp_path, single_world(CPU)) as state:
        before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        ema = {name: tensor.clone() for name, tensor in state.averages.ema.items()}
        take_steps(state, plan_layers(state.recipe.model, looping=True), single_world(CPU), 2)
        assert state.loader.position()["step"] == 2
        assert not torch.equal(before["blocks.0.mlp.proj.weight"], state.model.state_dict()["blocks.0.mlp.proj.weight"])
        assert not torch.equal(ema["blocks.0.mlp.proj.weight"], state.averages.ema["blocks.0.mlp.proj.weight"])


def test_what_is_compiled_while_steps_are_timed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Optimizer.step, 0

    def compiling(optimizer: Optimizer, **values: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls <= 4:  # two of the warm-up, two of the timed ones
            torch.compile(lambda x: x + calls, backend="eager", dynamic=False)(torch.ones(3))
        return step(optimizer, **values)

    torch._dynamo.reset()
    monkeypatch.setattr(Optimizer, "step", compiling)
    found = time_pico(single_world(CPU), tmp_path, "model.loop=false", "schedule.loop_at=false")
    assert [one.value for one in found.figures if "compiled" in one.name] == [2]
    sentence = "step/loop off: 2 graphs and 0 Triton kernels compiled or loaded during 3 steps after the warm-up"
    assert found.failures == [sentence]


class FullUp(Recorder[Any]):
    """A recorder that has a recording of each loop's first four batches and no room for more."""

    def __call__(self, batch: Batch, key: Any) -> torch.Tensor:
        of_loop = [place for place in self.recordings if place[0] == key]  # type: ignore[index]  # places are tuples
        if len(of_loop) < 4:
            self.recordings[key, len(of_loop)] = None  # type: ignore[assignment]  # nobody replays it
        else:
            self.unrecorded += 1
        return self.function(batch, key)


def test_batches_that_are_not_replayed_while_steps_are_timed_are_a_failure(tmp_path: Path) -> None:
    with pico_state(tmp_path, single_world(CPU), "run.rows_per_micro_batch=8") as state:
        state.gradient.recorder = FullUp(state.gradient.recorder.function, CPU, records=False)
        plans = {looping: plan_layers(state.recipe.model, looping=looping) for looping in (False, True)}
        found = time_steps(state, plans, single_world(CPU), CEILINGS, steps=5)  # after two of the warm-up
    assert found.failures == [
        "step/loop off: 3 batches not replayed during 5 steps, all 4 recordings are of other shapes",
        "step/loop on: 3 batches not replayed during 5 steps, all 8 recordings are of other shapes",
    ]


def test_the_peak_of_memory_is_that_of_the_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    device, said = torch.device("cuda"), list[torch.device]()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", said.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append(CPU))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 9)
    training._forget_peak(device)
    assert said == [CPU, device]
    figures = {
        recorded: [(one.name, one.value) for one in training._peak("step/loop on", device, recorded=recorded)]
        for recorded in (False, True)
    }
    held = ("step/loop on/peak reserved", 9)
    assert figures == {False: [("step/loop on/peak memory", 7), held], True: [held]}


def shared(world: World, folder: Path) -> list[tuple[str, int]]:
    return [(one.name, one.flop) for one in time_pico(world, folder, steps=2).measurements]


def test_two_ranks_share_the_arithmetic(tmp_path: Path, found: Findings) -> None:
    first, second = run_ranks(2, tmp_path, shared, tmp_path)
    assert first == second
    assert (
        dict(first)["step/loop on"] == next(one.flop for one in found.measurements if one.name == "step/loop on") // 2
    )
