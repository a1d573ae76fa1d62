"""Ceilings are the fastest copy and product seen; a share is what they allow over what was taken."""

import pytest
import torch

from golf.bench.ceilings import Ceilings, measure_ceilings
from golf.bench.measurement import Measurement, Work
from tests.pico import pico_recipe

CEILINGS = Ceilings(bytes_per_second=100.0, flop_per_second=1000.0)


@pytest.mark.parametrize(
    ("work", "share"),
    [
        (Work(bytes=50, flop=100), 0.25),  # 0.5 s of bytes, 0.1 s of arithmetic, in 2 s
        (Work(bytes=50, flop=1500), 0.75),
        (Work(bytes=50), 0.25),
        (Work(flop=1500), 0.75),
    ],
)
def test_a_share_is_the_longer_of_the_two_least_times_over_the_time_taken(work: Work, share: float) -> None:
    assert CEILINGS.judge(Measurement.of("x", [2.0], work)).share == share


def test_what_counts_neither_bytes_nor_operations_has_no_share() -> None:
    assert CEILINGS.judge(Measurement.of("x", [2.0])).share is None


def test_a_copy_and_the_products_of_a_model_are_timed() -> None:
    found = measure_ceilings(pico_recipe().model, torch.device("cpu"), torch.float32, rows=423, seconds=0)
    measured = {one.name: (one.bytes_moved, one.flop) for one in found.measurements}
    assert measured == {
        "ceiling/copy": (2 * 2**26, 0),
        "ceiling/512 x 512 x 512": (0, 2 * 512**3),
        "ceiling/423 x 32 x 48": (0, 2 * 423 * 32 * 48),
        "ceiling/423 x 48 x 32": (0, 2 * 423 * 32 * 48),
        "ceiling/423 x 32 x 32": (0, 2 * 423 * 32 * 32),
        "ceiling/423 x 32 x 61": (0, 2 * 423 * 32 * 61),
    }


def test_the_ceiling_of_arithmetic_is_the_fastest_product_and_that_of_bytes_the_copy() -> None:
    found = measure_ceilings(pico_recipe().model, torch.device("cpu"), torch.float32, rows=3, seconds=0)
    copy, *products = found.measurements
    assert found.bytes_per_second == copy.bytes_moved / copy.seconds
    assert found.flop_per_second == max(one.flop / one.seconds for one in products)
