"""What of a step is under way while something else is done, and in which memory."""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from golf.distributed import Pending, World
from golf.optim.optimizer import Optimizer
from golf.optim.replicated import Replicated
from tests.optim.test_overlap import give_gradients
from tests.pico import pico_model, pico_recipe
from tests.ranks import CPU, run_ranks

EVENTS: list[str] = []


class Watched(World):
    """A process alone that writes down when each collective is started and waited for."""

    def noted(self, kind: str, tensor: Tensor) -> Pending:
        name = f"{kind} {'x'.join(map(str, tensor.shape))}"
        EVENTS.append(f"start {name}")
        return Pending(tensor, Noted(name))  # type: ignore[arg-type]  # a stand-in for PyTorch's

    def start_sum_(self, tensor: Tensor) -> Pending:
        return self.noted("sum", tensor)

    def start_mean_(self, tensor: Tensor) -> Pending:
        return self.noted("mean", tensor)

    def start_scatter_mean(self, stacked: Tensor, shard: Tensor) -> Pending:
        return self.noted("scatter", stacked)

    def start_gather(self, shard: Tensor, whole: Tensor) -> Pending:
        return self.noted("gather", shard)


class Noted(NamedTuple):
    name: str

    def wait(self) -> None:
        EVENTS.append(f"wait {self.name}")


def watched_step(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The events of one step on two ranks' worth of buffers."""
    model = pico_model()
    optimizer = Optimizer(model, pico_recipe().optim, dtype=torch.float32, world=Watched(0, 1, 0, CPU))
    optimizer.replicated = Replicated(optimizer.named.values(), World(0, 2, 0, CPU))  # with a buffer
    optimizer.replicated.world = optimizer.world
    give_gradients(model, 0, 0)
    monkeypatch.setattr(optimizer.adam, "step", lambda: EVENTS.append("adam"))
    apply = optimizer.muon._apply

    def applied(stack: Any, gathering: Pending, lr: float) -> None:
        apply(stack, gathering, lr)
        EVENTS.append(f"applied {'x'.join(map(str, stack.whole.shape))}")

    monkeypatch.setattr(optimizer.muon, "_apply", applied)
    EVENTS.clear()
    optimizer.step(lr_multiplier=1.0, momentum=0.9)
    return EVENTS


def test_all_gradients_are_under_way_before_any_is_waited_for_the_largest_stack_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = watched_step(monkeypatch)
    started = events[: next(place for place, event in enumerate(events) if event.startswith("wait"))]
    sizes = [math.prod(map(int, event.split()[2].split("x"))) for event in started if "scatter" in event]
    assert len(sizes) == len([event for event in events if event.startswith("start scatter")]) > 2
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    assert [event.split()[1] for event in started[len(sizes) :]] == ["mean"]


def test_gradients_are_waited_for_in_the_order_in_which_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event.partition(" scatter ") for event in watched_step(monkeypatch)]
    started, waited = ([name for kind, _, name in events if name and kind == what] for what in ("start", "wait"))
    assert waited == started


def test_a_stack_is_applied_while_the_next_one_is_gathered_and_adamw_works_during_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = watched_step(monkeypatch)
    names = [event.removeprefix("start scatter ") for event in events if event.startswith("start scatter")]
    expected = [f"start gather {names[0]}"]
    for before, name in itertools.pairwise(names):
        expected += [f"start gather {name}", f"wait gather {before}", f"applied {before}"]
    expected += ["adam", f"wait gather {names[-1]}", f"applied {names[-1]}"]
    assert [event for event in events if "gather" in event or "applied" in event or event == "adam"] == expected


def test_the_norm_is_under_way_while_the_other_gradients_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [" ".join(event.split()[:2]) for event in watched_step(monkeypatch)]
    kinds = [event for event in events if "sum" in event or "mean" in event]
    assert kinds == ["start mean", "start sum", "wait mean", "wait sum"]


def buffers(world: World) -> list[bool]:
    """Whether the gradients of a second step lie where those of the first did."""
    model = pico_model()
    optimizer = Optimizer(model, pico_recipe().optim, dtype=torch.bfloat16, world=world)
    places = []
    for step in range(2):
        give_gradients(model, step, world.rank)
        slices = optimizer.muon.reduced_gradients()
        optimizer.replicated.finish_averaging(optimizer.replicated.start_averaging())
        places.append([tensor.data_ptr() for tensor in [*slices, *optimizer.replicated.gradients()]])
    return [first == second for first, second in zip(*places, strict=True)]


def test_buffers_stay_from_step_to_step(tmp_path: Path) -> None:
    for found in run_ranks(2, tmp_path, buffers):
        assert set(found) == {True}


def padding(world: World) -> float:
    """The largest value in the padding of any stack after some steps."""
    model = pico_model()
    optimizer = Optimizer(model, pico_recipe("optim.muon=normuon").optim, dtype=torch.bfloat16, world=world)
    for step in range(2):
        give_gradients(model, step, world.rank)
        optimizer.step(lr_multiplier=0.7, momentum=0.9)
    rests = [stack.whole[len(stack.names) :] for stack in optimizer.muon.stacks]
    assert any(len(rest) for rest in rests)
    return max(float(rest.abs().max()) for rest in rests if len(rest))


def test_the_padding_of_a_stack_stays_zero(tmp_path: Path) -> None:
    assert run_ranks(4, tmp_path, padding) == 4 * [0.0]
