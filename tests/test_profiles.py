"""Profiles of averages: the published tables, and integrals against quadrature."""

import numpy as np
import pytest

from golf.profiles import PowerProfile, dot, gamma_of_width, power_decay, reconstruct, width_of_gamma

GAMMAS = {0.25: 0.720, 0.15: 3.558, 0.10: 6.937, 0.075: 10.289, 0.05: 16.972, 0.03: 30.317}
STEPS = 4961
# snapshots -> width of the target -> relative error of the reconstructed profile, from widths 0.05 and 0.10.
# With 4 snapshots the published errors (16, 2.7, 3.3, 9.9, 20 %) are those before the weights are made to sum to 1;
# golf's residual is that of the weights it uses, so that row is not compared.
RESIDUALS = {
    8: {0.03: 0.10, 0.06: 0.012, 0.075: 0.013, 0.15: 0.033, 0.20: 0.075},
    16: {0.03: 0.039, 0.06: 0.0033, 0.075: 0.0035, 0.15: 0.0090, 0.20: 0.023},
    32: {0.03: 0.011, 0.06: 0.00087, 0.075: 0.00090, 0.15: 0.0023, 0.20: 0.0064},
}
AMPLIFICATIONS = {4: 1.07, 8: 1.21, 16: 1.35, 32: 1.44}  # of target 0.06


def profile(power: PowerProfile, time: np.ndarray) -> np.ndarray:
    """(gamma + 1) time^gamma / end^(gamma + 1) up to the end, 0 after it."""
    values: np.ndarray = (power.gamma + 1) * time**power.gamma / power.end ** (power.gamma + 1)
    return np.where(time <= power.end, values, 0.0)


def integral(of: np.ndarray, weights: np.ndarray) -> float:
    return float((of * weights).sum())


def quadrature(end: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, end]."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return (nodes + 1) * end / 2, weights * end / 2


@pytest.mark.parametrize(("width", "gamma"), GAMMAS.items())
def test_the_exponent_of_a_width_is_the_published_one(width: float, gamma: float) -> None:
    assert gamma_of_width(width) == pytest.approx(gamma, abs=5e-4)


@pytest.mark.parametrize("width", [0.285, 0.2, 0.1, 0.05, 0.01, 0.001])
def test_a_width_comes_back_from_its_exponent(width: float) -> None:
    assert width_of_gamma(gamma_of_width(width)) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 6.9, 30.3])
def test_the_width_is_the_profiles_deviation_over_its_length(gamma: float) -> None:
    time, weights = quadrature(7.0)
    density = profile(PowerProfile(gamma, 7.0), time)
    mean = integral(density * time, weights)
    assert mean == pytest.approx(7.0 * (gamma + 1) / (gamma + 2))
    deviation = integral(density * (time - mean) ** 2, weights) ** 0.5
    assert width_of_gamma(gamma) == pytest.approx(deviation / 7.0)


def test_the_first_step_keeps_nothing_of_what_was_there() -> None:
    assert power_decay(6.9, 1) == 0.0


def test_the_share_kept_is_that_of_the_power_function() -> None:
    assert power_decay(6.5, 10) == pytest.approx(0.9**7.5)


@pytest.mark.parametrize(
    ("a", "b"), [((6.9, 100.0), (17.0, 100.0)), ((6.9, 40.0), (17.0, 100.0)), ((0.4, 9.0), (3.0, 2.0))]
)
def test_products_are_the_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    first, second = PowerProfile(*a), PowerProfile(*b)
    time, weights = quadrature(min(first.end, second.end))
    expected = integral(profile(first, time) * profile(second, time), weights)
    assert dot(first, second) == pytest.approx(expected, rel=1e-6)
    assert dot(second, first) == pytest.approx(expected, rel=1e-6)


def test_products_of_early_and_late_profiles_do_not_overflow() -> None:
    assert 0 <= dot(PowerProfile(300.0, 1.0), PowerProfile(300.0, 1e6)) < 1e-300
    assert dot(PowerProfile(300.0, 1e6), PowerProfile(300.0, 1.0)) == dot(
        PowerProfile(300.0, 1.0), PowerProfile(300.0, 1e6)
    )


def stored(snapshots: int) -> list[PowerProfile]:
    ends = [STEPS * (index + 1) / snapshots for index in range(snapshots)]
    return [PowerProfile(gamma_of_width(width), end) for end in ends for width in (0.05, 0.10)]


@pytest.mark.parametrize(
    ("snapshots", "width", "residual"),
    [(snapshots, width, residual) for snapshots, row in RESIDUALS.items() for width, residual in row.items()],
)
def test_the_residual_is_the_published_one(snapshots: int, width: float, residual: float) -> None:
    found = reconstruct(stored(snapshots), PowerProfile(gamma_of_width(width), STEPS))
    assert found.residual == pytest.approx(residual, rel=0.05)


@pytest.mark.parametrize(("snapshots", "amplification"), AMPLIFICATIONS.items())
def test_the_amplification_is_the_published_one(snapshots: int, amplification: float) -> None:
    found = reconstruct(stored(snapshots), PowerProfile(gamma_of_width(0.06), STEPS))
    assert found.amplification == pytest.approx(amplification, rel=0.05)
    assert found.amplification == pytest.approx(sum(map(abs, found.weights)))


def test_the_residual_is_the_distance_of_the_profiles() -> None:
    profiles, target = stored(8), PowerProfile(gamma_of_width(0.15), STEPS)
    found = reconstruct(profiles, target)
    error = squared = 0.0
    for start in range(8):  # piece by piece: the sum of profiles jumps where one ends
        time, weights = quadrature(STEPS / 8)
        time = time + start * STEPS / 8
        built = sum(share * profile(power, time) for share, power in zip(found.weights, profiles, strict=True))
        error += integral((built - profile(target, time)) ** 2, weights)
        squared += integral(profile(target, time) ** 2, weights)
    assert found.residual == pytest.approx((error / squared) ** 0.5, rel=1e-4)


def test_weights_sum_to_one() -> None:
    found = reconstruct(stored(8), PowerProfile(gamma_of_width(0.20), STEPS))
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-12)


def test_a_stored_profile_is_reconstructed_by_itself() -> None:
    profiles = stored(8)
    found = reconstruct(profiles, profiles[-1])
    assert found.residual < 1e-6
    assert found.weights == pytest.approx(15 * [0.0] + [1.0], abs=1e-5)
