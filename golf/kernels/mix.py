"""Weighted sums of residual streams, and the norms of sums, in one pass each way.

J streams (up to four), O outputs (up to two), C channels; streams (..., C), weights (O, J, C) in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golf.kernels.mix_kernels import (
    MAX_OUTPUTS,
    MAX_STREAMS,
    Normalized,
    launch_backward,
    launch_forward,
)
from golf.kernels.norm import check_dtype, plain_norm


def plain_mix(streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Return sum_j w_oj x_j for every o, in the dtype of the streams x_j (..., C).

    The `weights` (O, J, C) are rounded to it first.
    """
    return tuple(_weighted_sum(streams, row) for row in weights.to(streams[0].dtype))


def plain_mix_norm(streams: Sequence[Tensor], weights: Tensor, *, scale: float) -> tuple[Tensor, ...]:
    """Return u = sum_j w_j x_j, as `plain_mix` does with `weights` (J, C), scale * rms_norm(u), and the streams.

    Whoever takes a stream from here lets its gradients be added up in this backward, not in passes of their own.
    """
    u = _weighted_sum(streams, weights.to(streams[0].dtype))
    return u, plain_norm(u, scale=scale), *streams


def _weighted_sum(streams: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Add up w_j x_j in ascending j; `weights` (J, C)."""
    first, *others = (weight * x for weight, x in zip(weights, streams, strict=True))
    total: Tensor = sum(others, first)
    return total


@torch.library.custom_op("golf::mix", mutates_args=())
def _mix(streams: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    streams = [x.contiguous() for x in streams]
    outputs = [_like(streams[0]) for _ in weights]
    launch_forward(streams, weights, outputs)
    return outputs


@_mix.register_fake
def _(streams: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    return [_like(streams[0]) for _ in range(weights.shape[0])]


@torch.library.custom_op("golf::mix_norm", mutates_args=())
def _mix_norm(streams: Sequence[Tensor], weights: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum, scale times its norm, and 1 / sqrt(mean(u^2) + eps), float32, a row; `weights` (J, C)."""
    streams = [x.contiguous() for x in streams]
    total, normalized, rstd = _like(streams[0]), _like(streams[0]), _per_row(streams[0])
    launch_forward(streams, weights[None], [total], Normalized(normalized, rstd, scale))
    return total, normalized, rstd


@_mix_norm.register_fake
def _(streams: Sequence[Tensor], weights: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _like(streams[0]), _like(streams[0]), _per_row(streams[0])


@torch.library.custom_op("golf::mix_backward", mutates_args=())
def _mix_backward(
    streams: Sequence[Tensor],
    weights: Tensor,
    incoming: Sequence[Tensor | None],
    normalized: Tensor | None,
    rstd: Tensor | None,
    handed_on: Sequence[Tensor | None],
    scale: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients that are `wanted`, of each stream and of `weights` (O, J, C), given those of the outputs.

    What comes back to a stream from where it was `handed_on` to is added to its own; none, or one for every stream.
    """
    streams = [x.contiguous() for x in streams]
    incoming, handed_on = ([g if g is None else g.contiguous() for g in given] for given in (incoming, handed_on))
    outgoing = [_like(x) if want else None for x, want in zip(streams, wanted[:-1], strict=True)]
    through = Normalized(normalized if normalized is None else normalized.contiguous(), rstd, scale)
    by_weight = launch_backward(
        streams, weights, incoming, outgoing, wants_weights=wanted[-1], normalized=through, handed_on=handed_on
    )
    gradients = [*outgoing, None if by_weight is None else by_weight.to(weights.dtype)]
    return [gradient for gradient in gradients if gradient is not None]


@_mix_backward.register_fake
def _(
    streams: Sequence[Tensor],
    weights: Tensor,
    incoming: Sequence[Tensor | None],
    normalized: Tensor | None,
    rstd: Tensor | None,
    handed_on: Sequence[Tensor | None],
    scale: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    return [_like(x) for x, want in zip((*streams, weights), wanted, strict=True) if want]


def _like(x: Tensor) -> Tensor:
    """Return an empty contiguous tensor; empty_like would copy strides."""
    return x.new_empty(x.shape)


def _per_row(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


def _save_mix(ctx: Any, inputs: tuple[list[Tensor], Tensor], output: list[Tensor]) -> None:
    streams, weights = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(streams if weights.requires_grad else ()), weights)  # fixed weights need no streams


def _differentiate_mix(ctx: Any, gradients: list[Tensor | None]) -> tuple[list[Tensor | None], Tensor | None]:
    *streams, weights = ctx.saved_tensors
    wanted = [*ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    given = [gradient for gradient in gradients if gradient is not None]
    if not given:
        return [None for _ in wanted[:-1]], None
    if not streams:  # they are not read, so that a gradient of their shape may stand for them
        streams = given[:1] * (len(wanted) - 1)
    found = iter(_mix_backward(streams, weights, gradients, None, None, [], 1.0, wanted))
    *by_stream, by_weight = (next(found) if want else None for want in wanted)
    return by_stream, by_weight


class _MixNorm(torch.autograd.Function):
    """The operator, and the streams handed on: an operator may not return what it was given."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, scale: float, *streams: Tensor) -> tuple[Tensor, ...]:
        total, normalized, rstd = _mix_norm(streams, weights, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*streams, weights, rstd)
        ctx.scale = scale
        fixed = [x for x, needs_gradient in zip(streams, ctx.needs_input_grad[2:], strict=True) if not needs_gradient]
        ctx.mark_non_differentiable(*fixed)  # else every later visit would make a gradient that nobody takes
        return total, normalized, *streams

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_sum: Tensor | None, of_norm: Tensor | None, *handed_on: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *streams, weights, rstd = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[2:], ctx.needs_input_grad[0]]
        if of_sum is None and of_norm is None:
            return None, None, *handed_on
        found = iter(_mix_backward(streams, weights[None], [of_sum], of_norm, rstd, handed_on, ctx.scale, wanted))
        *by_stream, by_weight = (next(found) if want else None for want in wanted)
        return None if by_weight is None else by_weight[0], None, *by_stream


_mix.register_autograd(_differentiate_mix, setup_context=_save_mix)


def fused_mix(streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Return what `plain_mix` does, each sum rounded once; not twice differentiable.

    Raises ValueError for float64, more than four streams or two outputs, and shapes or dtypes that do not match.
    """
    _check(streams, weights)
    return tuple(_mix(streams, weights))


def fused_mix_norm(streams: Sequence[Tensor], weights: Tensor, *, scale: float) -> tuple[Tensor, ...]:
    """Return what `plain_mix_norm` does, sum and norm rounded once each; raises and differentiates as `fused_mix`."""
    _check(streams, weights[None])
    # Autograd hands a tensor on once, and x0 comes to the first visit twice.
    apart = [x if all(x is not other for other in streams[:j]) else x.view_as(x) for j, x in enumerate(streams)]
    found: tuple[Tensor, ...] = _MixNorm.apply(weights, scale, *apart)  # type: ignore[no-untyped-call]
    return found


def _check(streams: Sequence[Tensor], weights: Tensor) -> None:
    first = streams[0]
    check_dtype(first)
    check_dtype(weights)
    if any(x.shape != first.shape or x.dtype != first.dtype for x in streams):
        given = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in streams)
        raise ValueError(f"streams must have one shape and dtype, not {given}")
    if not 1 <= len(streams) <= MAX_STREAMS or not 1 <= weights.shape[0] <= MAX_OUTPUTS:
        raise ValueError(f"1 to {MAX_STREAMS} streams and 1 to {MAX_OUTPUTS} outputs can be mixed")
    wanted = (weights.shape[0], len(streams), first.shape[-1])
    if weights.shape != wanted:
        raise ValueError(f"weights of shape {tuple(weights.shape)} do not fit {wanted}: outputs, streams, channels")
