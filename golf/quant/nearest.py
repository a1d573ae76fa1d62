"""Rounding to nearest, row by row, without calibration: the quantizers of the records before GPTQ.

    nearest          s = max|w| / R                  codes in [-R, R]
    row_max          s = max|w| / R                  codes in [-R - 1, R]         parameter-golf #162 to #401
    percentile       s = P(|w|) / R, w cut at +-P    codes in [-R, R]             the naive baseline; tables up to #549
    clip_search      s = P_p(|w|) / R, best p        codes in [-R, R]             #414, "GPTQ-lite": one p a matrix
    row_clip_search                                                               one p a row

R is the largest code, P a percentile of the row. The best p has the least squared error, the first of equals. Every
scale is at least the scheme's floor and is stored as float16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from golf.quant.primitives import absmax_scale, dequantize, float16_scale, quantize, require_finite
from golf.quant.rotation import hadamard
from golf.quant.scheme import QuantizedTensor, TensorScheme

CLIP_CANDIDATES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
PERCENTILE = 0.9999984

_QUANTILE_ELEMENTS = 2**24  # torch.quantile takes no more at once


@torch.no_grad()
def quantize_nearest(weight: Tensor, scheme: TensorScheme) -> QuantizedTensor:
    """Round `weight` (R, C) as `scheme` says; raises NumericalFaultError for NaN or infinity."""
    require_finite(weight, "the weight")
    rows = hadamard(weight) if scheme.rotated else weight.float()
    codes, scale = _round(rows, scheme)
    return QuantizedTensor(
        codes=codes, scale=scale, bits=scheme.bits, shape=tuple(weight.shape), rotated=scheme.rotated
    )


def row_max_scale(weight: Tensor, scheme: TensorScheme) -> Tensor:
    """Return max(max|w| / R, floor) a row (R,), float32: what fake quantization divides by."""
    return (weight.float().abs().amax(1) / scheme.levels).clamp_min(scheme.floor)


def _round(weight: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    levels, floor = scheme.levels, scheme.floor
    if scheme.kind == "percentile":
        return _percentile(weight, levels, floor)
    if scheme.kind in ("clip_search", "row_clip_search"):
        scale = _search(weight, levels, floor, per_row=scheme.kind == "row_clip_search")
        return quantize(weight, scale, levels), scale
    scale = absmax_scale(weight, levels=levels, floor=floor)
    return quantize(weight, scale, levels, lowest=-levels - 1 if scheme.kind == "row_max" else -levels), scale


def _percentile(weight: Tensor, levels: int, floor: float) -> tuple[Tensor, Tensor]:
    """Cut each row at its percentile. Codes are rounded with the float32 scale: so the recorded runs did it."""
    (reach,) = _quantiles(weight.abs(), [PERCENTILE])
    scale = (reach / levels).clamp_min(floor)
    cut = weight.clamp(-reach[:, None], reach[:, None])
    return quantize(cut, scale, levels), float16_scale(scale, floor)


def _search(weight: Tensor, levels: int, floor: float, *, per_row: bool) -> Tensor:
    """Return the float16 scale (R,) of the candidate with the least squared error, of the matrix or `per_row`."""
    scales = [float16_scale(reach / levels, floor) for reach in _quantiles(weight.abs(), CLIP_CANDIDATES)]
    errors = [_squared_error(weight, scale, levels) for scale in scales]  # (R,) each
    if not per_row:
        totals = [float(error.sum()) for error in errors]
        return scales[totals.index(min(totals))]
    best, least = scales[0], errors[0]
    for scale, error in zip(scales[1:], errors[1:], strict=True):
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _squared_error(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    return (weight - dequantize(quantize(weight, scale, levels), scale)).double().square().sum(1)


def _quantiles(magnitude: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Return the quantiles (P, R) of the rows (R, C), interpolated linearly; 1 is the largest value."""
    wanted = torch.tensor(probabilities, device=magnitude.device)
    pieces = magnitude.split(max(1, _QUANTILE_ELEMENTS // magnitude.shape[1]))
    return torch.cat([torch.quantile(piece, wanted, dim=1) for piece in pieces], 1)
