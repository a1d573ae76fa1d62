"""Where a run stands: progress -> learning rate, momentum, loop, late QAT and phase boundaries. Pure functions."""

from typing import NamedTuple

from golf.config import Recipe
from golf.training_config import OptimConfig, ScheduleConfig


class Moment(NamedTuple):
    """Everything the schedule decides for the step about to be taken."""

    step: int  # optimizer steps done
    progress: float
    lr_multiplier: float
    momentum: float
    looping: bool
    late_qat: bool
    done: bool


def moment(recipe: Recipe, *, step: int, elapsed_seconds: float, qat_began: bool = False) -> Moment:
    """Evaluate the schedule after `step` steps and `elapsed_seconds` of training.

    Once it `qat_began`, late QAT stays on, also where a warmdown by steps lets the multiplier rise again.
    """
    schedule = recipe.schedule
    progress = progress_of(schedule, step=step, elapsed_seconds=elapsed_seconds)
    multiplier = lr_multiplier(schedule, progress, step=step)
    return Moment(
        step=step,
        progress=progress,
        lr_multiplier=multiplier,
        momentum=muon_momentum(recipe.optim, step),
        looping=schedule.loop_at is not None and progress >= schedule.loop_at,
        late_qat=qat_began or multiplier < schedule.late_qat_below,
        done=progress >= 1.0 or step >= schedule.iterations,
    )


def progress_of(schedule: ScheduleConfig, *, step: int, elapsed_seconds: float) -> float:
    """Fraction of the run that is over: of the clock's budget if there is one, else of the iterations."""
    if schedule.max_seconds > 0:
        return elapsed_seconds / (schedule.max_seconds - schedule.reserve_seconds)
    return step / schedule.iterations


def lr_multiplier(schedule: ScheduleConfig, progress: float, *, step: int | None = None) -> float:
    """1 until the warmdown, then linear to 0 at the end, never below min_lr.

    A warmdown of n steps on a clock lasts n times the mean time of a step so far (parameter-golf PR #401 and before),
    so it moves with the machine's speed: on one that is slow enough training would start already decayed. With
    warmdown_fraction too, the shorter of both holds: the published form on its own hardware, and at most that fraction
    elsewhere. Without a `step`, as for a forecast, no time is known and a clocked run is taken to decay over its
    warmdown_fraction, or else as if it made all its iterations.
    """
    share = _warmdown_share(schedule, progress, step)
    if progress < 1.0 - share or share == 0:
        return 1.0
    decayed = (1.0 - progress) / share
    return max(min(decayed, 1.0), schedule.min_lr)  # rounding alone may put the first one above 1


def muon_momentum(optim: OptimConfig, step: int) -> float:
    """Linear from momentum_start to momentum over the warm-up steps."""
    share = min(step / optim.momentum_warmup_steps, 1.0) if optim.momentum_warmup_steps else 1.0
    return optim.momentum_start + (optim.momentum - optim.momentum_start) * share


def boundaries(recipe: Recipe, before: Moment | None, now: Moment) -> list[str]:
    """Name the phase boundaries crossed since `before` (None: the run begins); all belong to the state at `now`.

    init · momentum_full · warmdown_start · pre_loop · pre_qat · lr_floor · frac_N · step_N · shadow_K
    """
    if before is None:
        return ["init"]
    schedule, names = recipe.schedule, []
    if before.step < recipe.optim.momentum_warmup_steps <= now.step:
        names.append("momentum_full")
    if before.lr_multiplier == 1.0 > now.lr_multiplier:
        names.append("warmdown_start")
    if now.looping and not before.looping:
        names.append("pre_loop")
    if now.late_qat and not before.late_qat:
        names.append("pre_qat")
    if schedule.min_lr > 0 and before.lr_multiplier > schedule.min_lr == now.lr_multiplier:
        names.append("lr_floor")
    return names + [name for name in recipe.run.checkpoints if _listed(name, before, now)]


def shadow_index(recipe: Recipe, before: Moment, now: Moment) -> int | None:
    """Number (from 1) of the equally spaced shadow snapshot that falls on `now`, if one does; the last, if several.

    The snapshot at the end of the run is not among them: final_raw holds the shadows too.
    """
    count = recipe.average.shadow_snapshots
    due = [index for index in range(1, count) if before.progress < index / count <= now.progress]
    return due[-1] if due and not now.done else None


def _listed(name: str, before: Moment, now: Moment) -> bool:
    kind, _, number = name.partition("_")
    if kind == "step":
        return before.step < int(number) <= now.step
    return before.progress < int(number) / 100 <= now.progress


def _warmdown_share(schedule: ScheduleConfig, progress: float, step: int | None) -> float:
    """The share of the run's progress that the warmdown takes, as far as is known by now."""
    fraction = schedule.warmdown_fraction
    if schedule.warmdown_steps == 0:
        return fraction
    if schedule.max_seconds == 0:
        a_step = 1 / schedule.iterations
    elif step is None:
        a_step = fraction / schedule.warmdown_steps or 1 / schedule.iterations
    else:
        a_step = progress / max(step, 1)
    share = schedule.warmdown_steps * a_step
    return min(share, fraction) if fraction else share
