"""Clocks: device events on a GPU, the host's clock on a CPU; and how often a thing is timed.

Calls are timed in turns, so that a machine that slows down slows all of them. On a GPU a call's time is that of its
device work: the queue is filled behind a spinning kernel, because the host needs longer to start a small kernel than
the device to run it. A call that waits for the device still shows its gaps.
"""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], object]

WARM_UP = 3  # rounds thrown away: they compile, fill caches and wake the machine
LEAST_ROUNDS, MOST_ROUNDS = 4, 1000
LEAST_BURST = {"cuda": 4, "cpu": 1}  # calls between two looks at the clock
_HEAD_START = 10_000_000  # cycles, about 5 ms, in which the host queues a burst
_CACHES = 3  # times the size of the L2 cache that rotating inputs should fill
_MOST_SETS = 8


def time_calls(
    variants: Mapping[str, Sequence[Call]], device: torch.device, *, seconds: float
) -> dict[str, list[float]]:
    """Time each variant's calls in turns for about `seconds` a variant; return the seconds of every call.

    A variant is a sequence of calls that do the same to other inputs; they are rotated.
    """
    bursts = {name: list(calls) * math.ceil(LEAST_BURST[device.type] / len(calls)) for name, calls in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(WARM_UP):
        for calls in bursts.values():
            time_burst(calls, device)
    until = time.perf_counter() + seconds * len(variants)
    for round_ in range(MOST_ROUNDS):
        if round_ >= LEAST_ROUNDS and time.perf_counter() >= until:
            break
        for name, calls in bursts.items():
            samples[name] += time_burst(calls, device)
    return samples


def time_burst(calls: Iterable[Call], device: torch.device) -> list[float]:
    """Return the seconds of each of `calls`, run one after the other."""
    if device.type != "cuda":
        return [_host_seconds(call) for call in calls]
    events = []
    torch.cuda._sleep(_HEAD_START)
    for call in calls:
        start = _queued_event()
        call()
        events.append((start, _queued_event()))
    torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in events]


def count_input_sets(input_bytes: int, device: torch.device) -> int:
    """Return how many sets of inputs must rotate lest the cache make a kernel look faster than a model finds it."""
    if device.type != "cuda":
        return 1
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, max(1, math.ceil(_CACHES * cache / input_bytes)))


class Stopwatch:
    """Laps of a sequence of work, taken without stopping it: on a GPU the times are the device's own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begin a lap; what lies between the last one and this belongs to none."""
        self.lap("")

    def lap(self, name: str) -> None:
        """End a lap called `name`; the next begins."""
        self._marks.append((name, _queued_event() if self._on_gpu else time.perf_counter()))

    def seconds(self) -> dict[str, list[float]]:
        """Wait for the device; return the seconds of every lap by name, in order."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        laps: dict[str, list[float]] = defaultdict(list)
        for (_, before), (name, now) in itertools.pairwise(self._marks):
            if name:
                laps[name].append(before.elapsed_time(now) / 1e3 if self._on_gpu else now - before)
        return dict(laps)


def _host_seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _queued_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
