"""Orthogonalization by Newton-Schulz iterations.

Classic quintic: Jordan et al. 2024 (Muon). Polar Express: Amsel et al. 2025, arXiv:2505.16932, as used in
parameter-golf PR #1344.
"""

from typing import Literal

from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

_CLASSIC = (3.4445, -4.775, 2.0315)
_POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def coefficients(kind: Literal["classic", "polar_express"], steps: int) -> Coefficients:
    """Return (a, b, c) of each iteration. Raises ValueError when Polar Express is asked for more than its 5."""
    if kind == "classic":
        return (_CLASSIC,) * steps
    if steps > len(_POLAR_EXPRESS):
        raise ValueError(f"Polar Express has {len(_POLAR_EXPRESS)} iterations, {steps} asked for")
    return _POLAR_EXPRESS[:steps]


def orthogonalize(matrices: Tensor, iterations: Coefficients) -> Tensor:
    """Approximate U V^T of each matrix U S V^T in `matrices` (N, R, C), in their dtype.

    X <- X / (|X|_F + 1e-7), then for each (a, b, c): S = X X^T, X <- a X + (b S + c S^2) X, with R <= C by transposing.
    Every product and sum is rounded by itself, as in the record stacks: in bfloat16 a fused form ends 5 % away.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in iterations:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    result: Tensor = x.mT if tall else x
    return result


def normalize_rows(matrices: Tensor) -> Tensor:
    """Divide each row by max(its L2 norm, 1e-7); the norm is taken in float32 (MuonEq-R)."""
    norms = matrices.float().norm(dim=-1, keepdim=True).clamp_min(1e-7)
    normalized: Tensor = matrices / norms.to(matrices.dtype)
    return normalized
