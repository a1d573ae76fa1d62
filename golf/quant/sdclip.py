"""SDClip: the scale of a row from its standard deviation, not from its extremes.

With k = clip_sigmas, R = levels and sigma the row's unbiased standard deviation:

    s_i = float16(max(k * sigma_i / R, floor))

k is 12 to 20, so that codes near +-R are almost never used; k sets the step, hence the entropy: a Gaussian row costs
about log2(sqrt(2 pi e) * R / k) bits a weight. From the parameter-golf records of April 2026 (#1394, #1412).
"""

import torch
from torch import Tensor

from golf.errors import UsageError
from golf.quant.primitives import SCALE_FLOOR, float16_scale, require_finite, round_to_float16

_SPREAD = 1e-6  # below this share of a row's absmax its deviation is rounding noise, not spread
_LEAST_IMPORTANCE = 1e-8  # floor of a Hessian diagonal entry


@torch.no_grad()
def choose_scale(
    weight: Tensor,
    *,
    clip_sigmas: float,
    levels: int,
    hessian_diagonal: Tensor | None = None,
    hessian_lambda: float = 0.0,
    floor: float = SCALE_FLOOR,
) -> Tensor:
    """Return the float16 scale (R,) of `weight` (R, C).

    `clip_sigmas` 0 spans each row's absmax; so does a row without spread (one column, or all values equal).
    With `hessian_lambda` in (0, 1) the scale of row i is multiplied by `1 + lambda * (r_i - 1)`, r_i being the row's
    mean magnitude weighted by `hessian_diagonal` (C,), relative to the mean over rows; give the damped diagonal
    (`golf.quant.gptq.damped_diagonal`). Raises UsageError for another lambda or a lambda without a diagonal,
    NumericalFaultError for NaN, infinity or a scale beyond float16.
    """
    if not 0 <= hessian_lambda < 1:
        raise UsageError(f"hessian_lambda is {hessian_lambda}; it must lie in [0, 1), or scales may become negative")
    require_finite(weight, "the weight")
    weight = weight.float()
    reach = _reach(weight, clip_sigmas)
    if hessian_lambda:
        if hessian_diagonal is None:
            raise UsageError(f"hessian_lambda is {hessian_lambda}, but there is no Hessian; calibrate or set it to 0")
        require_finite(hessian_diagonal, "the Hessian diagonal")
        reach = reach * (1 + hessian_lambda * (_row_importance(weight, hessian_diagonal) - 1))
    return float16_scale(reach / levels, floor)


def plain_scale(weight: Tensor, *, clip_sigmas: float, levels: int, floor: float = SCALE_FLOOR) -> Tensor:
    """Return the scale (R,) that `choose_scale` gives without a Hessian, unchecked: NaN and infinity stay in it.

    Nothing is read back from a GPU, which would wait for all that is queued.
    """
    return round_to_float16(_reach(weight.float(), clip_sigmas) / levels, floor)


def _reach(weight: Tensor, clip_sigmas: float) -> Tensor:
    """Return the magnitude (R,) that the largest code stands for."""
    absmax = weight.abs().amax(1)
    if not clip_sigmas or weight.shape[1] == 1:
        return absmax
    sigma = weight.std(1)
    return torch.where(sigma > _SPREAD * absmax, clip_sigmas * sigma, absmax)


def _row_importance(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Return r_i = u_i / mean(u) with u_i = mean_j(|W_ij| h_j / mean(h)); 1 everywhere for a zero matrix."""
    diagonal = diagonal.float().clamp_min(_LEAST_IMPORTANCE)
    importance = (weight.abs() * (diagonal / diagonal.mean())).mean(1)
    mean = importance.mean()
    return torch.where(mean > 0, importance / mean, 1.0)
