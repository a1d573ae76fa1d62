"""The norm against its formula in float64."""

import pytest
import torch

from golf.kernels.norm import rms_norm

EPS = 1.1920929e-07  # of float32, whatever the input


def formula(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("shape", [(3,), (2, 423), (2, 3, 4, 5)])
def test_values_are_divided_by_their_root_mean_square(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms_norm(x).double(), formula(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_epsilon_is_that_of_float32_for_every_dtype(dtype: torch.dtype) -> None:
    x = torch.full((1, 8), 2.0**-11)  # mean square 2.4e-7, near the epsilon; bfloat16's own is 0.0078, float64's 2e-16
    torch.testing.assert_close(rms_norm(x.to(dtype)).double(), formula(x), rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert rms_norm(torch.ones(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="autocast to float32 happens on CUDA alone")
def test_the_dtype_is_kept_under_autocast() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert rms_norm(torch.ones(2, 3, dtype=torch.bfloat16, device="cuda")).dtype == torch.bfloat16


def test_bfloat16_is_normalized_in_float32_and_rounded_once() -> None:
    x = torch.randn(5, 423, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rms_norm(x), formula(x).bfloat16())


def test_a_zero_vector_stays_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 3)), torch.zeros(2, 3))
