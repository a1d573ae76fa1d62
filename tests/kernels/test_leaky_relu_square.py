"""The squared leaky ReLU and its derivative, by hand and by finite differences."""

import pytest
import torch

from golf.kernels.leaky_relu_square import leaky_relu_square

POINTS = torch.tensor([-3.0, -0.5, -1e-3, 0.2, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.5, 1.0])
def test_values_are_the_square_above_zero_and_of_the_sloped_value_below(slope: float) -> None:
    expected = [z * z if z > 0 else (slope * z) ** 2 for z in POINTS.tolist()]
    found = leaky_relu_square(POINTS, negative_slope=slope)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.5])
def test_the_derivative_below_zero_has_the_slope_squared(slope: float) -> None:
    z = POINTS.clone().requires_grad_()
    (found,) = torch.autograd.grad(leaky_relu_square(z, negative_slope=slope).sum(), z)
    expected = [2 * x if x > 0 else 2 * slope**2 * x for x in POINTS.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_derivative_agrees_with_finite_differences() -> None:
    z = POINTS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: leaky_relu_square(z, negative_slope=0.5), (z,))
