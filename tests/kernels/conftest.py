"""Every test of a kernel computes as a GPU does."""

import pytest
import torch

from golf.kernels.jit import HAS_TRITON
from tests.kernels.interpreter import multiply_as_a_gpu, round_as_a_gpu


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if HAS_TRITON and not torch.cuda.is_available():
        round_as_a_gpu(monkeypatch)
        multiply_as_a_gpu(monkeypatch)
