"""How one tensor is stored, and the stored form itself."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from golf.quant.primitives import dequantize, levels_of

_INTEGER_KINDS = ("gptq", "nearest")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorScheme:
    """The treatment of one tensor; which tensor gets which is decided elsewhere."""

    kind: Literal["gptq", "nearest", "float16", "float32"]
    bits: int = 0  # 2 to 8 for gptq and nearest, 0 for the floats
    clip_sigmas: float = 0.0  # levels span this many standard deviations of a row; 0: its absmax

    def __post_init__(self) -> None:
        if self.kind in _INTEGER_KINDS:
            levels_of(self.bits)
        elif self.bits or self.clip_sigmas:
            raise ValueError(f"{self.kind} takes neither bits nor clip_sigmas: {self}")
        if not 0 <= self.clip_sigmas < math.inf:
            raise ValueError(f"clip_sigmas is {self.clip_sigmas}; it must be 0 or a positive number")

    @property
    def levels(self) -> int:
        """The largest code, 2^(bits-1) - 1."""
        return levels_of(self.bits)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """Integer codes with one scale a row: the weight is `codes * scale[:, None]`, viewed as `shape`.

    A row is one run of the last dimension of `shape`; a vector has one row.
    """

    codes: Tensor  # (rows, cols) int8 in [-levels, levels]
    scale: Tensor  # (rows,) float16
    bits: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        levels = levels_of(self.bits)
        rows, cols = rows_and_cols(self.shape)
        if self.codes.dtype != torch.int8 or self.codes.shape != (rows, cols):
            raise ValueError(f"codes of {self.shape} must be int8 {(rows, cols)}, not {_describe(self.codes)}")
        if self.scale.dtype != torch.float16 or self.scale.shape != (rows,):
            raise ValueError(f"scale of {self.shape} must be float16 {(rows,)}, not {_describe(self.scale)}")
        low, high = int(self.codes.amin()), int(self.codes.amax())
        if low < -levels or high > levels:
            raise ValueError(f"codes span [{low}, {high}]; {self.bits} bits allow [-{levels}, {levels}]")

    def dequantize(self) -> Tensor:
        """Return the weight, float32, in its own shape."""
        return dequantize(self.codes, self.scale).reshape(self.shape)


Stored = QuantizedTensor | Tensor  # a tensor as an artifact holds it


def rows_and_cols(shape: tuple[int, ...]) -> tuple[int, int]:
    """Split `shape` into rows and columns of codes; raises ValueError when it holds no element."""
    if not shape or math.prod(shape) < 1 or min(shape) < 1:
        raise ValueError(f"shape {shape} holds no row of codes")
    return math.prod(shape[:-1]), shape[-1]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
