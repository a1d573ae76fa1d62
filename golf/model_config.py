"""The [model] table of a recipe: everything that changes the function from tokens to logits."""

import dataclasses
from typing import Literal

from golf.errors import require, require_least
from golf.part_config import (
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
    negative_slope: float = 0.5  # of the leaky ReLU that is squared; 0 gives ReLU squared
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
        factor = self.mlp_widths[layer] if self.mlp_widths else 1.0
        return int(self.model_dim * self.mlp_mult * factor * (2 / 3 if self.gated_mlp else 1))

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_depth()
        self._check_parts()

    def _check_sizes(self) -> None:
        sizes = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
        require_least(1, "model", **{name: getattr(self, name) for name in sizes})
        require_least(0, "model", mlp_rank=self.mlp_rank)
        widths = len(self.mlp_widths)
        require(widths in (0, self.num_layers), "model.mlp_widths needs one factor for each of model.num_layers")
        hidden = [self.hidden_dim(layer) for layer in range(self.num_layers)]
        require(min(hidden) > 0, "model.mlp_mult leaves the MLP no hidden channel")
        require(self.logit_softcap is None or self.logit_softcap > 0, "model.logit_softcap must be positive, or false")
        require(0 <= self.bos_id < self.vocab_size, "model.bos_id must be a token id below model.vocab_size")
        require(self.model_dim % self.num_heads == 0, "model.model_dim must be a multiple of model.num_heads")
        require(self.num_heads % self.num_kv_heads == 0, "model.num_heads must be a multiple of model.num_kv_heads")
        require(self.rope.dims <= self.head_dim, f"model.rope.dims must be at most the head size {self.head_dim}")
        require(0 <= self.xsa_last_n <= self.num_layers, "model.xsa_last_n must be between 0 and model.num_layers")
        require(self.vocab_size <= 65_536, "model.vocab_size must fit 16 bits (65,536)")
        if self.ternary:
            whole = not any(size % self.ternary.group for size in (self.model_dim, *hidden)) and not self.mlp_rank
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

    def _check_parts(self) -> None:
        if self.attention_gate:
            fits = self.attention_gate.window <= self.model_dim
            require(fits, "model.attention_gate.window must be at most model.model_dim")
        if self.smear and self.smear.window is not None:
            require(0 < self.smear.window <= self.model_dim, "model.smear.window must be 1 to model.model_dim")
        if self.value_embedding:
            require_least(1, "model.value_embedding", dim=self.value_embedding.dim)
            inside = all(0 <= layer < self.num_layers for layer in self.value_embedding.layers)
            require(inside and bool(self.value_embedding.layers), "model.value_embedding.layers must name layers")
        if self.value_residual:
            require(self.num_layers > 1, "model.value_residual needs a second layer")
