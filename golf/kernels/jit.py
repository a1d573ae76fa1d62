"""Triton where there is one. There is none for macOS: kernels then stay unbuilt, and the plain forms do the work."""

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    import triton
    import triton.language as tl

    jit: Callable[..., Any] = triton.jit
else:
    triton = tl = SimpleNamespace(constexpr=object)

    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        """Leave the kernel a plain function that nobody calls."""
        return function


def ceil_div(count: int, size: int) -> int:
    """Return count / size, rounded up."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """Return the least power of two that is not below `count` (from 1)."""
    return 1 << (count - 1).bit_length()


__all__ = ["HAS_TRITON", "ceil_div", "jit", "next_power_of_2", "tl", "triton"]
