"""Whole optimizer steps as the training loop takes them, and what each part of them takes."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from golf.bench.ceilings import Ceilings
from golf.bench.compilations import watched
from golf.bench.findings import Findings
from golf.bench.flop import model_flop
from golf.bench.measurement import Figure, Measurement, Work
from golf.bench.timing import Stopwatch
from golf.data.documents import Batch
from golf.distributed import World
from golf.model.plan import LayerPlan
from golf.pace import Pace
from golf.recording import Recorder
from golf.train_state import TrainState

LOOPS = {False: "loop off", True: "loop on"}

_WARM_UP = 2  # steps thrown away after the priming
_LATE_STEP = 2000  # of the averages: far from the first, which are no averages yet
_BOTH, _OPTIMIZER, _AVERAGES = "forward + backward", "optimizer", "averages"

Laps = Mapping[str, list[float]]


def time_steps(
    state: TrainState, plans: Mapping[bool, LayerPlan], world: World, ceilings: Ceilings, *, steps: int
) -> Findings:
    """Time `steps` steps with the loop off, then as many with it on; the state should be primed. A collective.

    A step is that of the training loop: agreement between the ranks, micro-batches, optimizer, averages, with the host
    at most one step ahead. Compiling anything while steps are timed is a failure, and so is a batch that should have
    been replayed and was computed kernel by kernel.
    """
    findings, recorder = Findings(), state.gradient.recorder
    for looping in (False, True) if state.recipe.model.loop else (False,):
        label, plan = f"step/{LOOPS[looping]}", plans[looping]
        take_steps(state, plan, world, _WARM_UP)
        _forget_peak(world.device)
        before = recorder.unrecorded
        with watched() as compiled:
            laps = take_steps(state, plan, world, steps)
        findings.figures.append(Figure(f"{label}/compiled after the warm-up", compiled.count, ""))
        if compiled.count:
            findings.failures.append(f"{label}: {compiled} compiled or loaded during {steps} steps after the warm-up")
        if missed := recorder.unrecorded - before:
            reason = f"all {len(recorder.recordings)} recordings are of other shapes"
            findings.failures.append(f"{label}: {missed} batches not replayed during {steps} steps, {reason}")
        findings.figures.extend(_peak(label, world.device, recorded=recorder.records))
        forward = _take_forwards(state, plan, world, steps)
        flop = model_flop(state.recipe.model, plan, state.recipe.data.batch_tokens) // world.size
        parts = _parts(label, laps, forward, flop)
        findings.measurements.extend(map(ceilings.judge, parts))
        rate = state.recipe.data.batch_tokens / parts[0].seconds
        findings.figures.append(Figure(f"{label}/throughput", rate, "tokens/s"))
    return findings


def take_steps(state: TrainState, plan: LayerPlan, world: World, steps: int) -> Laps:
    """Take steps as the training loop does; return the seconds of their parts. What a GPU waits before is in them."""
    watch, pace = Stopwatch(world.device), Pace(world.device)
    watch.start()
    for _ in range(steps):
        pace.wait()
        world.agree([0.0, 0.0])
        state.forward_backward(plan, late_qat=False)
        watch.lap(_BOTH)
        state.optimizer.step(lr_multiplier=1.0, momentum=state.recipe.optim.momentum)
        watch.lap(_OPTIMIZER)
        state.averages.update(step=_LATE_STEP, lr_multiplier=1.0)
        watch.lap(_AVERAGES)
        pace.mark()
    return watch.seconds()


def _take_forwards(state: TrainState, plan: LayerPlan, world: World, steps: int) -> list[float]:
    """Return the seconds of the forwards of so many steps, with what their backwards would need, which is dropped."""
    records = state.gradient.recorder.records

    def losses(batch: Batch, _: None) -> Tensor:
        found: Tensor = state.model(batch, plan=plan, auxiliary=True)
        return found.detach()

    forward = Recorder(losses, world.device, records=records)
    for batch in state.loader.next_step() if records else ():
        forward(batch, None)
    watch = Stopwatch(world.device)
    watch.start()
    for _ in range(steps):
        for batch in state.loader.next_step():
            forward(batch, None)
        watch.lap("forward")
    return watch.seconds()["forward"]


def _parts(label: str, laps: Laps, forward: list[float], flop: int) -> list[Measurement]:
    """Return the whole step and its parts; the backward is what is left of both when the forward is taken off."""
    whole = np.sum([laps[part] for part in (_BOTH, _OPTIMIZER, _AVERAGES)], axis=0).tolist()
    backward = np.subtract(laps[_BOTH], forward).tolist()
    return [
        Measurement.of(label, whole, Work(flop=flop)),
        Measurement.of(f"{label}/{_BOTH}", laps[_BOTH], Work(flop=flop)),
        Measurement.of(f"{label}/forward", forward, Work(flop=flop // 3)),
        Measurement.of(f"{label}/backward", backward, Work(flop=flop - flop // 3)),
        Measurement.of(f"{label}/{_OPTIMIZER}", laps[_OPTIMIZER]),
        Measurement.of(f"{label}/{_AVERAGES}", laps[_AVERAGES]),
    ]


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the first time took, kernel by kernel, is not what a step needs
        torch.cuda.reset_peak_memory_stats(device)


def _peak(label: str, device: torch.device, *, recorded: bool) -> list[Figure]:
    """Return what the allocator held at most, and the most that tensors took unless in recordings; on a GPU alone.

    A recording keeps its memory without a tensor to show for it, so there only what is held counts.
    """
    if device.type != "cuda":
        return []
    held = Figure(f"{label}/peak reserved", torch.cuda.max_memory_reserved(device), "bytes")
    taken = Figure(f"{label}/peak memory", torch.cuda.max_memory_allocated(device), "bytes")
    return [held] if recorded else [taken, held]
