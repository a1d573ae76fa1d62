"""What the machine can do at most, measured where the rest is measured: a large copy, and large matrix products.

A datasheet's numbers are no ceilings: clocks, power and cooling are a card's own.
"""

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F

from golf.bench.measurement import Measurement, Work
from golf.bench.timing import time_calls
from golf.model_config import ModelConfig

_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}  # of one of the two buffers
_CUBE = {"cuda": 8192, "cpu": 512}  # side of the square product


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """The fastest traffic and arithmetic seen, and the measurements they come from."""

    bytes_per_second: float
    flop_per_second: float
    measurements: tuple[Measurement, ...] = ()

    def judge(self, measurement: Measurement) -> Measurement:
        """Fill in the share: the longer of the two times that bytes and operations need at least, over the time taken.

        What counts neither has none.
        """
        least = max(measurement.bytes_moved / self.bytes_per_second, measurement.flop / self.flop_per_second)
        return dataclasses.replace(measurement, share=least / measurement.seconds if least else None)


def measure_ceilings(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, *, rows: int, seconds: float
) -> Ceilings:
    """Time a copy and products of `dtype`: a large square one, and those of `rows` tokens with the model's matrices."""
    kind = device.type
    copy = _copy(_COPY_BYTES[kind], device, seconds=seconds)
    cube = _CUBE[kind]
    dim, hidden = config.model_dim, config.hidden_dim(0)
    shapes = [(cube, cube, cube), *((rows, *pair) for pair in ((dim, hidden), (hidden, dim), (dim, dim)))]
    shapes.append((rows, dim, config.vocab_size))
    products = [_product(*shape, device, dtype, seconds=seconds) for shape in dict.fromkeys(shapes)]
    return Ceilings(
        bytes_per_second=copy.bytes_moved / copy.seconds,
        flop_per_second=max(product.flop / product.seconds for product in products),
        measurements=(copy, *products),
    )


def _copy(size: int, device: torch.device, *, seconds: float) -> Measurement:
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device, generator=generator)
    target = torch.zeros_like(source)
    samples = time_calls({"copy": [partial(target.copy_, source)]}, device, seconds=seconds)["copy"]
    return Measurement.of("ceiling/copy", samples, Work(bytes=2 * size))


def _product(
    rows: int, inner: int, columns: int, device: torch.device, dtype: torch.dtype, *, seconds: float
) -> Measurement:
    """Time (rows, inner) times (inner, columns) on random numbers: on zeros a card draws less power and is faster."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((rows, inner), (columns, inner))
    left, right = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for shape in shapes)
    samples = time_calls({"product": [partial(F.linear, left, right)]}, device, seconds=seconds)["product"]
    return Measurement.of(f"ceiling/{rows} x {inner} x {columns}", samples, Work(flop=2 * rows * inner * columns))
