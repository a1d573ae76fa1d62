"""Every Triton kernel compiles for Hopper, within its registers and its shared memory."""

import pytest

from golf.kernels.gluon import HAS_GLUON
from golf.kernels.jit import HAS_TRITON, triton
from tests.kernels.hopper.build import SHARED_LIMIT, count_unfenced, usages

TIMED = "3.6."  # the Triton that Gluon kernels were written and timed with
ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [%r1];"
STORE = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [%r3];"

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


def test_every_kernel_compiles_for_hopper_without_spilling() -> None:
    """Gluon kernels are not in it: another test says of which Triton they ask that."""
    found = [usage for usage in usages() if not usage.is_gluon]
    assert found
    assert [usage for usage in found if usage.spilled > 0 or usage.shared > SHARED_LIMIT] == []


@pytest.mark.skipif(not HAS_GLUON, reason="no Gluon on this platform")
def test_gluon_kernels_compile_for_hopper_within_its_shared_memory() -> None:
    found = [usage for usage in usages() if usage.is_gluon]
    assert found
    assert [usage for usage in found if usage.shared > SHARED_LIMIT] == []


@pytest.mark.skipif(not HAS_GLUON or not triton.__version__.startswith(TIMED), reason="3.9 spills up to 200 bytes")
def test_gluon_kernels_spill_nothing_with_the_triton_that_they_are_for() -> None:
    assert [usage for usage in usages() if usage.is_gluon and usage.spilled > 0] == []


def test_threads_fence_what_they_do_in_shared_memory_before_the_tma_has_it() -> None:
    assert [usage for usage in usages() if usage.unfenced > 0] == []


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (("ldmatrix", "fence.proxy.async", "bar.sync 0, 128;", ARRIVE), 0),
        (("ldmatrix", "bar.sync 0, 128;", ARRIVE), 1),
        (("ldmatrix", "bar.sync 0, 128;", "fence.proxy.async", ARRIVE), 1),
        (("ldmatrix", "fence.proxy.async", ARRIVE), 1),
        (("fence.proxy.async", "ldmatrix", "bar.sync 0, 128;", ARRIVE), 1),
        (("stmatrix", "bar.sync 0, 128;", STORE), 1),
        (("stmatrix", "fence.proxy.async", "bar.sync 0, 128;", STORE, ARRIVE), 0),
        (("ldmatrix", "mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 64;"), 0),
    ],
)
def test_a_missing_fence_is_counted(lines: tuple[str, ...], count: int) -> None:
    assert count_unfenced("\n".join(lines)) == count
