"""Cross-entropy of soft-capped logits (soft cap: Gemma 2, arXiv:2408.00118).

The fused form reads the logits once (online log-sum-exp: Milakov and Gimelshein 2018, arXiv:1805.02867) and for their
gradient once more, computing the cap again. N rows (tokens), V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl

WIDEST_BLOCK = 8192  # columns that a program holds at a time: a record's row in one piece; awaits tuning on a GPU
COLUMNS_PER_WARP = 1024  # 32 a thread, four loads of 16 bytes in bfloat16; awaits tuning on a GPU
BOUND = 40.0  # greatest cap under which no sum of 2^(score) leaves float32's range: no largest score need be sought
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(logits / cap) in float32; the logits themselves without a cap."""
    return logits.float() if cap is None else cap * torch.tanh(logits.float() / cap)


def softcapped_cross_entropy(
    logits: Tensor, targets: Tensor, *, cap: float | None, rounds: bool = False, spends: bool = False
) -> Tensor:
    """Per-token loss in nats, float32, of the shape of `targets`; `logits` (..., V) are not yet capped.

    If it `rounds`, the capped logits pass through the dtype of `logits`, as in the published evaluations. A caller who
    `spends` the logits looks at them no more and differentiates once: their gradient may take their place.
    """
    capped = softcap(logits, cap)
    if rounds:
        capped = capped.to(logits.dtype).float()
    losses = F.cross_entropy(capped.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view_as(targets)


@jit
def _sigmoid_parts(u: "Any") -> "Any":
    """Return e = 2^u and q = -1 / (1 + e) for u <= 0, each to about a unit in the last place.

    q is the cubic in e of 1 + (1 + e) q = T4(2e - 1) / 577 (Chebyshev), then one step of Halley's. A division would be
    a third use of the special function unit, the bound of these kernels; with -1 no sign is ever turned.
    """
    e = tl.exp2(u)
    q = tl.fma(tl.fma(tl.fma(e, 128.0 / 577.0, -384.0 / 577.0), e, 544.0 / 577.0), e, -576.0 / 577.0)
    rest = tl.fma(e, q, 1.0 + q)
    return e, tl.fma(tl.fma(rest, rest, rest), q, q)


@jit
def _with_sign_of(size: "Any", x: "Any") -> "Any":
    """Return `size`, negated where x < 0: one logical instruction where a comparison and a choice are two."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return (size.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@jit
def _tanh(y: "Any", e: "Any", q: "Any") -> "Any":
    """Return tanh(y) of e = exp(-2|y|) and q = -1 / (1 + e); near 0, where 1 - e cancels, by its series."""
    near = tl.minimum(tl.maximum(y, -0.25), 0.25)
    square = near * near
    series = tl.fma(tl.fma(square, 62.0 / 2835.0, -17.0 / 315.0), square, 2.0 / 15.0)
    series = tl.fma(tl.fma(series, square, -1.0 / 3.0) * square, near, near)
    return tl.where(tl.abs(y) < 0.25, series, _with_sign_of((e - 1.0) * q, y))


@jit
def _score(logits: "Any", CAP: tl.constexpr, ROUNDS: tl.constexpr) -> "Any":
    """Return the capped logits, as precise as float32 is, and a quarter of their derivative by the logits.

    With the sigmoid s of 2x / cap the derivative is 4 s (1 - s) = 4 e s^2, e of `_sigmoid_parts`: it keeps its digits
    where s is 1.
    """
    x = logits.to(tl.float32)
    if CAP is None:
        score = x
        quarter = 0.25
    else:
        e, q = _sigmoid_parts(tl.abs(x) * (-2.885390081777927 / CAP))
        score = CAP * _tanh(x / CAP, e, q)
        quarter = e * q * q
    if ROUNDS:
        score = score.to(logits.dtype).to(tl.float32)
    return score, quarter


@jit
def _power(logits: "Any", peak: "Any", CAP: tl.constexpr, ROUNDS: tl.constexpr, BOUNDED: tl.constexpr) -> "Any":
    """Return e^(score - peak) of `_score`, and its quarter; under a low cap e^score, as fast as it can be.

    cap * tanh(x / cap) = cap (2s - 1) with s the sigmoid of 2x / cap, rounded once; near 0 this has the absolute
    precision of the cap, which a sum of exponentials averages out.
    """
    if BOUNDED and not ROUNDS:
        x = logits.to(tl.float32)
        e, q = _sigmoid_parts(tl.abs(x) * (-2.885390081777927 / CAP))
        size = tl.fma(q, -2.885390081777927 * CAP, -1.4426950408889634 * CAP)
        power = tl.exp2(_with_sign_of(size, x))
        quarter = e * q * q
    else:
        score, quarter = _score(logits, CAP, ROUNDS)
        power = tl.exp2((score - peak) * 1.4426950408889634)
    return power, quarter


@jit
def _read(line: "Any", columns: "Any", VOCAB: tl.constexpr, BLOCK: tl.constexpr) -> "Any":
    """Load a block of a row's logits, minus infinity beyond the vocabulary."""
    if VOCAB % BLOCK == 0:
        logits = tl.load(line + columns)
    else:
        logits = tl.load(line + columns, mask=columns < VOCAB, other=float("-inf"))
    return logits


@jit
def _loss_kernel(
    logits: "Any",
    targets: "Any",
    losses: "Any",
    partition: "Any",
    stride: "Any",
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    CAP: tl.constexpr,
    ROUNDS: tl.constexpr,
    BOUNDED: tl.constexpr,
) -> None:
    """Read one row of logits (V,) once: its loss, a peak (0 under a low cap) and the sum of e^(score - peak)."""
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < VOCAB)
    aim = tl.load(line + target, mask=valid, other=float("-inf"))
    peak = tl.full((), 0.0 if BOUNDED else -1.0e38, tl.float32)  # finite: infinities would subtract to NaN
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, VOCAB, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = _read(line, columns, VOCAB, BLOCK)
        if not BOUNDED:
            before = peak
            peak = tl.maximum(peak, tl.max(_score(x, CAP, ROUNDS)[0], 0))
            total *= tl.exp2((before - peak) * 1.4426950408889634)
        power = _power(x, peak, CAP, ROUNDS, BOUNDED)[0]
        if VOCAB % BLOCK != 0:
            power = tl.where(columns < VOCAB, power, 0.0)
        total += tl.sum(power, 0)
    tl.store(partition + 2 * row, peak)
    tl.store(partition + 2 * row + 1, total)
    score = _score(aim, CAP, ROUNDS)[0]
    total += tl.exp2((score - peak) * 1.4426950408889634) - _power(aim, peak, CAP, ROUNDS, BOUNDED)[0]
    tl.store(losses + row, tl.where(valid, (peak - score) + tl.log(total), float("nan")))


@jit
def _gradient_kernel(
    grad_losses: "Any",
    logits: "Any",
    targets: "Any",
    partition: "Any",
    gradient: "Any",
    grad_stride: "Any",
    stride: "Any",
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    CAP: tl.constexpr,
    ROUNDS: tl.constexpr,
    BOUNDED: tl.constexpr,
) -> None:
    """Write grad_loss * (e^(score - peak) / total - [column = target]) * derivative for a row; in place is allowed."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    peak = tl.load(partition + 2 * row)
    total = tl.load(partition + 2 * row + 1)
    factor = 4.0 * tl.load(grad_losses + row * grad_stride) / total
    factor = tl.where((target >= 0) & (target < VOCAB), factor, float("nan"))
    target = target.to(tl.int32)
    for start in range(0, VOCAB, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = _read(logits + row * stride, columns, VOCAB, BLOCK)
        power, quarter = _power(x, peak, CAP, ROUNDS, BOUNDED)
        excess = power - tl.where(columns == target, total, 0.0)  # exact where the target has nearly all
        found = excess * quarter * factor
        mask = None if VOCAB % BLOCK == 0 else columns < VOCAB
        tl.store(gradient + row * VOCAB + columns, found.to(gradient.dtype.element_ty), mask=mask)


def _settings(logits: Tensor, cap: float | None, rounds: bool) -> dict[str, Any]:
    """Choose the compiled form and its launch for logits (N, V)."""
    vocab = logits.shape[1]
    block = min(next_power_of_2(vocab), WIDEST_BLOCK)
    return {
        "VOCAB": vocab,
        "BLOCK": block,
        "CAP": cap,
        "ROUNDS": rounds and logits.dtype != torch.float32,
        "BOUNDED": cap is not None and cap <= BOUND,
        "num_warps": ceil_div(block, COLUMNS_PER_WARP),
    }


def fill_losses(
    losses: Tensor, partition: Tensor, logits: Tensor, targets: Tensor, *, cap: float | None, rounds: bool = False
) -> None:
    """Fill losses (N,) and partition (N, 2) of logits (N, V), whose rows are contiguous."""
    if len(logits) > 0:
        arguments = (logits, targets, losses, partition, logits.stride(0))
        _loss_kernel[(len(logits),)](*arguments, **_settings(logits, cap, rounds))


def fill_gradient(
    gradient: Tensor,
    grad_losses: Tensor,
    logits: Tensor,
    targets: Tensor,
    partition: Tensor,
    *,
    cap: float | None,
    rounds: bool = False,
) -> None:
    """Fill gradient (N, V), contiguous, of logits (N, V), whose rows are contiguous; the two may be one tensor."""
    if len(logits) > 0:
        arguments = (grad_losses, logits, targets, partition, gradient, grad_losses.stride(0), logits.stride(0))
        _gradient_kernel[(len(logits),)](*arguments, **_settings(logits, cap, rounds))


@torch.library.custom_op("golf::softcapped_cross_entropy", mutates_args=())
def _loss_op(logits: Tensor, targets: Tensor, cap: float | None, rounds: bool, spends: bool) -> tuple[Tensor, Tensor]:
    """Return losses (N,) of logits (N, V), and each row's sum of exponentials in two factors (N, 2); float32."""
    losses, partition = empty_results(logits, targets)
    fill_losses(losses, partition, _with_whole_rows(logits), targets.contiguous(), cap=cap, rounds=rounds)
    return losses, partition


@torch.library.custom_op("golf::softcapped_cross_entropy_backward", mutates_args=())
def _gradient_op(
    grad_losses: Tensor, logits: Tensor, targets: Tensor, partition: Tensor, cap: float | None, rounds: bool
) -> Tensor:
    """Return the gradient of logits (N, V), in their dtype."""
    gradient = logits.new_empty(logits.shape)
    rows = _with_whole_rows(logits)
    fill_gradient(gradient, grad_losses, rows, targets.contiguous(), partition, cap=cap, rounds=rounds)
    return gradient


@torch.library.custom_op("golf::spend_logits", mutates_args=("logits",))
def _spend_op(
    grad_losses: Tensor, logits: Tensor, targets: Tensor, partition: Tensor, cap: float | None, rounds: bool
) -> None:
    """Replace logits (N, V), which are contiguous, by their gradient."""
    fill_gradient(logits, grad_losses, logits, targets.contiguous(), partition, cap=cap, rounds=rounds)


_loss_op.register_fake(lambda logits, targets, *_: empty_results(logits, targets))
_gradient_op.register_fake(lambda _, logits, *__: logits.new_empty(logits.shape))


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what backward needs: both forward operations take tensors, then two settings, and return a partition."""
    *tensors, cap, last = inputs
    ctx.settings = (cap, last)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *shared, spends = inputs
    ctx.spends = spends and inputs[0].is_contiguous()
    save_for_backward(ctx, tuple(shared), output)


def _loss_backward(ctx: Any, grad_losses: Tensor, _: None) -> tuple[Tensor | None, ...]:
    if not ctx.spends:
        return _gradient_op(grad_losses, *ctx.saved_tensors, *ctx.settings), None, None, None, None
    logits, *others = ctx.saved_tensors
    spent = logits.detach()
    _spend_op(grad_losses, spent, *others, *ctx.settings)
    return spent, None, None, None, None


_loss_op.register_autograd(_loss_backward, setup_context=_save_loss)


def fused_softcapped_cross_entropy(
    logits: Tensor, targets: Tensor, *, cap: float | None, rounds: bool = False, spends: bool = False
) -> Tensor:
    """Return what `softcapped_cross_entropy` does; one pass over the logits, and one for their gradient.

    Logits that it `spends` are overwritten by their gradient if they are contiguous; a second backward is then refused
    (RuntimeError).

    `logits` (..., V) float32, bfloat16 or float16; rows that are not contiguous are copied. `targets` (...) int64: one
    outside 0..V-1 makes the row's loss and gradient NaN. Not twice differentiable. Raises ValueError for other dtypes
    and shapes.
    """
    check_rows(logits, targets, cap)
    losses: Tensor = _loss_op(logits.flatten(0, -2), targets.flatten(), cap, rounds, spends)[0]
    return losses.view(targets.shape)


def check_rows(x: Tensor, targets: Tensor, cap: float | None) -> None:
    """Raise ValueError unless x (..., any) is of a dtype the kernels take, with int64 targets (...), a cap above 0."""
    if x.dtype not in DTYPES:
        raise ValueError(f"the fused cross-entropy takes float32, bfloat16 or float16, not {x.dtype}")
    if targets.dtype != torch.int64 or x.ndim < 2 or x.shape[:-1] != targets.shape:
        given = f"{tuple(targets.shape)} {targets.dtype}"
        raise ValueError(f"targets are {given}; rows of shape {tuple(x.shape)} need {tuple(x.shape[:-1])} torch.int64")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap is {cap}; it must be above 0, or None")


def empty_results(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate losses (N,) and the partition (N, 2), whose columns are the kernel's peak and total."""
    count = targets.shape[0]
    return rows.new_empty(count, dtype=torch.float32), rows.new_empty(count, 2, dtype=torch.float32)


def _with_whole_rows(logits: Tensor) -> Tensor:
    """Return logits (N, V) with contiguous rows, whatever lies between them."""
    return logits if logits.stride(1) == 1 else logits.contiguous()
