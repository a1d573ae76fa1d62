"""The [quant] table of a recipe: how a finished model is rounded and packed."""

import dataclasses
from typing import Literal

from golf.errors import require, require_least


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LqerConfig:
    """Low-rank correction of the matrices that GPTQ rounded worst."""

    rank: int = 4
    top_k: int = 3  # matrices that get one
    rank_by: Literal["frobenius", "hessian"] = "frobenius"  # size of an error: |E|, or tr(E H E^T), which GPTQ lowers
    factor_bits: int = 4  # of the right factor; the left one has 2
    group: int = 64  # neighbours in the right factor that share a scale; 0: symmetric factors, both of factor_bits

    def __post_init__(self) -> None:
        require_least(1, "quant.lqer", rank=self.rank, top_k=self.top_k)
        require_least(0, "quant.lqer", group=self.group)
        require(2 <= self.factor_bits <= 8, "quant.lqer.factor_bits must be between 2 and 8")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """Method, bits and clips by role of a tensor, calibration, and the codec of the artifact: docs/quantization.md."""

    method: Literal["gptq", "row_max", "clip_search", "row_clip_search"] = "gptq"  # all but gptq need no calibration
    matrix_bits: int = 6
    attn_proj_bits: int | None = None  # of attention's output matrices, if other than matrix_bits
    embed_bits: int = 8
    attn_clip_sigmas: float = 12.85
    mlp_clip_sigmas: float = 12.85
    matrix_clip_sigmas: float = 12.85  # matrices outside attention and MLP
    embed_clip_sigmas: float = 20.0
    float16_below: int = 0  # tensors of at most this many elements stay float16, whatever their role
    scale_floor: Literal["none", "unit"] = "none"  # unit: scale >= 1 / largest code, as up to #549; none: 2^-24
    rotate: bool = False  # OptRot: Hadamard-rotate rows where their number is a power of two
    damping: float = 0.01  # of the Hessian's diagonal, relative to its mean
    hessian_lambda: float = 0.0  # Hessian-aware clip; 0 = plain SDClip
    calibration_batches: int = 16
    calibration_windows: int = 48  # windows of data.seq_len tokens in a batch
    lqer: LqerConfig | None = None
    prune_to_bytes: int | None = None  # zero codes of +-1 until the packed model, without code, fits this
    codec: Literal["brotli", "lzma", "zlib", "zstd"] = "brotli"

    def __post_init__(self) -> None:
        for name in ("matrix_bits", "attn_proj_bits", "embed_bits"):
            require(getattr(self, name) in (None, *range(2, 9)), f"quant.{name} must be between 2 and 8")
        for name in ("attn_clip_sigmas", "mlp_clip_sigmas", "matrix_clip_sigmas", "embed_clip_sigmas"):
            require_least(0, "quant", **{name: getattr(self, name)})  # 0 spans each row's largest weight
        require(0 <= self.hessian_lambda < 1, "quant.hessian_lambda must be in [0, 1)")
        batches, windows = self.calibration_batches, self.calibration_windows
        require_least(1, "quant", calibration_batches=batches, calibration_windows=windows)
        require_least(0, "quant", damping=self.damping, float16_below=self.float16_below)
        has_hessians = self.method == "gptq"
        require(has_hessians or self.hessian_lambda == 0, "quant.hessian_lambda needs quant.method 'gptq'")
        require(
            has_hessians or self.lqer is None, "[quant.lqer] corrects what GPTQ rounds: it needs quant.method 'gptq'"
        )
        require(self.prune_to_bytes is None or self.prune_to_bytes > 0, "quant.prune_to_bytes must be positive")
