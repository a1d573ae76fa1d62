"""The [model] table of a recipe: everything that changes the function from tokens to logits."""

import dataclasses
from typing import Literal

from golf.errors import require, require_between, require_least
from golf.part_config import (
    MOST_CHANNELS,
    BigramConfig,
    CarryConfig,
    GateConfig,
    LanesConfig,
    LoopConfig,
    MultiTokenConfig,
    RopeConfig,
    ShareConfig,
    SkipConfig,
    SmearConfig,
    TernaryConfig,
    ValueEmbeddingConfig,
    ValueResidualConfig,
)

Activation = Literal["leaky_relu_square", "star_relu", "swiglu", "relu_square_gated"]

_SLOPE = 0.5
_MOST_HIDDEN = 65_536  # channels of an MLP
_MOST_VISITS = 1024  # of layers in one forward


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The function that maps tokens to logits."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_mult: float  # hidden width over model_dim; the two gated activations take 2/3 of it for their third matrix
    rope: RopeConfig
    activation: Activation = "leaky_relu_square"
    negative_slope: float = _SLOPE  # of the leaky ReLU that is squared; 0 gives ReLU squared; not of gated ones
    mlp_rank: int = 0  # of each MLP matrix as a product of two; 0 = full
    mlp_widths: tuple[float, ...] = ()  # a factor on mlp_mult for each layer
    xsa_last_n: int = 0  # last layers with exclusive self-attention
    ln_scale: bool = False  # scale layer i's normalized inputs by 1/sqrt(i+1)
    resid_mix: bool = True  # layers start from r0 x + r1 (normalized embedding)
    qk_norm: bool = True
    q_gain_init: float | None = 1.0  # of the queries' gain a head; false = none
    logit_softcap: float | None = 30.0  # false = none
    tie_embeddings: bool = True
    embed_init_std: float = 0.005
    init: Literal["orthogonal", "default"] = "orthogonal"  # of matrices; default: uniform, as PyTorch's linear maps
    bos_id: int = 1  # token that starts every document
    cross_documents: bool = False  # rows are read across document starts, as before parameter-golf PR #1736
    parallel_start: int | None = None  # first layer whose attention and MLP read the same input, on one stream
    skips: SkipConfig | None = None
    loop: LoopConfig | None = None
    share: ShareConfig | None = None
    carry: CarryConfig | None = None
    lanes: LanesConfig | None = None
    attention_gate: GateConfig | None = None
    bigram: BigramConfig | None = None
    smear: SmearConfig | None = None
    value_embedding: ValueEmbeddingConfig | None = None
    value_residual: ValueResidualConfig | None = None
    multi_token: MultiTokenConfig | None = None
    ternary: TernaryConfig | None = None

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def gated_mlp(self) -> bool:
        """Whether the hidden layer is a product of two maps."""
        return self.activation in ("swiglu", "relu_square_gated")

    def hidden_dim(self, layer: int) -> int:
        """Width of the MLP's hidden layer."""
        return int(self._width(self.mlp_widths[layer] if self.mlp_widths else 1.0))

    def _width(self, factor: float) -> float:
        return self.model_dim * self.mlp_mult * factor * (2 / 3 if self.gated_mlp else 1)

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_mlp()
        self._check_depth()
        self._check_visits()
        self._check_parts()

    def _check_sizes(self) -> None:
        require_between(1, 65_536, "model", vocab_size=self.vocab_size)  # a token is stored in 16 bits
        require_between(1, 256, "model", num_layers=self.num_layers)
        require_between(1, MOST_CHANNELS, "model", model_dim=self.model_dim)
        require_least(1, "model", num_heads=self.num_heads, num_kv_heads=self.num_kv_heads)
        require_least(0, "model", embed_init_std=self.embed_init_std)
        caps = self.logit_softcap is None or self.logit_softcap >= 1e-3
        require(caps, "model.logit_softcap must be at least 0.001, or false")
        require(0 <= self.bos_id < self.vocab_size, "model.bos_id must be a token id below model.vocab_size")
        require(self.model_dim % self.num_heads == 0, "model.model_dim must be a multiple of model.num_heads")
        require(self.num_heads % self.num_kv_heads == 0, "model.num_heads must be a multiple of model.num_kv_heads")
        require(self.rope.dims <= self.head_dim, f"model.rope.dims must be at most the head size {self.head_dim}")
        require(0 <= self.xsa_last_n <= self.num_layers, "model.xsa_last_n must be between 0 and model.num_layers")

    def _check_mlp(self) -> None:
        require_between(0, MOST_CHANNELS, "model", mlp_rank=self.mlp_rank)
        require_between(-10, 10, "model", negative_slope=self.negative_slope)
        sloped = not self.gated_mlp or self.negative_slope == _SLOPE
        require(sloped, f"model.negative_slope does nothing with model.activation {self.activation!r}")
        factors = len(self.mlp_widths)
        require(factors in (0, self.num_layers), "model.mlp_widths needs one factor for each of model.num_layers")
        blamed = "mlp_widths" if factors and 1 <= self._width(1.0) <= _MOST_HIDDEN else "mlp_mult"
        for width in map(self._width, self.mlp_widths or (1.0,)):  # not yet whole: it may be infinite
            require(width >= 1, f"model.{blamed} leaves the MLP no hidden channel")
            require(width <= _MOST_HIDDEN, f"model.{blamed} gives the MLP more than {_MOST_HIDDEN:,} hidden channels")
        if self.ternary:
            sizes = (self.model_dim, *map(self.hidden_dim, range(self.num_layers)))
            whole = not any(size % self.ternary.group for size in sizes) and not self.mlp_rank
            require(whole, "model.ternary.group must divide model.model_dim and the MLP's width, with mlp_rank = 0")

    def _check_depth(self) -> None:
        """Refuse bands of layers that do not exist or overlap."""
        for name, band in (("loop", self.loop), ("share", self.share)):
            require(band is None or band.end < self.num_layers, f"model.{name}.end must be below model.num_layers")
        require(not (self.loop and self.share), "model.loop and model.share both repeat layers; keep one")
        looped = self.loop.end - self.loop.start + 1 if self.loop else 0
        if self.carry:
            fits = len(self.carry.beta) == looped
            require(fits, f"model.carry needs one beta for each of the {looped} looped layers")
        if self.lanes:
            first = max(band.end + 1 if band else 0 for band in (self.loop, self.share))
            inside = first <= self.lanes.start < self.num_layers
            require(inside, f"model.lanes.start must be from {first}, behind the loop, to below model.num_layers")
        if self.parallel_start is not None:
            inside = 0 <= self.parallel_start < self.num_layers
            require(inside, "model.parallel_start must be a layer, from 0 to below model.num_layers")
            require(self.lanes is None, "model.parallel_start and model.lanes are two forms of one thing; keep one")

    def _check_visits(self) -> None:
        key, visits = "num_layers", self.num_layers
        if self.loop:
            key, visits = "loop.extra_passes", visits + (self.loop.end - self.loop.start + 1) * self.loop.extra_passes
        if self.share:
            key, visits = "share.loops", visits + (self.share.end - self.share.start + 1) * (self.share.loops - 1)
        require(visits <= _MOST_VISITS, f"model.{key} makes more than {_MOST_VISITS:,} visits of layers in one forward")
        merges = self.skips is None or visits >= 2
        require(merges, "model.skips needs two visits of layers: one keeps its output, the other merges it")

    def _check_parts(self) -> None:
        if self.attention_gate:
            fits = self.attention_gate.window <= self.model_dim
            require(fits, "model.attention_gate.window must be at most model.model_dim")
        if self.smear and self.smear.window is not None:
            require(0 < self.smear.window <= self.model_dim, "model.smear.window must be 1 to model.model_dim")
        if self.value_embedding:
            require_between(1, MOST_CHANNELS, "model.value_embedding", dim=self.value_embedding.dim)
            layers, last = self.value_embedding.layers, self.num_layers - 1
            inside = bool(layers) and all(0 <= layer <= last for layer in layers) and len(set(layers)) == len(layers)
            require(inside, f"model.value_embedding.layers must name layers from 0 to {last}, each of them once")
        if self.value_residual:
            require(self.num_layers > 1, "model.value_residual needs a second layer")
