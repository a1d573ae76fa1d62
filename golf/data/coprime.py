"""Coprime-stride windows: many shards mixed in every batch, each shard visited in large even jumps.

From parameter-golf PR #1060. After a random phase a shard is n blocks; its cycle visits block (start + j stride) mod n
for j = 0 … n - 1 with a stride coprime to n, so every block once. A step chooses shards in proportion to
(blocks left)^a, gives each one block and shares out the rest in the same proportion. Over the first 1,800 steps a falls
from 0.9 to 0.5, and the shards mixed grow from one to eight for each virtual rank.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from golf.data.windows import Window, draw_phase
from golf.errors import UsageError
from golf.ranks import VIRTUAL_RANKS

_RAMP_STEPS = 1800
_POWER = (0.9, 0.5)
_MIXED = (VIRTUAL_RANKS, 8 * VIRTUAL_RANKS)


class Cycle(NamedTuple):
    """The order in which the blocks of one shard are visited."""

    blocks: int
    phase: int
    start: int
    stride: int

    def window_start(self, visit: int, window_len: int) -> int:
        """Return the first token of visit 0 … blocks - 1."""
        return self.phase + (self.start + visit * self.stride) % self.blocks * window_len


def coprime_windows(sizes: Sequence[int], *, window_len: int, windows_per_step: int) -> Iterator[list[Window]]:
    """Yield each step's windows over all virtual ranks, for ever; a window reads window_len + 1 tokens.

    The generator's seed is constant, as the other streams are unseeded. When no block is left all shards begin a new
    cycle. Raises UsageError at once if no shard holds one window.
    """
    if all(size <= window_len for size in sizes):
        raise UsageError(
            f"no training shard holds the {window_len + 1} tokens of a window; use longer shards or shorter windows"
        )
    return _draw_steps(sizes, window_len, windows_per_step)


def _draw_steps(sizes: Sequence[int], window_len: int, windows_per_step: int) -> Iterator[list[Window]]:
    generator = np.random.Generator(np.random.PCG64(0))
    cycles: list[Cycle] = []
    left = np.zeros(len(sizes), dtype=np.int64)  # (shards,) blocks not yet visited
    for step in count():
        windows: list[Window] = []
        while len(windows) < windows_per_step:
            if not left.any():
                cycles = [_draw_cycle(size, window_len, generator) for size in sizes]
                left = np.array([cycle.blocks for cycle in cycles])
            counts = _share_out(left, windows_per_step - len(windows), step, generator)
            visits = [(visit, shard) for shard in np.flatnonzero(counts).tolist() for visit in range(counts[shard])]
            for visit, shard in sorted(visits):  # the first window of each chosen shard, then the second of each, …
                cycle = cycles[shard]
                windows.append((shard, cycle.window_start(cycle.blocks - int(left[shard]) + visit, window_len)))
            left = left - counts
        yield windows


def _share_out(
    left: npt.NDArray[np.int64], wanted: int, step: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw how many blocks to take of each shard: at most `wanted` together and at most what each has left."""
    ramp = min(step / _RAMP_STEPS, 1.0)
    power, mixed = (first + (last - first) * ramp for first, last in (_POWER, _MIXED))
    weights = np.where(left > 0, left, 0.0) ** power  # a shard with nothing left has no weight
    mixed = min(int(mixed), wanted, int(np.count_nonzero(left)))
    chosen = generator.choice(len(left), size=mixed, replace=False, p=weights / weights.sum())
    counts = np.zeros_like(left)
    counts[chosen] = 1 + generator.multinomial(wanted - mixed, weights[chosen] / weights[chosen].sum())
    return np.minimum(counts, left)


def _draw_cycle(size: int, window_len: int, generator: np.random.Generator) -> Cycle:
    phase, blocks = draw_phase(size, window_len, generator)
    if blocks == 0:
        return Cycle(0, phase, 0, 1)
    stride = int(generator.integers(1, blocks + 1))
    while math.gcd(stride, blocks) > 1:
        stride = int(generator.integers(1, blocks + 1))
    return Cycle(blocks, phase, int(generator.integers(blocks)), stride)
