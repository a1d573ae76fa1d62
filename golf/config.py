"""The recipe as a frozen value: one dataclass a table. Nothing else configures anything.

The model's tables are in `golf.model_config`. What contradicts itself is refused here, what is unknown or of the wrong
type by `golf.recipe`, which reads the TOML.
"""

import dataclasses
import hashlib
import re
from typing import Any, Literal

from golf.errors import require, require_least
from golf.files import canonical_json
from golf.model_config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which token stream, and how it is cut."""

    dataset: str  # folder name below the data root
    batch_tokens: int  # tokens of one optimizer step over all ranks, a multiple of 8
    seq_len: int  # a document is cut into segments of at most this many tokens

    def __post_init__(self) -> None:
        require_least(1, "data", batch_tokens=self.batch_tokens, seq_len=self.seq_len)
        require(self.batch_tokens % 8 == 0, "data.batch_tokens must be a multiple of 8, the number of virtual ranks")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Muon for matrices, AdamW for embeddings and for everything small."""

    matrix_lr: float
    embed_lr: float
    scalar_lr: float
    momentum: float
    momentum_start: float
    momentum_warmup_steps: int
    newton_schulz: Literal["classic", "polar_express"] = "classic"
    newton_schulz_steps: int = 5
    row_normalize: bool = False
    matrix_weight_decay: float = 0.0
    embed_weight_decay: float = 0.0
    scalar_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip_norm: float = 0.0  # of the averaged gradient; 0 = off

    def __post_init__(self) -> None:
        require_least(1, "optim", newton_schulz_steps=self.newton_schulz_steps)
        few = self.newton_schulz == "classic" or self.newton_schulz_steps <= 5
        require(few, "optim.newton_schulz_steps must be at most 5: Polar Express has no more")
        require_least(0, "optim", momentum_warmup_steps=self.momentum_warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Progress from 0 to 1 and what switches where."""

    iterations: int  # progress = step / iterations when there is no clock
    max_seconds: float = 0.0  # > 0: progress = elapsed / (max_seconds - reserve_seconds)
    reserve_seconds: float = 0.0
    warmdown_fraction: float = 0.0
    min_lr: float = 0.0  # floor of the learning-rate multiplier
    loop_at: float | None = None  # progress at which the model's loop is switched on
    late_qat_below: float = 0.0  # fake-quantize once the multiplier is below this; 0 = never

    def __post_init__(self) -> None:
        require(self.iterations > 0, "schedule.iterations must be positive")
        require(0 <= self.warmdown_fraction <= 1, "schedule.warmdown_fraction must be between 0 and 1")
        require(0 <= self.min_lr <= 1, "schedule.min_lr must be between 0 and 1")
        require(self.loop_at is None or 0 <= self.loop_at <= 1, "schedule.loop_at must be between 0 and 1")
        require_least(0, "schedule", max_seconds=self.max_seconds, reserve_seconds=self.reserve_seconds)
        clock = self.max_seconds > 0
        require(clock or not self.reserve_seconds, "schedule.reserve_seconds does nothing without max_seconds")
        require(not clock or self.max_seconds > self.reserve_seconds, "schedule.reserve_seconds leaves no time")
        decays = self.warmdown_fraction > 0
        require(decays or not self.late_qat_below, "schedule.late_qat_below never acts without warmdown_fraction")
        require(decays or not self.min_lr, "schedule.min_lr does nothing without warmdown_fraction")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AverageConfig:
    """Weight averages kept during training."""

    ema_decay: float = 0.0  # 0 = no exponential average
    swa_every: int = 0  # steps between snapshots of the stochastic weight average; 0 = none
    swa_below: float = 0.2  # snapshots are taken while the lr multiplier is below this
    swa_of: Literal["raw", "ema"] = "raw"
    shadows: tuple[float, ...] = (0.05, 0.10)  # relative widths of the power-function averages for post-hoc EMA
    shadow_snapshots: int = 0  # equally spaced files that hold the shadows alone
    use: Literal["raw", "ema", "swa"] = "ema"  # what the finished model's weights are

    def __post_init__(self) -> None:
        require(0 <= self.ema_decay < 1, "average.ema_decay must be in [0, 1)")
        require_least(0, "average", swa_every=self.swa_every, shadow_snapshots=self.shadow_snapshots)
        needs_ema = self.use == "ema" or (self.swa_every > 0 and self.swa_of == "ema")
        require(not needs_ema or self.ema_decay > 0, "average.use or swa_of is 'ema' but average.ema_decay is 0")
        require(self.use != "swa" or self.swa_every > 0, "average.use is 'swa' but average.swa_every is 0")
        require(self.shadow_snapshots == 0 or bool(self.shadows), "average.shadow_snapshots without average.shadows")
        require(all(0 < width < 0.288 for width in self.shadows), "average.shadows must lie between 0 and 0.288")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """Bits and clips by role of a tensor, calibration, and the codec of the artifact."""

    matrix_bits: int = 6
    embed_bits: int = 8
    attn_clip_sigmas: float = 12.85
    mlp_clip_sigmas: float = 12.85
    matrix_clip_sigmas: float = 12.85  # matrices outside attention and MLP
    embed_clip_sigmas: float = 20.0
    damping: float = 0.01  # of the Hessian's diagonal, relative to its mean
    hessian_lambda: float = 0.0  # Hessian-aware clip; 0 = plain SDClip
    calibration_batches: int = 16
    calibration_windows: int = 48  # windows of data.seq_len tokens in a batch
    codec: Literal["brotli", "lzma", "zlib"] = "brotli"

    def __post_init__(self) -> None:
        for name in ("matrix_bits", "embed_bits"):
            require(2 <= getattr(self, name) <= 8, f"quant.{name} must be between 2 and 8")
        require(0 <= self.hessian_lambda < 1, "quant.hessian_lambda must be in [0, 1)")
        batches, windows = self.calibration_batches, self.calibration_windows
        require_least(1, "quant", calibration_batches=batches, calibration_windows=windows)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Plain evaluation: every validation token once, in rows of `batch_tokens`."""

    seq_len: int
    batch_tokens: int

    def __post_init__(self) -> None:
        require_least(1, "eval", seq_len=self.seq_len, batch_tokens=self.batch_tokens)
        require(self.batch_tokens % self.seq_len == 0, "eval.batch_tokens must be a multiple of eval.seq_len")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run is besides its mathematics."""

    seed: int = 1337
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations and of Newton-Schulz
    rows_per_micro_batch: int = 0  # virtual ranks in one forward; 0 = all that a process has
    log_every: int = 10  # steps
    cpu_threads: int = 0  # without a GPU: threads of a process, on which the last digits depend; 0 = PyTorch's choice
    checkpoints: tuple[str, ...] = ()  # beside the phase boundaries: "frac_25" (percent) or "step_500"

    def __post_init__(self) -> None:
        require_least(1, "run", log_every=self.log_every)
        for name in self.checkpoints:
            valid = re.fullmatch(r"frac_([1-9][0-9]?|100)|step_[1-9][0-9]*", name)
            require(valid is not None, f"run.checkpoints: {name!r} is not frac_N (1 to 100) or step_N (from 1)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that defines a run; equal recipes on equal data give equal runs."""

    name: str
    description: str
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    average: AverageConfig
    quant: QuantConfig
    eval: EvalConfig
    run: RunConfig

    def __post_init__(self) -> None:
        has_loop, has_switch = self.model.loop is not None, self.schedule.loop_at is not None
        require(not has_switch or has_loop, "schedule.loop_at does nothing without [model.loop]")
        require(not has_loop or has_switch, "[model.loop] never runs without schedule.loop_at")

    @property
    def digest(self) -> str:
        """SHA-256 over all values but the two texts that describe the recipe."""
        values = {key: value for key, value in self.to_dict().items() if key not in ("name", "description")}
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, every default written out, parts that are off left out."""
        values: dict[str, Any] = _plain(self)
        return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(item) for name, item in pairs if item is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
