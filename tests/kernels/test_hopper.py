"""Every Triton kernel compiles for Hopper, within its registers and its shared memory."""

import pytest

from golf.kernels.jit import HAS_TRITON
from tests.kernels.hopper.build import SHARED_LIMIT, usages

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


def test_every_kernel_compiles_for_hopper_without_spilling() -> None:
    found = usages()
    assert found
    assert [usage for usage in found if usage.spilled > 0 or usage.shared > SHARED_LIMIT] == []
