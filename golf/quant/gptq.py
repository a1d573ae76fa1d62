"""GPTQ: round a weight column by column, pushing each rounding error onto the columns not yet rounded.

Minimizes tr((W - Q s) H (W - Q s)^T) greedily, H = sum over tokens of x x^T. With U the upper Cholesky factor of the
inverse (U^T U = H^-1), column j is rounded to q_j, e = (w_j - q_j s) / U_jj, and every later column l loses e U_jl.
Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022).

R rows (output channels), C columns (input channels).
"""

from typing import Literal

import torch
from torch import Tensor

from golf.errors import NumericalFaultError, UsageError
from golf.quant.primitives import divisor, require_finite

_ASYMMETRY = 1e-4  # of the largest entry: far above float32 accumulation noise, far below a wrong matrix


@torch.no_grad()
def gptq(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    *,
    levels: int,
    damping: float = 0.01,
    order: Literal["desc", "none"] = "desc",
    block_size: int = 128,
) -> Tensor:
    """Return int8 codes (R, C) of `weight` (R, C) for `scale` (R,) and `hessian` (C, C).

    `damping` times the mean diagonal is added to the diagonal: more of it goes towards round-to-nearest. `order`
    "desc" takes the columns by falling diagonal, ties by index. `block_size` changes speed and rounding noise only.
    Rows are independent, so matrices that share a Hessian may be stacked along them. A column whose diagonal is 0
    gets code 0. Factorizes in float64, updates in float32 (float64 for a float64 weight); on CUDA leave TF32 off.

    Raises NumericalFaultError for a Hessian that is not finite, symmetric and positive, or NaN in weight or scale.
    """
    if not damping >= 0:
        raise UsageError(f"damping is {damping}; it must be 0 or a positive number")
    require_finite(weight, "the weight")
    require_finite(scale, "the scale")
    _check_hessian(hessian)
    hessian = hessian.double()  # so that the factor depends neither on the device nor on the library
    diagonal = damped_diagonal(hessian, damping=damping)
    columns = torch.arange(len(diagonal), device=diagonal.device)
    if order == "desc":
        columns = torch.sort(diagonal, descending=True, stable=True).indices
    factor = _inverse_factor(hessian, diagonal, columns, damping)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    work = torch.where(hessian.diagonal() == 0, 0, weight.to(dtype))[:, columns]
    rounded = _round_columns(work.T.contiguous(), factor.to(dtype), scale, levels, block_size)
    codes = torch.empty_like(rounded)
    codes[columns] = rounded
    return codes.T.contiguous()


def damped_diagonal(hessian: Tensor, *, damping: float = 0.01) -> Tensor:
    """Return the diagonal (C,) of the damped Hessian.

    A zero entry (an input that was always 0) first becomes 1, or the least positive entry if that is smaller, so
    that a Hessian divided by its token count is not swamped by ones.
    """
    diagonal = hessian.diagonal()
    least = torch.where(diagonal > 0, diagonal, torch.inf).min().clamp(max=1.0)
    diagonal = torch.where(diagonal == 0, least, diagonal)
    return diagonal + damping * diagonal.mean()


def _check_hessian(hessian: Tensor) -> None:
    require_finite(hessian, "the Hessian")
    largest = float(hessian.abs().max())
    if largest == 0:
        raise NumericalFaultError("the Hessian is all zeros: calibration saw no activation")
    if float(hessian.diagonal().min()) < 0:
        raise NumericalFaultError("the Hessian has a negative diagonal entry, so it is no sum of x x^T")
    asymmetry = float((hessian - hessian.T).abs().max()) / largest
    if asymmetry > _ASYMMETRY:
        raise NumericalFaultError(f"the Hessian is asymmetric by {asymmetry:.1e} of its largest entry")


def _inverse_factor(hessian: Tensor, diagonal: Tensor, columns: Tensor, damping: float) -> Tensor:
    """Return the upper U with U^T U = H^-1 for the symmetrized, damped and permuted Hessian.

    H = M M^T with M upper is a Cholesky factorization from the far corner, and U = M^-1: one factorization and one
    triangular solve, without ever forming the inverse.
    """
    damped = (hessian + hessian.T) / 2
    damped.diagonal().copy_(diagonal)
    damped = damped[columns][:, columns]
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info):  # cholesky_ex returns finite-looking numbers even then
        raise NumericalFaultError(
            f"the Hessian is not positive definite with damping {damping}; raise it or calibrate on more tokens"
        )
    identity = torch.eye(len(columns), dtype=lower.dtype, device=lower.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor


def _round_columns(work: Tensor, factor: Tensor, scale: Tensor, levels: int, block_size: int) -> Tensor:
    """Round the rows of `work` (C, R), one weight column each, in order; consumes `work`, returns int8 (C, R)."""
    codes = torch.empty_like(work, dtype=torch.int8)
    pivots, divide_by, scale = factor.diagonal(), divisor(scale).to(work.dtype), scale.to(work.dtype)
    for start in range(0, len(work), block_size):
        stop = min(start + block_size, len(work))
        block, errors = work[start:stop], torch.empty_like(work[start:stop])
        for j, column in enumerate(block):
            code = torch.round(column / divide_by).clamp_(-levels, levels)
            codes[start + j] = code
            errors[j] = (column - code * scale) / pivots[start + j]
            block[j + 1 :].addr_(factor[start + j, start + j + 1 : stop], errors[j], alpha=-1)
        work[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return codes
