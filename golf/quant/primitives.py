"""Round weights to integer codes with one scale per row, and back.

Pure functions on tensors: R rows (output channels), C columns (input channels). A code is a `bits`-bit integer, nearly
always in [-levels, levels], levels = 2^(bits-1) - 1; the weight it stands for is `code * scale[row]`.
"""

import torch
from torch import Tensor

from golf.errors import NumericalFaultError

SCALE_FLOOR = 2.0**-24  # the least positive float16: 1e-10, the usual floor, is 0 once it is stored


def levels_of(bits: int) -> int:
    """Return the largest code of a symmetric `bits`-bit integer, 2 to 8 bits."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; codes of 2 to 8 bits exist")
    return (1 << bits - 1) - 1


def quantize(weight: Tensor, scale: Tensor, levels: int, *, lowest: int | None = None) -> Tensor:
    """Round `weight` (R, C) half to even to int8 codes in [lowest, levels], given `scale` (R,); lowest is -levels.

    A row of scale 0 gets code 0. Raises NumericalFaultError on NaN or infinity, which a cast to int8 would hide.
    """
    require_finite(weight, "the weight")
    require_finite(scale, "the scale")
    return round_to_codes(weight, scale, -levels if lowest is None else lowest, levels)


def round_to_codes(weight: Tensor, scale: Tensor, lowest: int, levels: int) -> Tensor:
    """Do what `quantize` does, unchecked: nothing is read back from a GPU, and the code of a NaN may be any."""
    return torch.round(weight.float() / divisor(scale)[:, None]).clamp_(lowest, levels).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 weights (R, C) of int8 `codes` and `scale` (R,); those of a float16 scale are exact."""
    return codes.float() * scale.float()[:, None]


def absmax_scale(weight: Tensor, *, levels: int, floor: float = SCALE_FLOOR) -> Tensor:
    """Return the float16 scale (R,) that maps each row's largest magnitude to `levels`."""
    require_finite(weight, "the weight")
    return float16_scale(weight.float().abs().amax(1) / levels, floor)


def float16_scale(scale: Tensor, floor: float) -> Tensor:
    """Round `scale` to float16, at least `floor`; raises NumericalFaultError where float16 overflows."""
    rounded = round_to_float16(scale, floor)
    require_finite(rounded, "the float16 scale")
    return rounded


def round_to_float16(scale: Tensor, floor: float) -> Tensor:
    """Do what `float16_scale` does, unchecked; where float16 overflows there is infinity."""
    return scale.clamp_min(floor).half()


def subnormal_rows(scale: Tensor) -> Tensor:
    """Return the mask (R,) of rows whose float16 scale is below 2^-14, where its relative steps get coarse."""
    return scale < torch.finfo(torch.float16).smallest_normal


def divisor(scale: Tensor) -> Tensor:
    """Return `scale` (R,) as float32 to divide by, with infinity for 0, so that such a row rounds to code 0."""
    return torch.where(scale > 0, scale.float(), torch.inf)


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise NumericalFaultError, with the count, if `tensor` holds NaN or infinity.

    Inside a compiled graph, where a tensor has no value to look at, nothing is checked.
    """
    if torch.compiler.is_compiling():
        return
    bad = tensor.numel() - int(tensor.isfinite().sum())
    if bad:
        raise NumericalFaultError(f"{what} holds {bad} NaN or infinite values out of {tensor.numel()}")
