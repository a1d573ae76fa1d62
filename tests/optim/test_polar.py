"""Newton-Schulz: what it does to singular values, and to a matrix."""

import pytest
import torch
from torch import Tensor

from golf.optim.polar import Coefficients, coefficients, normalize_rows, orthogonalize

# Singular value -> what five iterations make of it, in float64.
POLAR_EXPRESS = {
    1e-4: 0.098806,
    1e-3: 0.858873,
    5e-3: 1.001336,
    1e-2: 1.027110,
    0.05: 0.908558,
    0.1: 1.059161,
    0.3: 0.983142,
    0.5: 0.910611,
    0.8: 1.033750,
    1.0: 0.859129,
}
CLASSIC = {1e-3: 0.470544, 0.1: 0.712120}


def scalar_map(sigma: float, iterations: Coefficients) -> float:
    for a, b, c in iterations:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def matrices_with(singular: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three random matrices U diag(singular) V^T with their U and V, float64."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(3, rows, len(singular), generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(3, columns, len(singular), generator=generator, dtype=torch.float64)).Q
    return u @ torch.diag(singular) @ v.mT, u, v


@pytest.mark.parametrize(("sigma", "expected"), POLAR_EXPRESS.items())
def test_polar_express_maps_singular_values_as_published(sigma: float, expected: float) -> None:
    assert scalar_map(sigma, coefficients("polar_express", 5)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("sigma", "expected"), CLASSIC.items())
def test_the_classic_iteration_maps_singular_values_as_published(sigma: float, expected: float) -> None:
    assert scalar_map(sigma, coefficients("classic", 5)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["classic", "polar_express"])
@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1)])
def test_a_matrix_keeps_its_directions_and_has_its_singular_values_mapped(kind: str, rows: int, columns: int) -> None:
    iterations = coefficients("classic" if kind == "classic" else "polar_express", 5)
    singular = torch.linspace(0.2, 1.0, min(rows, columns), dtype=torch.float64)
    matrices, u, v = matrices_with(singular, rows, columns)
    scaled = singular / (singular.norm() + 1e-7)
    mapped = torch.tensor([scalar_map(float(sigma), iterations) for sigma in scaled], dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrices, iterations), u @ torch.diag(mapped) @ v.mT)


def test_the_length_of_the_gradient_does_not_matter() -> None:
    matrices, _, _ = matrices_with(torch.linspace(0.2, 1, 4, dtype=torch.float64), 4, 9)
    iterations = coefficients("polar_express", 5)
    long, longer = orthogonalize(1e3 * matrices, iterations), orthogonalize(1e6 * matrices, iterations)
    torch.testing.assert_close(long, longer, rtol=1e-7, atol=1e-7)


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), coefficients("classic", 5)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert orthogonalize(torch.ones(1, 2, 3, dtype=dtype), coefficients("classic", 2)).dtype == dtype


def test_fewer_iterations_are_the_first_rows() -> None:
    assert coefficients("polar_express", 3) == coefficients("polar_express", 5)[:3]


def test_polar_express_has_no_sixth_iteration() -> None:
    with pytest.raises(ValueError, match="Polar Express has 5 iterations, 6 asked for"):
        coefficients("polar_express", 6)


def test_rows_are_divided_by_their_length() -> None:
    matrices = torch.randn(2, 3, 423, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalize_rows(matrices), matrices / matrices.norm(dim=-1, keepdim=True))


def test_rows_without_length_are_divided_by_the_floor() -> None:
    matrices = torch.tensor([[[0.0, 0.0], [3e-9, 4e-9]]])
    torch.testing.assert_close(normalize_rows(matrices), torch.tensor([[[0.0, 0.0], [0.03, 0.04]]]))


def test_the_length_of_bfloat16_rows_is_taken_in_float32() -> None:
    matrices = torch.randn(1, 2, 423, generator=torch.Generator().manual_seed(0)).bfloat16()
    length = matrices.float().norm(dim=-1, keepdim=True).bfloat16()
    assert torch.equal(normalize_rows(matrices), matrices / length)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (12, 41), (41, 12)])
def test_polar_express_leaves_a_smaller_orthogonality_error_than_the_classic_iteration(rows: int, columns: int) -> None:
    """Of matrices whose singular values spread over three decades, after five iterations of each."""
    singular = torch.logspace(-3, 0, min(rows, columns), dtype=torch.float64)
    matrices, _, _ = matrices_with(singular, rows, columns)
    classic, polar = (
        torch.linalg.svdvals(orthogonalize(matrices, iterations)).sub(1.0).square().mean().sqrt()
        for iterations in (coefficients("classic", 5), coefficients("polar_express", 5))
    )
    assert polar < 0.6 * classic
