"""LQER: a low-rank correction of what quantization did wrong, itself in a few bits.

E = W - Q s = U S V^T; the first r singular triples give left = U_r S_r (R, r) and right = V_r^T (r, C), and the weight
read back is Q s + left right. Zhang et al. 2024 (arXiv:2402.02446); asymmetric codes: parameter-golf #1851, #1855.

    asymmetric    left: one scale, 2 bits             right: a scale for each `group` neighbours, `bits` bits
                  s = max|x| / (levels + 1/2)         codes in [-levels - 1, levels]
    symmetric     both: a scale a row, `bits` bits    s = max|x| / levels, codes in [-levels, levels]

`group` 0 asks for the symmetric form; it is also taken where `group` does not divide the size of `right`. A factor is
stored as a QuantizedTensor with one row a scale; its true shape follows from the matrix it corrects.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from golf.quant.primitives import SCALE_FLOOR, absmax_scale, float16_scale, levels_of, quantize
from golf.quant.scheme import QuantizedTensor, rows_and_cols
from golf.quant_config import LqerConfig

_LEFT_BITS = 2
_LEFT, _RIGHT = ".lqer_left", ".lqer_right"


class Correction(NamedTuple):
    """The two packed factors of one matrix."""

    left: QuantizedTensor
    right: QuantizedTensor

    def expand(self, shape: tuple[int, ...]) -> Tensor:
        """Return left times right in `shape`, float32; ValueError if their sizes are not of such a product."""
        rows, cols = rows_and_cols(shape)
        left, right = self.left.dequantize().flatten(), self.right.dequantize().flatten()
        rank = len(left) // rows
        if len(left) != rank * rows or len(right) != rank * cols:
            raise ValueError(f"factors of {len(left)} and {len(right)} numbers do not correct a {rows} x {cols} matrix")
        return (left.view(rows, rank) @ right.view(rank, cols)).view(shape)


def factor_names(name: str) -> tuple[str, str]:
    """Return the names under which the two factors of matrix `name` are stored."""
    return name + _LEFT, name + _RIGHT


def is_factor(name: str) -> bool:
    """Whether `name` is that of a factor."""
    return name.endswith((_LEFT, _RIGHT))


def correct_worst(
    errors: Mapping[str, Tensor], hessians: Mapping[str, Tensor], config: LqerConfig
) -> dict[str, QuantizedTensor]:
    """Return the factors of the `top_k` matrices with the largest error, the worst first.

    The size of an error is |E|^2, or tr(E H E^T) with `rank_by` "hessian"; neither is relative to the weight. Both
    mappings are by the matrix's name.
    """
    sizes = {name: _size(error, hessians[name], config) for name, error in errors.items()}
    factors: dict[str, QuantizedTensor] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name))[: config.top_k]:
        pair = correct(errors[name], rank=config.rank, bits=config.factor_bits, group=config.group)
        factors.update(zip(factor_names(name), pair, strict=True))
    return factors


def correct(error: Tensor, *, rank: int, bits: int, group: int) -> Correction:
    """Approximate `error` (R, C) by two packed factors of at most `rank`; see the head of this file."""
    left, right = low_rank_factors(error, rank)
    if group and right.numel() % group == 0:
        return Correction(pack_asymmetric(left.view(1, -1), _LEFT_BITS), pack_asymmetric(right.view(-1, group), bits))
    return Correction(pack_symmetric(left, bits), pack_symmetric(right, bits))


def low_rank_factors(error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return left (R, r) and right (r, C), float32, of the truncated SVD of `error` (R, C), r at most `rank`.

    Factorizes in float64. The sign of a triple, which an SVD leaves open, is the one that makes the largest magnitude
    of a column of left negative: asymmetric codes reach further there.
    """
    u, sigma, vt = torch.linalg.svd(error.double(), full_matrices=False)
    left, right = u[:, :rank] * sigma[:rank], vt[:rank]
    peaks = left.gather(0, left.abs().argmax(0, keepdim=True))  # (1, r)
    sign = torch.where(peaks > 0, -1.0, 1.0)
    return (left * sign).float().contiguous(), (right * sign.T).float().contiguous()


def pack_asymmetric(groups: Tensor, bits: int) -> QuantizedTensor:
    """Round `groups` (N, n), one scale each, to all integers of `bits` bits."""
    levels = levels_of(bits)
    scale = float16_scale(groups.abs().amax(1) / (levels + 0.5), SCALE_FLOOR)
    return _packed(groups, scale, bits, lowest=-levels - 1)


def pack_symmetric(factor: Tensor, bits: int) -> QuantizedTensor:
    """Round `factor` (N, n), one scale a row, to [-levels, levels]."""
    levels = levels_of(bits)
    return _packed(factor, absmax_scale(factor, levels=levels), bits, lowest=-levels)


def _packed(factor: Tensor, scale: Tensor, bits: int, *, lowest: int) -> QuantizedTensor:
    codes = quantize(factor, scale, levels_of(bits), lowest=lowest)
    return QuantizedTensor(codes=codes, scale=scale, bits=bits, shape=tuple(factor.shape))


def _size(error: Tensor, hessian: Tensor, config: LqerConfig) -> float:
    weighted = error @ hessian.to(error) if config.rank_by == "hessian" else error
    return float((weighted * error).sum(dtype=torch.float64))
