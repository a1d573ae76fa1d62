"""Gluon where there is one: Triton's language of layouts, barriers and warps with tasks of their own.

Triton may lack it, and calls what golf needs by other names in other versions. Where a name is missing, its kernels
stay unbuilt as `golf.kernels.jit` leaves Triton's, and HAS_GLUON is False.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Names(SimpleNamespace):
    """What kernels and launches take from Gluon; None where there is none."""

    def __getattr__(self, name: str) -> Any:
        return None


def _find() -> Any:
    """Return Gluon's names; ImportError or AttributeError if one is missing."""
    from triton.experimental import gluon
    from triton.experimental.gluon import language
    from triton.experimental.gluon.language.nvidia import hopper
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    block = language.shared_memory_descriptor
    return _Names(
        gl=language,
        jit=gluon.jit,
        constexpr_function=gluon.constexpr_function,
        TensorDescriptor=TensorDescriptor,
        mbarrier=hopper.mbarrier,
        # In Triton 3.9, and in 3.6: later the older name is there and raises.
        load_block=_either(hopper.tma, "async_load", "async_copy_global_to_shared"),
        store_block=_either(hopper.tma, "async_store", "async_copy_shared_to_global"),
        reinterpret=_either(block, "reinterpret", "_reinterpret"),
        wait_for_stores=hopper.tma.store_wait,
        fence_async_shared=hopper.fence_async_shared,
        multiply=hopper.warpgroup_mma,
        wait_for_products=hopper.warpgroup_mma_wait,
        specialize=language.warp_specialize,
    )


def _either(place: Any, name: str, older: str) -> Any:
    return getattr(place, name if hasattr(place, name) else older)


try:
    _found = _find()
    HAS_GLUON = True
except (ImportError, AttributeError):
    _found = _Names(gl=SimpleNamespace(constexpr=object))
    HAS_GLUON = False

gl, mbarrier, TensorDescriptor = _found.gl, _found.mbarrier, _found.TensorDescriptor
load_block, store_block, reinterpret = _found.load_block, _found.store_block, _found.reinterpret
multiply, specialize, fence_async_shared = _found.multiply, _found.specialize, _found.fence_async_shared
wait_for_products, wait_for_stores = _found.wait_for_products, _found.wait_for_stores


def gluon_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of kernels; without Gluon it stays a plain one that nobody calls."""
    return _found.jit(function) if HAS_GLUON else function


def gluon_kernel(*, unspecialized: list[str]) -> Decorator:
    """Make a kernel that is compiled once for all values of the `unspecialized` arguments."""
    if HAS_GLUON:
        return _found.jit(do_not_specialize=unspecialized)  # type: ignore[no-any-return]
    return gluon_jit


def constexpr_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of constants, called while a kernel is compiled."""
    return _found.constexpr_function(function) if HAS_GLUON else function
