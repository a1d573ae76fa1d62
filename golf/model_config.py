"""The model's tables of a recipe: everything that changes the function from tokens to logits.

An optional part is an optional sub-table, so a part that is off has no keys that could be dead; what contradicts itself
is refused here.
"""

import dataclasses
from typing import Literal

from golf.errors import require, require_least


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding over the first `dims` channels of each head."""

    dims: int  # rotated channels, even, at most head_dim
    base: float = 10_000.0
    round_to_bfloat16: bool = False  # the frequencies the record stacks were really trained with

    def __post_init__(self) -> None:
        require(self.dims > 0 and self.dims % 2 == 0, "model.rope.dims must be even and positive")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Depth recurrence: layers start..end run `extra_passes` more times once the schedule switches the loop on."""

    start: int
    end: int  # inclusive
    extra_passes: int

    def __post_init__(self) -> None:
        require(0 <= self.start <= self.end, "model.loop needs 0 <= start <= end")
        require(self.extra_passes >= 1, "model.loop.extra_passes must be at least 1; leave [model.loop] out for none")


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
        require(self.window > 0, "model.attention_gate.window must be positive")


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
        require(square, "model.carry.alpha must be a square of the length of model.carry.beta")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BigramConfig:
    """Hashed bigram embedding added to the token embedding."""

    buckets: int  # the last one means "no previous token"
    dim: int

    def __post_init__(self) -> None:
        require_least(2, "model.bigram", buckets=self.buckets)
        require_least(1, "model.bigram", dim=self.dim)


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
        require_least(1, "model", **{name: getattr(self, name) for name in sizes})
        require(self.hidden_dim > 0, "model.mlp_mult leaves the MLP no hidden channel")
        require(self.logit_softcap > 0, "model.logit_softcap must be positive")
        require(0 <= self.bos_id < self.vocab_size, "model.bos_id must be a token id below model.vocab_size")
        require(self.model_dim % self.num_heads == 0, "model.model_dim must be a multiple of model.num_heads")
        require(self.num_heads % self.num_kv_heads == 0, "model.num_heads must be a multiple of model.num_kv_heads")
        require(self.rope.dims <= self.head_dim, f"model.rope.dims must be at most the head size {self.head_dim}")
        require(0 <= self.xsa_last_n <= self.num_layers, "model.xsa_last_n must be between 0 and model.num_layers")
        require(self.vocab_size <= 65_536, "model.vocab_size must fit 16 bits (65,536)")
        if self.loop:
            require(self.loop.end < self.num_layers, "model.loop.end must be below model.num_layers")
        if self.carry:
            looped = self.loop.end - self.loop.start + 1 if self.loop else 0
            require(
                len(self.carry.beta) == looped, f"model.carry needs one beta for each of the {looped} looped layers"
            )
        if self.lanes:
            first = self.loop.end + 1 if self.loop else 0
            inside = first <= self.lanes.start < self.num_layers
            require(inside, f"model.lanes.start must be from {first}, behind the loop, to below model.num_layers")
        if self.attention_gate:
            fits = self.attention_gate.window <= self.model_dim
            require(fits, "model.attention_gate.window must be at most model.model_dim")
        if self.smear:
            require(0 < self.smear.window <= self.model_dim, "model.smear.window must be 1 to model.model_dim")
        if self.value_embedding:
            require_least(1, "model.value_embedding", dim=self.value_embedding.dim)
            inside = all(0 <= layer < self.num_layers for layer in self.value_embedding.layers)
            require(inside and bool(self.value_embedding.layers), "model.value_embedding.layers must name layers")
