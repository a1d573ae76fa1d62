"""The tables [optim], [schedule] and [average] of a recipe: how weights move, when what switches, what is averaged."""

import dataclasses
from typing import Literal

from golf.errors import require, require_between, require_fraction, require_least

_SWA_BELOW = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Muon for matrices, AdamW for embeddings and for everything small."""

    matrix_lr: float
    embed_lr: float
    scalar_lr: float
    head_lr: float | None = None  # of an untied head, which decays as the embedding does
    momentum: float
    momentum_start: float
    momentum_warmup_steps: int
    nesterov: bool = True
    muon: Literal["plain", "normuon", "mousse"] = "plain"  # docs/optimizers.md; NeoMuon is row_normalize and 3 steps
    newton_schulz: Literal["classic", "polar_express"] = "classic"
    newton_schulz_steps: int = 5
    row_normalize: bool = False
    matrix_weight_decay: float = 0.0
    embed_weight_decay: float = 0.0
    scalar_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip_norm: float = 0.0  # of all gradients together; 0 = off
    lyapunov_window: int = 0  # steps, 20 as published; while norms grow over them, the clip is tighter; 0 = off

    def __post_init__(self) -> None:
        self._check_rates()
        require_least(1, "optim", newton_schulz_steps=self.newton_schulz_steps)
        few = self.newton_schulz == "classic" or self.newton_schulz_steps <= 5
        require(few, "optim.newton_schulz_steps must be at most 5: Polar Express has no more")
        require_least(0, "optim", grad_clip_norm=self.grad_clip_norm)
        cancels = self.muon == "mousse" and self.row_normalize
        require(not cancels, "optim.row_normalize would undo the row scales of optim.muon 'mousse'; use one of them")
        require(self.lyapunov_window == 0 or self.lyapunov_window >= 2, "optim.lyapunov_window must be 0 or at least 2")
        clips = self.grad_clip_norm > 0 or self.lyapunov_window == 0
        require(clips, "optim.lyapunov_window does nothing without grad_clip_norm")

    def _check_rates(self) -> None:
        """Refuse what would climb or explode; a rate of 0 freezes its parameters."""
        rates = {"matrix_lr": self.matrix_lr, "embed_lr": self.embed_lr, "scalar_lr": self.scalar_lr}
        require_least(0, "optim", **rates, head_lr=self.head_lr or 0.0)
        for name in ("matrix_weight_decay", "embed_weight_decay", "scalar_weight_decay"):
            require_least(0, "optim", **{name: getattr(self, name)})
        require_fraction("optim", momentum=self.momentum, momentum_start=self.momentum_start)
        require_fraction("optim", beta1=self.beta1, beta2=self.beta2)
        require(self.adam_eps > 0, "optim.adam_eps must be positive")
        require_least(0, "optim", momentum_warmup_steps=self.momentum_warmup_steps)
        warms = self.momentum_warmup_steps > 0 or self.momentum_start == self.momentum
        require(warms, "optim.momentum_start must be optim.momentum while optim.momentum_warmup_steps is 0")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Progress from 0 to 1 and what switches where."""

    iterations: int  # progress = step / iterations when there is no clock
    max_seconds: float = 0.0  # > 0: progress = elapsed / (max_seconds - reserve_seconds)
    reserve_seconds: float = 0.0  # give two steps' time or more: by so much the stop may be late (docs/training.md)
    warmdown_fraction: float = 0.0  # of the run
    warmdown_steps: int = 0  # steps at their measured mean time; with warmdown_fraction, whichever is shorter
    min_lr: float = 0.0  # floor of the learning-rate multiplier
    loop_at: float | None = None  # progress at which the model's loop is switched on
    late_qat_below: float = 0.0  # fake-quantize once the multiplier is below this; 0 = never

    def __post_init__(self) -> None:
        require(self.iterations > 0, "schedule.iterations must be positive")
        shares = {"warmdown_fraction": self.warmdown_fraction, "min_lr": self.min_lr, "loop_at": self.loop_at or 0.0}
        require_between(0, 1, "schedule", **shares, late_qat_below=self.late_qat_below)
        require_least(0, "schedule", max_seconds=self.max_seconds, reserve_seconds=self.reserve_seconds)
        require_least(0, "schedule", warmdown_steps=self.warmdown_steps)
        clock = self.max_seconds > 0
        require(clock or not self.reserve_seconds, "schedule.reserve_seconds does nothing without max_seconds")
        lasts = not clock or self.max_seconds - self.reserve_seconds >= 1
        require(lasts, "schedule.max_seconds must be at least 1 second longer than schedule.reserve_seconds")
        require(self.has_warmdown or not self.late_qat_below, "schedule.late_qat_below never acts without a warmdown")
        require(self.has_warmdown or not self.min_lr, "schedule.min_lr does nothing without a warmdown")

    @property
    def has_warmdown(self) -> bool:
        """Whether the learning-rate multiplier ever falls below 1."""
        return self.warmdown_fraction > 0 or self.warmdown_steps > 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AverageConfig:
    """Weight averages kept during training."""

    ema_decay: float = 0.0  # 0 = no exponential average
    swa_every: int = 0  # steps between snapshots of the stochastic weight average; 0 = none
    swa_below: float = _SWA_BELOW  # snapshots are taken while the lr multiplier is below this
    swa_of: Literal["raw", "ema"] = "raw"
    shadows: tuple[float, ...] = (0.05, 0.10)  # relative widths of the power-function averages for post-hoc EMA
    shadow_snapshots: int = 0  # equally spaced files that hold the shadows alone
    use: Literal["raw", "ema", "swa"] = "ema"  # what the finished model's weights are

    def __post_init__(self) -> None:
        require_fraction("average", ema_decay=self.ema_decay)
        require_least(0, "average", swa_every=self.swa_every, shadow_snapshots=self.shadow_snapshots)
        needs_ema = self.use == "ema" or (self.swa_every > 0 and self.swa_of == "ema")
        require(not needs_ema or self.ema_decay > 0, "average.use or swa_of is 'ema' but average.ema_decay is 0")
        require(self.use != "swa" or self.swa_every > 0, "average.use is 'swa' but average.swa_every is 0")
        require(0 < self.swa_below <= 1, "average.swa_below must be above 0 and at most 1")
        acts = self.swa_every > 0 or self.swa_below == _SWA_BELOW
        require(acts, "average.swa_below does nothing without average.swa_every")
        require(self.shadow_snapshots == 0 or bool(self.shadows), "average.shadow_snapshots without average.shadows")
        require(all(0 < width < 0.288 for width in self.shadows), "average.shadows must lie between 0 and 0.288")
        require(len(set(self.shadows)) == len(self.shadows), "average.shadows must differ from one another")
