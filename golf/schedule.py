"""Where a run stands: progress -> learning rate, momentum, loop, late QAT and phase boundaries. Pure functions."""

from typing import NamedTuple

from golf.config import OptimConfig, Recipe, ScheduleConfig


class Moment(NamedTuple):
    """Everything the schedule decides for the step about to be taken."""

    step: int  # optimizer steps done
    progress: float
    lr_multiplier: float
    momentum: float
    looping: bool
    late_qat: bool
    done: bool


def moment(recipe: Recipe, *, step: int, elapsed_seconds: float) -> Moment:
    """Evaluate the schedule after `step` steps and `elapsed_seconds` of training."""
    schedule = recipe.schedule
    progress = progress_of(schedule, step=step, elapsed_seconds=elapsed_seconds)
    multiplier = lr_multiplier(schedule, progress)
    return Moment(
        step=step,
        progress=progress,
        lr_multiplier=multiplier,
        momentum=muon_momentum(recipe.optim, step),
        looping=schedule.loop_at is not None and progress >= schedule.loop_at,
        late_qat=multiplier < schedule.late_qat_below,
        done=progress >= 1.0 or step >= schedule.iterations,
    )


def progress_of(schedule: ScheduleConfig, *, step: int, elapsed_seconds: float) -> float:
    """Fraction of the run that is over: of the clock's budget if there is one, else of the iterations."""
    if schedule.max_seconds > 0:
        return elapsed_seconds / (schedule.max_seconds - schedule.reserve_seconds)
    return step / schedule.iterations


def lr_multiplier(schedule: ScheduleConfig, progress: float) -> float:
    """1 until the warmdown, then linear to 0 at the end, never below min_lr."""
    if progress < 1.0 - schedule.warmdown_fraction or schedule.warmdown_fraction == 0:
        return 1.0
    decayed = (1.0 - progress) / schedule.warmdown_fraction
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
