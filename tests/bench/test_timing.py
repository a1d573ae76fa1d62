"""Calls are timed in turns; on a GPU by the device's own clock, whose events are faked here."""

import time
from functools import partial
from typing import Any

import pytest
import torch

from golf.bench import timing
from golf.bench.timing import Stopwatch, count_input_sets, time_burst, time_calls

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class FakeDevice:
    """A device that does queued work in order, a call taking as many milliseconds as it asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0  # milliseconds
        self.said: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.work(1000.0, "sleep"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.said.append("synchronize"))

    def work(self, milliseconds: float, name: str) -> None:
        self.now += milliseconds
        self.said.append(name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return FakeDevice(monkeypatch)


def test_a_burst_on_a_cpu_has_the_seconds_of_every_call() -> None:
    found = time_burst([partial(time.sleep, 0.004), partial(time.sleep, 0.001)], CPU)
    assert 0.004 <= found[0] < 0.1
    assert 0.001 <= found[1] < 0.1


def test_a_burst_on_a_gpu_has_the_device_seconds_of_every_call_and_not_of_the_sleep(gpu: FakeDevice) -> None:
    assert time_burst([partial(gpu.work, 2.0, "a"), partial(gpu.work, 3.0, "b")], GPU) == [0.002, 0.003]


def test_a_burst_on_a_gpu_is_queued_behind_a_sleep_and_waited_for_once(gpu: FakeDevice) -> None:
    time_burst([partial(gpu.work, 2.0, "a"), partial(gpu.work, 3.0, "b")], GPU)
    assert gpu.said == ["sleep", "a", "b", "synchronize"]


def test_variants_take_turns_and_inputs_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    said: list[str] = []
    calls = {name: [partial(said.append, f"{name}{index}") for index in range(2)] for name in "ab"}
    samples = time_calls(calls, CPU, seconds=0)
    assert said == 3 * ["a0", "a1", "b0", "b1"]
    assert {name: len(found) for name, found in samples.items()} == {"a": 4, "b": 4}  # without the warm-up's


def test_it_goes_on_until_the_time_is_up() -> None:
    samples = time_calls({"a": [partial(time.sleep, 0.002)]}, CPU, seconds=0.05)
    assert timing.LEAST_ROUNDS < len(samples["a"]) <= 25


def test_it_ends_after_so_many_rounds_however_short_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST_ROUNDS", 7)
    assert len(time_calls({"a": [lambda: None]}, CPU, seconds=60)["a"]) == 7


def test_a_burst_of_few_calls_is_lengthened_on_a_gpu(gpu: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 1)
    calls = [partial(gpu.work, 1.0, "a"), partial(gpu.work, 2.0, "b"), partial(gpu.work, 4.0, "c")]
    samples = time_calls({"x": calls}, GPU, seconds=0)
    assert samples["x"] == [0.001, 0.002, 0.004, 0.001, 0.002, 0.004]


@pytest.mark.parametrize(("size", "sets"), [(10, 8), (60, 3), (100, 2), (180, 1), (10_000, 1)])
def test_inputs_rotate_until_they_are_three_times_the_cache(
    monkeypatch: pytest.MonkeyPatch, size: int, sets: int
) -> None:
    class Properties:
        L2_cache_size = 60

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert count_input_sets(size, GPU) == sets


def test_one_set_of_inputs_is_enough_on_a_cpu() -> None:
    assert count_input_sets(1, CPU) == 1


def test_a_stopwatch_has_laps_by_name_and_skips_what_precedes_a_start(gpu: FakeDevice) -> None:
    watch = Stopwatch(GPU)
    for factor in (1, 10):
        gpu.work(500.0, "not timed")
        watch.start()
        gpu.work(factor * 2.0, "a")
        watch.lap("a")
        gpu.work(factor * 3.0, "b")
        watch.lap("b")
    assert gpu.said.count("synchronize") == 0
    assert watch.seconds() == {"a": [0.002, 0.02], "b": [0.003, 0.03]}
    assert gpu.said.count("synchronize") == 1


def test_a_stopwatch_on_a_cpu_takes_the_time_of_the_host() -> None:
    watch = Stopwatch(CPU)
    watch.start()
    time.sleep(0.003)
    watch.lap("a")
    watch.lap("b")
    found = watch.seconds()
    assert 0.003 <= found["a"][0] < 0.1
    assert found["b"][0] < 0.003


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_kernel_takes_at_least_the_time_that_its_bytes_need() -> None:
    source = torch.zeros(1 << 28, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)
    samples = time_calls({"copy": [partial(target.copy_, source)]}, GPU, seconds=0.05)["copy"]
    assert min(samples) > 2 * source.nbytes / 20e12  # no memory is that fast
