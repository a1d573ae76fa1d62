"""What keeping a run safe costs: checkpoints, gathered while the clock stands and written meanwhile, and averages."""

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from golf.bench.findings import Findings
from golf.bench.measurement import Figure, Measurement
from golf.bench.timing import Call, time_calls
from golf.config import Recipe
from golf.distributed import World
from golf.log import Log
from golf.run_folder import RunFolder
from golf.saver import Clock, Saver
from golf.schedule import boundaries, moment, shadow_index
from golf.train_state import TrainState

_REPEATS = 3
_UPDATE_SECONDS = 0.2  # of timing the averages' update
_LATE_STEP = 2000  # of the averages: far from the first, which are no averages yet


class Forecast(NamedTuple):
    """How long a run would take, and how often it would stop the clock."""

    steps: int
    seconds: float  # on the training clock
    saves: int  # of the whole state, the finished one's too
    shadows: int  # of the shadow averages alone


def forecast_run(recipe: Recipe, step_seconds: Mapping[bool, float]) -> Forecast:
    """Walk through the schedule of `recipe` with steps of so many seconds with the loop off (False) and on (True)."""
    step, elapsed, saves, shadows, before = 0, 0.0, 1, 0, None
    while True:
        began = before is not None and before.late_qat
        now = moment(recipe, step=step, elapsed_seconds=elapsed, qat_began=began)
        saves += bool(boundaries(recipe, before, now))
        shadows += before is not None and shadow_index(recipe, before, now) is not None
        if now.done:
            return Forecast(step, elapsed, saves, shadows)
        step, elapsed, before = step + 1, elapsed + step_seconds[now.looping], now


def time_saving(
    state: TrainState, world: World, log: Log, folder: Path, *, step_seconds: Mapping[bool, float]
) -> Findings:
    """Save the state a few times into `folder` as training does; tell the share of the recipe's whole run.

    A collective. `step_seconds` are those of `forecast_run`. Ends the state's loader.
    """
    gathers, writes, size = _save(state, world, log, folder)
    device, averages = world.device, state.averages
    update = partial(averages.update, step=_LATE_STEP, lr_multiplier=1.0)
    times = {
        "gather": gathers,
        "write": writes,
        "gather shadows": _host_seconds(averages.shadow_state, world),
        "update averages": time_calls({"update": [update]}, device, seconds=_UPDATE_SECONDS)["update"],
    }
    measured = {name: Measurement.of(f"checkpoint/{name}", seconds) for name, seconds in times.items()}
    cost = {name: one.seconds for name, one in measured.items()}
    run = forecast_run(state.recipe, step_seconds)
    gathering = run.saves * cost["gather"] + run.shadows * cost["gather shadows"]
    shares = {"gathering": gathering, "averages": run.steps * cost["update averages"]}
    figures = [
        Figure("checkpoint/size", size, "bytes"),
        Figure("checkpoint/steps of a run", run.steps, ""),
        Figure("checkpoint/saves of a run", run.saves + run.shadows, ""),
        *(Figure(f"checkpoint/share of a run, {name}", 100 * part / run.seconds, "%") for name, part in shares.items()),
    ]
    return Findings(list(measured.values()), figures)


def _save(state: TrainState, world: World, log: Log, folder: Path) -> tuple[list[float], list[float], int]:
    """Return the seconds that saves stop the training for, those of the writing meanwhile, and the bytes of one."""
    clock = Clock(0.0, settle=world.synchronize)
    saver = Saver(state, world, RunFolder(folder), clock, log, parents=[], dataset_digest="")
    now, loss = moment(state.recipe, step=0, elapsed_seconds=0.0), torch.zeros((), device=world.device)
    gathers, writes = [], []
    with contextlib.closing(saver):
        for repeat in range(_REPEATS):
            world.barrier()
            gathers += _host_seconds(partial(saver.save, [f"bench_{repeat}"], None, now, loss), world, repeats=1)
            writes += _host_seconds(saver.writer.settle, world, repeats=1)
        return gathers, writes, saver.writer.bytes_written // _REPEATS


def _host_seconds(call: Call, world: World, *, repeats: int = _REPEATS) -> list[float]:
    """Return the host's seconds of each call, the device being idle before and after."""
    seconds = []
    for _ in range(repeats):
        world.synchronize()
        began = time.perf_counter()
        call()
        world.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds
