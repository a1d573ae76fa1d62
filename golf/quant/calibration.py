"""Hessians of the layers' inputs: H = mean over tokens of x x^T, for every tap of the model.

One unit of work is one batch of windows. Each unit's Gram matrix is turned into integers of a fixed point chosen from
unit 0, so the sum is exact and its order free: any number of ranks gets the same bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from golf.compilation import uncompiled
from golf.data.windows import Window, calibration_windows, read_windows
from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.quant_config import QuantConfig

_HEADROOM = 16.0  # how much larger than unit 0's largest entry another unit's may be


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """The windows the quantizer looks at, independent of the number of ranks."""

    shards: Sequence[Path]
    units: list[list[Window]]
    window_len: int

    @classmethod
    def draw(
        cls, shards: Sequence[Path], sizes: Sequence[int], config: QuantConfig, window_len: int
    ) -> "CalibrationSet":
        """Draw the recipe's windows from the training shards as virtual rank 0 of 8 does."""
        units = calibration_windows(
            sizes,
            window_len=window_len,
            windows_per_batch=config.calibration_windows,
            num_batches=config.calibration_batches,
        )
        return cls(shards, units, window_len)

    @property
    def tokens(self) -> int:
        """Tokens seen in all."""
        return sum(len(unit) for unit in self.units) * self.window_len


class GramObserver:
    """Sums x^T x (in, in) in float32 for every tap; a layer that is visited again adds to the same sum."""

    def __init__(self) -> None:
        self.grams: dict[str, Tensor] = {}

    def see(self, tap: str, x: Tensor) -> None:
        """Add the products of `x` (..., in)."""
        rows = x.detach().flatten(0, -2).float()
        gram = rows.mT @ rows
        self.grams[tap] = self.grams[tap] + gram if tap in self.grams else gram


@torch.no_grad()
def collect_hessians(
    model: GPT,
    calibration: CalibrationSet,
    *,
    plan: LayerPlan,
    world: World,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Run the model over the calibration set; return each tap's Hessian (in, in), float32, per token.

    The same on any number of ranks, bit for bit on one type of GPU. Raises NumericalFaultError when an activation is
    not finite, an input is zero throughout the first unit, or a unit's products outgrow the fixed point.
    """
    own = range(world.rank, len(calibration.units), world.size)
    grams = _unit_grams(model, calibration, own[0] if own else 0, plan, world)
    exponents = _agree_exponents(grams, len(calibration.units), world)
    sums = {tap: torch.zeros_like(gram, dtype=torch.int64) for tap, gram in grams.items()}
    for index in own:
        if index != own[0]:
            grams = _unit_grams(model, calibration, index, plan, world)
        for tap, gram in grams.items():
            sums[tap] += _fixed_point(gram, exponents[tap], tap, len(calibration.units))
        advance(1)
    for total in sums.values():
        world.sum_(total)
    scale = {tap: 2.0 ** -exponents[tap] / calibration.tokens for tap in sums}
    return {tap: (total.double() * scale[tap]).float() for tap, total in sums.items()}


def _unit_grams(
    model: GPT, calibration: CalibrationSet, index: int, plan: LayerPlan, world: World
) -> dict[str, Tensor]:
    observer = GramObserver()
    batch = read_windows(calibration.shards, calibration.units[index], calibration.window_len)
    with uncompiled():
        model(batch.to(world.device), plan=plan, observer=observer)
    return observer.grams


def _agree_exponents(grams: dict[str, Tensor], units: int, world: World) -> dict[str, int]:
    """Choose, from rank 0's first unit, the largest 2^e per tap for which `units` sums of 2^e G stay below 2^62.

    All ranks refuse the same: a unit that gives no scale, because it is zero or not finite, is the first for all.
    """
    largest = world.agree([float(gram.abs().amax()) for gram in grams.values()])
    exponents = {}
    for tap, value in zip(grams, largest, strict=True):
        if not 0 < value < math.inf:
            fault = "is zero everywhere" if value == 0 else "holds NaN or infinity"
            raise NumericalFaultError(f"calibration: the input of {tap} {fault}")
        exponents[tap] = 62 - math.ceil(math.log2(units * _HEADROOM * value))
    return exponents


def _fixed_point(gram: Tensor, exponent: int, tap: str, units: int) -> Tensor:
    scaled = gram.double() * 2.0**exponent
    if not bool((scaled.abs() < 2.0**62 / units).all()):
        raise NumericalFaultError(
            f"calibration: the input of {tap} is not finite, or far larger than in the first batch"
        )
    return scaled.round().to(torch.int64)
