"""How one tensor is stored, and the stored form itself."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from golf.quant.primitives import SCALE_FLOOR, dequantize, levels_of
from golf.quant.rotation import can_rotate, hadamard
from golf.quant.ternary import TernaryTensor

Kind = Literal["gptq", "nearest", "row_max", "percentile", "clip_search", "row_clip_search", "ternary", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorScheme:
    """The treatment of one tensor; which tensor gets which is decided elsewhere."""

    kind: Kind
    bits: int = 0  # 2 to 8 for the integer kinds, 0 for the others
    clip_sigmas: float = 0.0  # gptq: levels span this many standard deviations of a row; 0: its absmax
    floor: float = SCALE_FLOOR  # least scale
    rotated: bool = False  # rows are rotated before rounding

    def __post_init__(self) -> None:
        if self.kind not in ("ternary", "float16"):
            levels_of(self.bits)
        elif self.bits or self.rotated:
            raise ValueError(f"{self.kind} takes neither bits nor rotation: {self}")
        if self.clip_sigmas and self.kind != "gptq":
            raise ValueError(f"{self.kind} takes no clip_sigmas: {self}")
        if not 0 <= self.clip_sigmas < math.inf:
            raise ValueError(f"clip_sigmas is {self.clip_sigmas}; it must be 0 or a positive number")

    @property
    def levels(self) -> int:
        """The largest code, 2^(bits-1) - 1."""
        return levels_of(self.bits)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """Integer codes with one scale a row: the weight is `codes * scale[:, None]`, rotated back, viewed as `shape`.

    A row is one run of the last dimension of `shape`; a vector has one row.
    """

    codes: Tensor  # (rows, cols) int8 in [-levels - 1, levels]: any integer of `bits` bits
    scale: Tensor  # (rows,) float16
    bits: int
    shape: tuple[int, ...]
    rotated: bool = False

    def __post_init__(self) -> None:
        levels = levels_of(self.bits)
        rows, cols = rows_and_cols(self.shape)
        if self.codes.dtype != torch.int8 or self.codes.shape != (rows, cols):
            raise ValueError(f"codes of {self.shape} must be int8 {(rows, cols)}, not {_describe(self.codes)}")
        if self.scale.dtype != torch.float16 or self.scale.shape != (rows,):
            raise ValueError(f"scale of {self.shape} must be float16 {(rows,)}, not {_describe(self.scale)}")
        low, high = int(self.codes.amin()), int(self.codes.amax())
        if low < -levels - 1 or high > levels:
            raise ValueError(f"codes span [{low}, {high}]; {self.bits} bits allow [{-levels - 1}, {levels}]")
        if self.rotated and not can_rotate(rows):
            raise ValueError(f"codes of {self.shape} cannot be rotated: {rows} rows are not a power of two")

    def dequantize(self) -> Tensor:
        """Return the weight, float32, in its own shape."""
        weight = dequantize(self.codes, self.scale)
        return (hadamard(weight) if self.rotated else weight).reshape(self.shape)


Stored = QuantizedTensor | TernaryTensor | Tensor  # a tensor as an artifact holds it


def rows_and_cols(shape: tuple[int, ...]) -> tuple[int, int]:
    """Split `shape` into rows and columns of codes; raises ValueError when it holds no element."""
    if not shape or math.prod(shape) < 1 or min(shape) < 1:
        raise ValueError(f"shape {shape} holds no row of codes")
    return math.prod(shape[:-1]), shape[-1]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
