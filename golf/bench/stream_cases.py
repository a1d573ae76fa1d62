"""What happens to the residual stream: norms, weighted sums, and the product of a branch that is added to it.

J streams to O; C model dim.
"""

from typing import Any

from torch import Tensor

from golf.bench.case import Case, Draw, Inputs, Outputs, Sizes
from golf.bench.measurement import Work


def stream_cases(sizes: Sizes) -> list[Case]:
    """Return the cases of `golf.kernels.norm`, `golf.kernels.mix` and `golf.kernels.add_product`."""
    return [
        _norm(sizes),
        _stream_norm(sizes),
        _mix("mix 2 to 1", sizes, streams=2, outputs=1),
        _mix("mix 4 to 2", sizes, streams=4, outputs=2),
        _mix_norm(sizes),
        _add_product(sizes),
    ]


def _norm(sizes: Sizes) -> Case:
    dim = sizes.config.model_dim
    stream = sizes.bytes(dim)
    return Case(
        "norm",
        "norm",
        make=lambda draw: {"x": draw.activations(dim)},
        call=lambda norm, x: (norm(x["x"], scale=0.5),),
        forward=Work(2 * stream),
        backward=Work(3 * stream),
    )


def _stream_norm(sizes: Sizes) -> Case:
    dim = sizes.config.model_dim
    stream = sizes.bytes(dim)

    def call(stream_norm: Any, x: Inputs) -> Outputs:
        normalized: Outputs = stream_norm(x["x"], scale=0.5)
        return normalized

    return Case(
        "stream norm",
        "stream_norm",
        make=lambda draw: {"x": draw.activations(dim)},
        call=call,
        forward=Work(2 * stream),
        backward=Work(4 * stream),  # two gradients and the norm are read, one gradient written
    )


def _mix(name: str, sizes: Sizes, *, streams: int, outputs: int) -> Case:
    dim = sizes.config.model_dim
    stream = sizes.bytes(dim)

    def make(draw: Draw) -> Inputs:
        return {"weights": draw.parameter(outputs, streams, dim), **_streams(draw, streams)}

    def call(mix: Any, x: Inputs) -> Outputs:
        mixed: Outputs = mix(_values(x), x["weights"])
        return mixed

    backward = Work((outputs + 2 * streams) * stream)
    return Case(name, "mix", make, call, Work((streams + outputs) * stream), backward)


def _mix_norm(sizes: Sizes) -> Case:
    dim = sizes.config.model_dim
    stream = sizes.bytes(dim)

    def call(mix_norm: Any, x: Inputs) -> Outputs:
        mixed: Outputs = mix_norm(_values(x), x["weights"], scale=0.5)
        return mixed

    return Case(
        "mix norm",
        "mix_norm",
        make=lambda draw: {"weights": draw.parameter(2, dim), **_streams(draw, 2)},
        call=call,
        forward=Work(4 * stream),
        backward=Work(8 * stream),  # of sum, norm and both streams handed on; the streams are read, two are written
    )


def _add_product(sizes: Sizes) -> Case:
    """Return the attention's last product, onto a copy of the stream: every call spends one."""
    dim = sizes.config.model_dim
    stream, weight = sizes.bytes(dim), dim * dim * sizes.dtype.itemsize
    flop = 2 * sizes.tokens * dim * dim

    def make(draw: Draw) -> Inputs:
        return {"x": draw.activations(dim), "y": draw.activations(dim), "weight": draw.matrix(dim, dim)}

    def call(add_product: Any, x: Inputs) -> Outputs:
        return (add_product(x["x"].clone(), x["y"], x["weight"]),)

    return Case(
        "add product",
        "add_product",
        make=make,
        call=call,
        forward=Work(5 * stream + weight, flop),  # of those, 2 for the copy
        backward=Work(3 * stream + 2 * weight, 2 * flop),  # the stream's gradient is the sum's
    )


def _streams(draw: Draw, count: int) -> Inputs:
    return {f"stream {index}": draw.activations(draw.sizes.config.model_dim) for index in range(count)}


def _values(inputs: Inputs) -> list[Tensor]:
    return [tensor for name, tensor in inputs.items() if name != "weights"]
