"""A measurement is the median of its samples with quartiles, noise against itself, and achieved rates."""

import pytest

from golf.bench.measurement import Measurement, Work


def test_it_is_the_median_with_its_quartiles() -> None:
    found = Measurement.of("x", [5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.seconds, found.high, found.count) == (2.0, 3.0, 4.0, 5)


@pytest.mark.parametrize(
    ("samples", "noise"),
    [([2.0, 2.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 2.0, 2.0], 0.5), ([3.0, 3.0], 0.0), ([4.0, 2.0, 2.0], 1.0)],
)
def test_noise_is_how_far_the_first_half_is_from_the_second(samples: list[float], noise: float) -> None:
    assert Measurement.of("x", samples).noise == noise


def test_one_sample_has_no_noise() -> None:
    assert Measurement.of("x", [3.0]).noise is None


def test_rates_are_the_work_over_the_median() -> None:
    found = Measurement.of("x", [1.0, 2.0, 9.0], Work(bytes=3 * 10**12, flop=5 * 10**12))
    assert (found.tb_per_second, found.tflop_per_second) == (1.5, 2.5)


def test_what_is_not_counted_has_no_rate() -> None:
    found = Measurement.of("x", [1.0], Work(flop=7)).to_dict()
    assert found["tb_per_second"] is None
    assert found["tflop_per_second"] == 7e-12


def test_work_adds_up_by_kind() -> None:
    assert Work(1, 20).plus(Work(3, 400)) == Work(4, 420)
