"""The stored form of ternary weights: codes in {-1, 0, 1} and one scale for each group of neighbours in a row."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SCALE_DTYPES = (torch.float16, torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TernaryTensor:
    """A matrix that acts as `codes * scale`, the scale of a group being the mean magnitude of its weights.

    What is read back is not that product but a weight that acts as it: see `dequantize`.
    """

    codes: Tensor  # (rows, cols) int8 in {-1, 0, 1}
    scale: Tensor  # (rows, cols / group) float16 or float32, not negative

    def __post_init__(self) -> None:
        rows, groups = self.scale.shape if self.scale.ndim == 2 else (0, 0)
        if self.codes.dtype != torch.int8 or self.codes.ndim != 2 or len(self.codes) != rows or not rows * groups:
            raise ValueError(f"ternary codes {tuple(self.codes.shape)} and scale {tuple(self.scale.shape)} do not fit")
        if self.codes.shape[1] % groups or self.scale.dtype not in _SCALE_DTYPES:
            raise ValueError(f"{groups} {self.scale.dtype} scales a row of {self.codes.shape[1]} codes do not fit")
        if int(self.codes.amin()) < -1 or int(self.codes.amax()) > 1:
            raise ValueError("ternary codes must be -1, 0 or 1")
        if float(self.scale.amin()) < 0:
            raise ValueError("ternary scales must not be negative")

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.codes.shape)

    def dequantize(self) -> Tensor:
        """Return the float32 weight (rows, cols) whose ternary form is `codes` and `scale`.

        It is codes * scale / mean|codes| of the group: the zeros of a group would else make the mean magnitude, which
        the model takes again, too small ("shrinkage"). A scale without codes is lost.
        """
        grouped = self.codes.float().unflatten(1, (self.scale.shape[1], -1))
        filled = grouped.abs().mean(-1)
        magnitude = self.scale.float() / torch.where(filled > 0, filled, 1.0)
        weight: Tensor = (grouped * magnitude[..., None]).flatten(1)
        return weight
