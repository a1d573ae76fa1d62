"""The training loop, top to bottom, and resume.

Rank 0 decides: its clock sets the learning rate, the loop switch and the stop for all ranks. The clock starts after
priming and stands still while checkpoints are gathered. A boundary's checkpoint is the state before the step at which
the phase changes.
"""

import contextlib
import math
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from golf.checkpoint import Checkpoint
from golf.compilation import count_graphs
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import PHASE_SECONDS, STEP_SECONDS, World
from golf.errors import InterruptedRunError, NumericalFaultError
from golf.log import Log
from golf.model.init import count_parameters
from golf.model.plan import plan_layers
from golf.pace import Pace
from golf.priming import prime
from golf.run_folder import RunFolder, versions
from golf.saver import Clock, Saver
from golf.schedule import Moment, moment
from golf.train_state import TrainState

FIRST_STEPS = 5  # are all reported: a wrong start shows at once
UNBEGUN = "nothing saved yet; start it again with the same command"

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def train(
    recipe: Recipe,
    dataset: Dataset,
    world: World,
    *,
    folder: RunFolder,
    log: Log,
    resume: Checkpoint | None = None,
) -> str:
    """Train to the end of the schedule; return the boundary name of the finished model's checkpoint.

    Writes a checkpoint at every phase boundary into `folder`. Raises InterruptedRunError after saving the boundary
    "interrupted" on Ctrl-C, SIGTERM or SIGHUP, NumericalFaultError when the loss or a weight is not finite.
    """
    plans = {looping: plan_layers(recipe.model, looping=looping) for looping in (False, True)}
    step, elapsed, before = 0, 0.0, None
    with told_if_interrupted(UNBEGUN):
        state = TrainState.build(recipe, dataset, world)
        loss = torch.zeros((), device=world.device)
        if resume is not None:
            state.restore(resume)
            step, elapsed = resume.manifest.step, resume.manifest.elapsed_seconds
            before = moment(recipe, step=step, elapsed_seconds=elapsed, qat_began=resume.manifest.optimizer["late_qat"])
            loss.fill_(resume.manifest.metrics.get("train_loss", 0.0))
        _announce(state, dataset, world, log, step)
        prime(state, plans, log, keep_muon_momentum=recipe.compat.stale_muon_momentum and resume is None)
    world.barrier()  # no rank's clock runs while another one still compiles
    primed = count_graphs()
    clock, pace = Clock(elapsed, settle=world.synchronize), Pace(world.device)
    parents = [resume.manifest.data_sha256] if resume else []
    saver = Saver(state, world, folder, clock, log, parents=parents, dataset_digest=dataset.digest())
    with (
        contextlib.closing(saver),
        _interruption() as interrupted,
        log.progress(recipe.schedule.iterations, f"train {recipe.name}") as bar,
    ):
        bar.advance(step)
        limit_seconds = PHASE_SECONDS  # for which rank 0 may wait for its disk
        while True:
            pace.wait()
            now, own, stop = _agree(recipe, step, before, clock, world, interrupted, limit_seconds)
            limit_seconds = PHASE_SECONDS if saver.at_boundaries(before, now, loss) else STEP_SECONDS
            if stop:
                saver.save(["interrupted"], before, now, loss)
                force = " --force" if folder.final.exists() else ""  # of a finished run, which was resumed by force
                how = f"golf train --resume {folder.path}@interrupted{force}"  # alone, a run is its latest boundary
                raise InterruptedRunError(f"stopped at step {step}; continue with: {how}")
            if now.done:
                return saver.finish(before, now, loss)
            loss = state.forward_backward(plans[own.looping], late_qat=own.late_qat)
            norm = state.optimizer.step(lr_multiplier=own.lr_multiplier, momentum=own.momentum)
            step, before = step + 1, now
            state.averages.update(step=step, lr_multiplier=own.lr_multiplier)
            pace.mark()
            if step % recipe.run.log_every == 0 or step <= FIRST_STEPS:
                values = _global_values(state, step, loss, norm, world)
                bar.advance(step - bar.done)
                late = {"recompiles": count_graphs() - primed, "unrecorded": state.gradient.recorder.unrecorded}
                _report(log, step, own, values | late, clock)


@contextlib.contextmanager
def told_if_interrupted(way_on: str) -> Iterator[None]:
    """Turn a Ctrl-C outside the steps, which see to it themselves, into an InterruptedRunError that tells the way."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; {way_on}") from None


def _agree(
    recipe: Recipe,
    step: int,
    before: Moment | None,
    clock: Clock,
    world: World,
    interrupted: list[int],
    limit_seconds: float,
) -> tuple[Moment, Moment, bool]:
    """Evaluate the schedule on rank 0's clock and on the one that sets this rank's step; say if rank 0 should stop."""
    mine, began = clock.elapsed_seconds, before is not None and before.late_qat
    elapsed, stop = world.agree([mine, float(bool(interrupted))], limit_seconds=limit_seconds)
    now, own = (moment(recipe, step=step, elapsed_seconds=seconds, qat_began=began) for seconds in (elapsed, mine))
    return now, own if recipe.compat.clock == "rank" else now, bool(stop)


def _global_values(state: TrainState, step: int, loss: Tensor, norm: Tensor, world: World) -> dict[str, float]:
    """Return the mean loss over ranks and the gradient's norm; NumericalFaultError when one is not finite."""
    mean = loss.clone()
    world.mean_(mean)
    values = {"train_loss": float(mean), "grad_norm": float(norm)}
    if state.recipe.compat.train_loss == "rank0":
        values["train_loss_rank0"] = float(loss)  # rank 0 alone writes the log
    for name, value in values.items():
        if not math.isfinite(value):
            broken = [key for key, tensor in state.model.state_dict().items() if not bool(tensor.isfinite().all())]
            where = f"{broken[0]} and {len(broken) - 1} more tensors" if broken else "no weight"
            raise NumericalFaultError(
                f"{name} is {value} at step {step}, and {where} hold NaN or infinity; start again with lower rates"
            )
    return values


def _report(log: Log, step: int, now: Moment, values: dict[str, float], clock: Clock) -> None:
    """Log what the step just taken was like."""
    log.event(
        "train",
        step=step,
        **values,
        lr_multiplier=now.lr_multiplier,
        momentum=now.momentum,
        looping=now.looping,
        late_qat=now.late_qat,
        elapsed_seconds=round(clock.elapsed_seconds, 3),
    )


def _announce(state: TrainState, dataset: Dataset, world: World, log: Log, step: int) -> None:
    """Say and record what is about to run."""
    recipe, groups = state.recipe, state.optimizer.groups
    facts: dict[str, Any] = {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "dataset_digest": dataset.digest(),
        "parameters": count_parameters(state.model),
        "optimizer_groups": {key: sorted(group) for key, group in groups._asdict().items() if group},
        "world_size": world.size,
        "device": str(world.device),
        **state.model.kernels.names(),
        "compile": recipe.run.compile,
        "cuda_graphs": state.gradient.recorder.records,
        "versions": versions(),
    }
    log.event("start", step=step, **facts)
    sizes = ", ".join(f"{len(group)} {key}" for key, group in facts["optimizer_groups"].items())
    log.note(f"{recipe.name}: {facts['parameters']:,} parameters ({sizes} tensors), {world.size} x {world.device.type}")
    compiled = "" if recipe.run.compile == "off" else f", compiled by {recipe.run.compile}"
    recorded = ", recorded as CUDA graphs" if facts["cuda_graphs"] else ""
    log.note(f"{state.model.kernels.sentence()}{compiled}{recorded}")


@contextlib.contextmanager
def _interruption() -> Iterator[list[int]]:
    """Yield a list that a first Ctrl-C, SIGTERM or hang-up fills; a second one acts at once. nohup stays obeyed.

    One that came after the last step, so that nobody heeded it, acts at the end.
    """
    received: list[int] = []
    found: dict[int, Any] = {number: signal.getsignal(number) for number in _STOPPING}
    previous = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
