"""Averages of weights as profiles over training time, and how to make one profile out of others after the fact.

Karras et al. 2024, arXiv:2312.02696, section 3. A power-function average that ends at time t weighs time tau by
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]; its relative width is the profile's standard deviation / t.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PowerProfile(NamedTuple):
    """A power-function average with exponent `gamma` that ends at time `end` (steps)."""

    gamma: float
    end: float


class Reconstruction(NamedTuple):
    """Weights x_i of stored averages whose sum approximates a target profile."""

    weights: list[float]
    residual: float  # |sum x_i p_i - target| / |target|
    amplification: float  # sum |x_i|: by how much storage rounding can grow


def gamma_of_width(relative_width: float) -> float:
    """Largest real root of g^3 + 7 g^2 + (16 - u) g + (12 - u) = 0 with u = relative_width^-2."""
    u = relative_width**-2
    roots = np.roots([1.0, 7.0, 16.0 - u, 12.0 - u])
    return float(roots.real[np.abs(roots.imag) < 1e-9].max())


def width_of_gamma(gamma: float) -> float:
    """sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))."""
    return float(np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3)))


def power_decay(gamma: float, step: int) -> float:
    """Share of the old average kept at step `step` >= 1: (1 - 1/step)^(gamma + 1). The first step keeps nothing."""
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def dot(a: PowerProfile, b: PowerProfile) -> float:
    """Integral of the product of two profiles, in the form that does not overflow."""
    ratio = a.end / b.end
    exponent = b.gamma if a.end < b.end else -a.gamma
    scale = (a.gamma + b.gamma + 1) * max(a.end, b.end)
    return float((a.gamma + 1) * (b.gamma + 1) * ratio**exponent / scale)


def reconstruct(stored: Sequence[PowerProfile], target: PowerProfile) -> Reconstruction:
    """Least-squares weights of `stored` that come closest to `target`, normalized to sum to 1, in float64."""
    gram = np.array([[dot(a, b) for b in stored] for a in stored])
    overlap = np.array([dot(a, target) for a in stored])
    weights = np.linalg.lstsq(gram, overlap, rcond=1e-14)[0]
    weights = weights / weights.sum()
    norm = dot(target, target)
    squared = weights @ gram @ weights - 2 * weights @ overlap + norm
    return Reconstruction(weights.tolist(), float(np.sqrt(max(squared, 0.0) / norm)), float(np.abs(weights).sum()))
