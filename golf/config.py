"""The recipe as a frozen value: one dataclass a table. Nothing else configures anything.

An optional part of the model is an optional sub-table, so a part that is off has no keys that could be dead; what
contradicts itself is refused here, what is unknown or of the wrong type by `golf.recipe`, which reads the TOML.
"""

import dataclasses
import hashlib
import re
from typing import Any, Literal

from golf.errors import UsageError
from golf.files import canonical_json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding over the first `dims` channels of each head."""

    dims: int  # rotated channels, even, at most head_dim
    base: float = 10_000.0
    round_to_bfloat16: bool = False  # the frequencies the record stacks were really trained with

    def __post_init__(self) -> None:
        _require(self.dims > 0 and self.dims % 2 == 0, "model.rope.dims must be even and positive")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Depth recurrence: layers start..end run `extra_passes` more times once the schedule switches the loop on."""

    start: int
    end: int  # inclusive
    extra_passes: int

    def __post_init__(self) -> None:
        _require(0 <= self.start <= self.end, "model.loop needs 0 <= start <= end")
        _require(self.extra_passes >= 1, "model.loop.extra_passes must be at least 1; leave [model.loop] out for none")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SkipConfig:
    """U-Net skips from encoder visits to decoder visits."""

    gated: bool = True
    index: Literal["visit", "position"] = "visit"  # position: the reference's rows, whose meaning moves with the loop


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Sparse gate on each head's attention output."""

    window: int = 12  # leading channels of the normalized input that the gate reads
    scale: float = 1.0  # inside the sigmoid

    def __post_init__(self) -> None:
        _require(self.window > 0, "model.attention_gate.window must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LanesConfig:
    """Two parallel streams from layer `start` on: attention reads the first, the MLP the second."""

    start: int
    final: Literal["mean", "attn", "mlp"] = "mean"  # which stream the head reads


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CarryConfig:
    """Frozen recurrent carry: what a looped layer's later passes keep of the first passes' outputs."""

    beta: tuple[float, ...]  # one a looped layer
    alpha: tuple[tuple[float, ...], ...]  # row: the layer that runs, column: the layer remembered
    round_to_bfloat16: bool = False  # the values that the record's buffers really held

    def __post_init__(self) -> None:
        square = all(len(row) == len(self.beta) for row in self.alpha) and len(self.alpha) == len(self.beta)
        _require(square, "model.carry.alpha must be a square of the length of model.carry.beta")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BigramConfig:
    """Hashed bigram embedding added to the token embedding."""

    buckets: int  # the last one means "no previous token"
    dim: int

    def __post_init__(self) -> None:
        _require_least(2, "model.bigram", buckets=self.buckets)
        _require_least(1, "model.bigram", dim=self.dim)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SmearConfig:
    """Gate that adds a share of the previous token's embedding, never across a document start."""

    window: int = 12  # leading channels the gate reads


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValueEmbeddingConfig:
    """One token table, projected once, added to the values of the listed layers."""

    dim: int
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The function that maps tokens to logits; everything that changes it is here."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_mult: float
    rope: RopeConfig
    negative_slope: float = 0.5  # of the leaky ReLU that the MLP squares; 0 gives ReLU squared
    xsa_last_n: int = 0  # last layers with exclusive self-attention
    ln_scale: bool = False  # scale layer i's normalized inputs by 1/sqrt(i+1)
    q_gain_init: float = 1.0
    logit_softcap: float = 30.0
    embed_init_std: float = 0.005
    bos_id: int = 1  # token that starts every document
    skips: SkipConfig | None = None
    loop: LoopConfig | None = None
    carry: CarryConfig | None = None
    lanes: LanesConfig | None = None
    attention_gate: GateConfig | None = None
    bigram: BigramConfig | None = None
    smear: SmearConfig | None = None
    value_embedding: ValueEmbeddingConfig | None = None

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.model_dim * self.mlp_mult)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
        _require_least(1, "model", **{name: getattr(self, name) for name in sizes})
        _require(self.hidden_dim > 0, "model.mlp_mult leaves the MLP no hidden channel")
        _require(self.logit_softcap > 0, "model.logit_softcap must be positive")
        _require(0 <= self.bos_id < self.vocab_size, "model.bos_id must be a token id below model.vocab_size")
        _require(self.model_dim % self.num_heads == 0, "model.model_dim must be a multiple of model.num_heads")
        _require(self.num_heads % self.num_kv_heads == 0, "model.num_heads must be a multiple of model.num_kv_heads")
        _require(self.rope.dims <= self.head_dim, f"model.rope.dims must be at most the head size {self.head_dim}")
        _require(0 <= self.xsa_last_n <= self.num_layers, "model.xsa_last_n must be between 0 and model.num_layers")
        _require(self.vocab_size <= 65_536, "model.vocab_size must fit 16 bits (65,536)")
        if self.loop:
            _require(self.loop.end < self.num_layers, "model.loop.end must be below model.num_layers")
        if self.carry:
            looped = self.loop.end - self.loop.start + 1 if self.loop else 0
            _require(
                len(self.carry.beta) == looped, f"model.carry needs one beta for each of the {looped} looped layers"
            )
        if self.lanes:
            first = self.loop.end + 1 if self.loop else 0
            inside = first <= self.lanes.start < self.num_layers
            _require(inside, f"model.lanes.start must be from {first}, behind the loop, to below model.num_layers")
        if self.attention_gate:
            fits = self.attention_gate.window <= self.model_dim
            _require(fits, "model.attention_gate.window must be at most model.model_dim")
        if self.smear:
            _require(0 < self.smear.window <= self.model_dim, "model.smear.window must be 1 to model.model_dim")
        if self.value_embedding:
            _require_least(1, "model.value_embedding", dim=self.value_embedding.dim)
            inside = all(0 <= layer < self.num_layers for layer in self.value_embedding.layers)
            _require(inside and bool(self.value_embedding.layers), "model.value_embedding.layers must name layers")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which token stream, and how it is cut."""

    dataset: str  # folder name below the data root
    batch_tokens: int  # tokens of one optimizer step over all ranks, a multiple of 8
    seq_len: int  # a document is cut into segments of at most this many tokens

    def __post_init__(self) -> None:
        _require_least(1, "data", batch_tokens=self.batch_tokens, seq_len=self.seq_len)
        _require(self.batch_tokens % 8 == 0, "data.batch_tokens must be a multiple of 8, the number of virtual ranks")


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
        _require_least(1, "optim", newton_schulz_steps=self.newton_schulz_steps)
        few = self.newton_schulz == "classic" or self.newton_schulz_steps <= 5
        _require(few, "optim.newton_schulz_steps must be at most 5: Polar Express has no more")
        _require_least(0, "optim", momentum_warmup_steps=self.momentum_warmup_steps)


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
        _require(self.iterations > 0, "schedule.iterations must be positive")
        _require(0 <= self.warmdown_fraction <= 1, "schedule.warmdown_fraction must be between 0 and 1")
        _require(0 <= self.min_lr <= 1, "schedule.min_lr must be between 0 and 1")
        _require(self.loop_at is None or 0 <= self.loop_at <= 1, "schedule.loop_at must be between 0 and 1")
        _require_least(0, "schedule", max_seconds=self.max_seconds, reserve_seconds=self.reserve_seconds)
        clock = self.max_seconds > 0
        _require(clock or not self.reserve_seconds, "schedule.reserve_seconds does nothing without max_seconds")
        _require(not clock or self.max_seconds > self.reserve_seconds, "schedule.reserve_seconds leaves no time")
        decays = self.warmdown_fraction > 0
        _require(decays or not self.late_qat_below, "schedule.late_qat_below never acts without warmdown_fraction")
        _require(decays or not self.min_lr, "schedule.min_lr does nothing without warmdown_fraction")


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
        _require(0 <= self.ema_decay < 1, "average.ema_decay must be in [0, 1)")
        _require_least(0, "average", swa_every=self.swa_every, shadow_snapshots=self.shadow_snapshots)
        needs_ema = self.use == "ema" or (self.swa_every > 0 and self.swa_of == "ema")
        _require(not needs_ema or self.ema_decay > 0, "average.use or swa_of is 'ema' but average.ema_decay is 0")
        _require(self.use != "swa" or self.swa_every > 0, "average.use is 'swa' but average.swa_every is 0")
        _require(self.shadow_snapshots == 0 or bool(self.shadows), "average.shadow_snapshots without average.shadows")
        _require(all(0 < width < 0.288 for width in self.shadows), "average.shadows must lie between 0 and 0.288")


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
            _require(2 <= getattr(self, name) <= 8, f"quant.{name} must be between 2 and 8")
        _require(0 <= self.hessian_lambda < 1, "quant.hessian_lambda must be in [0, 1)")
        batches, windows = self.calibration_batches, self.calibration_windows
        _require_least(1, "quant", calibration_batches=batches, calibration_windows=windows)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Plain evaluation: every validation token once, in rows of `batch_tokens`."""

    seq_len: int
    batch_tokens: int

    def __post_init__(self) -> None:
        _require_least(1, "eval", seq_len=self.seq_len, batch_tokens=self.batch_tokens)
        _require(self.batch_tokens % self.seq_len == 0, "eval.batch_tokens must be a multiple of eval.seq_len")


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
        _require_least(1, "run", log_every=self.log_every)
        for name in self.checkpoints:
            valid = re.fullmatch(r"frac_([1-9][0-9]?|100)|step_[1-9][0-9]*", name)
            _require(valid is not None, f"run.checkpoints: {name!r} is not frac_N (1 to 100) or step_N (from 1)")


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
        _require(not has_switch or has_loop, "schedule.loop_at does nothing without [model.loop]")
        _require(not has_loop or has_switch, "[model.loop] never runs without schedule.loop_at")

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


def _require_least(least: int, table: str, **values: float) -> None:
    for name, value in values.items():
        _require(value >= least, f"{table}.{name} must be at least {least}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
