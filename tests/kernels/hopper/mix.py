"""The sums' kernels at a record's sizes: every sum that a model takes."""

from collections.abc import Iterator
from typing import Any

from golf.kernels import mix_kernels
from tests.kernels.hopper.build import Case
from tests.kernels.hopper.norm import row_case

_SUMS = {  # outputs, streams, whether it is normalized, stride of the weights' channels
    "of stream and x0, normalized": (1, 2, True, 1),
    "of stream and skip": (1, 2, False, 1),
    "of stream and first passes": (1, 4, False, "i32"),
    "of lanes and branches": (2, 4, False, "i32"),
    "of four, normalized": (1, 4, True, 1),
}


def _values(outputs: int, streams: int, normalized: bool, channel_stride: Any, **more: Any) -> dict[str, Any]:
    """Return the kernels' constants, None for what is not there, and the types of the weights and their strides."""
    missing = [f"{kind}{index}" for kind in "xd" for index in range(streams, mix_kernels.MAX_STREAMS)]
    missing += [f"{kind}{index}" for kind in ("out", "g") for index in range(outputs, mix_kernels.MAX_OUTPUTS)]
    handed_on = range(min(streams, 2) if normalized else 0)  # the stream that waits, and x0
    missing += [f"h{index}" for index in range(mix_kernels.MAX_STREAMS) if index not in handed_on]
    missing += [] if normalized else ["normalized", "rstd"]
    strides = {"output_stride": "i32", "stream_stride": "i32", "channel_stride": channel_stride}
    sizes = {"OUTPUTS": outputs, "STREAMS": streams}
    return {"weights": "*fp32", "partials": "*fp32", **strides, **sizes, **dict.fromkeys(missing), **more}


def _forward(dtype: str, name: str, values: dict[str, Any]) -> Case:
    values = {**values, "STAGES": mix_kernels.FORWARD_STAGES}
    return row_case(mix_kernels._mix_forward, dtype=dtype, elements=mix_kernels.FORWARD_TILE, values=values, name=name)


def _backward(dtype: str, name: str, values: dict[str, Any]) -> Case:
    values = {**values, "STAGES": mix_kernels.BACKWARD_STAGES}
    return row_case(
        mix_kernels._mix_backward, dtype=dtype, elements=mix_kernels.BACKWARD_TILE, values=values, name=name
    )


def _cases(dtype: str) -> Iterator[Case]:
    for name, form in _SUMS.items():
        yield _forward(dtype, name, _values(*form))
        yield _backward(dtype, name, _values(*form))
    frozen = _values(1, 4, False, "i32", partials=None, d1=None, d2=None, d3=None)
    yield _backward(dtype, "of stream and first passes, fixed weights", frozen)
    yield _backward(dtype, "of stream and x0, norm alone", _values(1, 2, True, 1, g0=None))
    yield _backward(dtype, "of stream and x0, the stream not waiting", _values(1, 2, True, 1, h0=None))
    yield _backward(dtype, "of stream and x0, the last visit", _values(1, 2, True, 1, h0=None, h1=None))
    yield _backward(dtype, "of lanes, fixed weights", _values(1, 2, True, 1, partials=None, g0=None, h0=None, h1=None))


CASES = [case for dtype in ("bf16", "fp32") for case in _cases(dtype)]
