"""The tables below [model] of a recipe: one dataclass a part of the model.

An optional part is an optional sub-table, so a part that is off has no keys that could be dead; what contradicts itself
is refused here, what contradicts the rest of the model in `golf.model_config`.
"""

import dataclasses
from typing import Literal

from golf.errors import require, require_between, require_least

MOST_CHANNELS = 16_384  # of a stream, a table or a rank; more is a slip of the hand


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeScalingConfig:
    """Rotary frequencies for rows longer than those they were made for."""

    method: Literal["ntk", "yarn"]
    trained_len: int  # positions that the unscaled frequencies are made for
    length: int  # positions that the model is used at: a constant, so that no frequency depends on a batch

    def __post_init__(self) -> None:
        require(0 < self.trained_len < self.length, "model.rope.scaling needs 0 < trained_len < length")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding over the first `dims` channels of each head."""

    dims: int  # rotated channels, even, at most head_dim
    base: float = 10_000.0
    round_to_bfloat16: bool = False  # the frequencies the record stacks were really trained with
    scaling: RopeScalingConfig | None = None

    def __post_init__(self) -> None:
        require(self.dims > 0 and self.dims % 2 == 0, "model.rope.dims must be even and positive")
        require(self.base > 1, "model.rope.base must be greater than 1")
        ntk = self.scaling is not None and self.scaling.method == "ntk"
        require(self.dims > 2 or not ntk, "model.rope.dims must be at least 4 for NTK scaling")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Depth recurrence: layers start..end run `extra_passes` more times once the schedule switches the loop on."""

    start: int
    end: int  # inclusive
    extra_passes: int
    mlp_lora_rank: int = 0  # of the correction that every pass adds to the MLP's matrices of its own; 0 = none

    def __post_init__(self) -> None:
        require_between(0, MOST_CHANNELS, "model.loop", mlp_lora_rank=self.mlp_lora_rank)
        require(0 <= self.start <= self.end, "model.loop needs 0 <= start <= end")
        require(self.extra_passes >= 1, "model.loop.extra_passes must be at least 1; leave [model.loop] out for none")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShareConfig:
    """Layers start..end run `loops` times from the first step on ("Frugendorff"): one layer, or the whole stack."""

    start: int
    end: int  # inclusive
    loops: int
    position_std: float = 0.0  # > 0: orthogonal vectors of this scale, one a loop, added where the band begins

    def __post_init__(self) -> None:
        require(0 <= self.start <= self.end, "model.share needs 0 <= start <= end")
        require(self.loops >= 2, "model.share.loops must be at least 2; leave [model.share] out for none")
        require_least(0, "model.share", position_std=self.position_std)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SkipConfig:
    """U-Net skips from encoder visits to decoder visits."""

    gated: bool = True
    index: Literal["visit", "position"] = "visit"  # position: the reference's rows, whose meaning moves with the loop


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Gate on each head's attention output: sparse, dense (window = model_dim) or output gate (gain = 2)."""

    window: int = 12  # leading channels that the gate reads
    source: Literal["input", "query"] = "input"  # of the attention's normalized input, or of the projected query
    scale: float = 1.0  # inside the sigmoid
    gain: float = 1.0  # in front of it
    init_std: float = 0.0
    bias: float | None = None  # initial value of a trained bias inside the sigmoid

    def __post_init__(self) -> None:
        require(self.window > 0, "model.attention_gate.window must be positive")
        require_least(0, "model.attention_gate", init_std=self.init_std)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LanesConfig:
    """Two parallel streams from layer `start` on: attention reads the first, the MLP the second."""

    start: int
    final: Literal["mean", "attn", "mlp"] = "mean"  # which stream the head reads


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CarryConfig:
    """Recurrent carry: what a looped layer's later passes keep of the first passes' outputs."""

    beta: tuple[float, ...]  # one a looped layer
    alpha: tuple[tuple[float, ...], ...]  # row: the layer that runs, column: the layer remembered
    learn: bool = False  # train both, starting here; else they are constants
    round_to_bfloat16: bool = False  # the values that the record's buffers really held

    def __post_init__(self) -> None:
        require(not (self.learn and self.round_to_bfloat16), "model.carry.round_to_bfloat16 is for frozen values")
        square = all(len(row) == len(self.beta) for row in self.alpha) and len(self.alpha) == len(self.beta)
        require(square, "model.carry.alpha must be a square of the length of model.carry.beta")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BigramConfig:
    """Hashed bigram embedding added to the token embedding."""

    buckets: int  # the last one means "no previous token"
    dim: int

    def __post_init__(self) -> None:
        require_between(2, 1 << 24, "model.bigram", buckets=self.buckets)
        require_between(1, MOST_CHANNELS, "model.bigram", dim=self.dim)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SmearConfig:
    """Gate that mixes in the previous token's embedding, never across a document start."""

    form: Literal["additive", "blend"] = "additive"  # blend: one learned share a channel, starting at one half
    window: int | None = None  # additive: leading channels that the gate reads

    def __post_init__(self) -> None:
        reads, has_window = self.form == "additive", self.window is not None
        require(has_window or not reads, "model.smear.window is missing: the additive form needs it")
        belongs = "model.smear.window belongs to the additive form, not to 'blend'; set model.smear.window=false"
        require(reads or not has_window, belongs)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValueEmbeddingConfig:
    """One token table, projected once, added to the values of the listed layers."""

    dim: int
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValueResidualConfig:
    """What later layers take from the first one.

    mix: v <- a v_first + b v, a = b = 1/2 at first. add: v <- v + sigmoid(a) v_first, a = 0 at first. input: attention
    reads sigmoid(a) x + (1 - sigmoid(a)) (output of layer 0), a = 1/2 at first.
    """

    form: Literal["mix", "add", "input"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MultiTokenConfig:
    """Extra heads that predict tokens further ahead; trained, never exported."""

    heads: int
    weight: float  # of the mean of their losses beside the main one

    def __post_init__(self) -> None:
        require_between(1, 16, "model.multi_token", heads=self.heads)
        require(self.weight > 0, "model.multi_token.weight must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TernaryConfig:
    """Attention and MLP matrices act as sign times scale, or zero; gradients pass straight through."""

    group: int = 128  # neighbours in a row that share one scale

    def __post_init__(self) -> None:
        require_least(1, "model.ternary", group=self.group)
