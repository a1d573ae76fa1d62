"""Forms of Muon that remember how large rows and columns are: running means of squared values, in float32.

NorMuon: Li et al. 2025, arXiv:2510.05491. Mousse: the diagonal form of a parameter-golf entry.
N matrices of one shape; R rows, C columns.
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["plain", "normuon", "mousse"]

_NORMUON_DECAY = 0.95
_MOUSSE_DECAY = 0.99
_FLOOR = 1e-8


def first_squares(form: Form, shape: tuple[int, int, int], device: torch.device) -> dict[str, Tensor]:
    """Return what `form` remembers of N matrices `shape` (N, R, C) before the first step.

    NorMuon begins with zeros: the correction of that bias would be one factor a matrix, which its rescaling cancels.
    """
    count, rows, columns = shape
    if form == "normuon":
        return {"row_squares": torch.zeros(count, rows, device=device)}
    if form == "mousse":
        row_squares, column_squares = (torch.ones(count, size, device=device) for size in (rows, columns))
        return {"row_squares": row_squares, "column_squares": column_squares}
    return {}


def track_mousse_(squares: dict[str, Tensor], updates: Tensor) -> None:
    """Take the rows and columns of `updates` (N, R, C) into their running mean squares, before Newton-Schulz."""
    values = updates.float().square()
    squares["row_squares"].lerp_(values.mean(-1), 1.0 - _MOUSSE_DECAY)
    squares["column_squares"].lerp_(values.mean(-2), 1.0 - _MOUSSE_DECAY)


def precondition(updates: Tensor, squares: dict[str, Tensor]) -> Tensor:
    """Multiply rows and columns of `updates` (N, R, C) by max(mean square, 1e-8)^(-1/2); the dtype is kept."""
    rows, columns = (squares[key].clamp_min(_FLOOR).rsqrt() for key in ("row_squares", "column_squares"))
    return (updates.float() * rows[:, :, None] * columns[:, None, :]).to(updates.dtype)


def track_normuon_(squares: dict[str, Tensor], directions: Tensor) -> None:
    """Take the rows of `directions` (N, R, C), after Newton-Schulz, into their running mean squares."""
    squares["row_squares"].lerp_(directions.float().square().mean(-1), 1.0 - _NORMUON_DECAY)


def level_rows(directions: Tensor, squares: dict[str, Tensor]) -> Tensor:
    """Divide rows of `directions` (N, R, C) by their root mean square; each matrix keeps its Frobenius norm and dtype.

    A matrix of zeros stays zeros.
    """
    values = directions.float()
    leveled: Tensor = values / squares["row_squares"].sqrt().clamp_min(_FLOOR)[:, :, None]
    length, wanted = (matrix.norm(dim=(-2, -1), keepdim=True) for matrix in (leveled, values))
    rescaled: Tensor = leveled * (wanted / length.clamp_min(_FLOOR))
    return rescaled.to(directions.dtype)
