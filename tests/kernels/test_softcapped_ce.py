"""Soft-capped cross-entropy, plain and fused, against torch and against its formula in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.jit import HAS_TRITON, jit, tl
from golf.kernels.softcapped_ce import (
    _score,
    fused_softcapped_cross_entropy,
    softcap,
    softcapped_cross_entropy,
)

CAP = 15.0
WIDE = 8192 + 423  # one program's two blocks, the second one ragged
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOTH: tuple[Callable[..., Tensor], ...] = (fused_softcapped_cross_entropy, softcapped_cross_entropy)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
caps = pytest.mark.parametrize("cap", [CAP, 100.0, None])  # of bounded sums, too high for them, none


def case(rows: int = 3, tokens: int = 7, vocab: int = 423, *, spread: float = 20.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, tokens, vocab, generator=generator) * spread
    return logits.to(DEVICE), torch.randint(vocab, (rows, tokens), generator=generator).to(DEVICE)


def formula(logits: Tensor, targets: Tensor, cap: float | None = CAP) -> Tensor:
    """lse(z) - z_t with z = 2 c sigmoid(2 x / c), in float64; the constant -c cancels."""
    x = logits.double()
    z = x if cap is None else 2 * cap * torch.sigmoid(2 * x / cap)
    return z.logsumexp(-1) - z.gather(-1, targets[..., None])[..., 0]


def gradients(losses: Tensor, weights: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses, leaves, weights.to(losses.dtype), retain_graph=True)


def errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Return the norm of each error over that of the exact values."""
    return [float(((x.double() - y).norm() / y.norm()).detach()) for x, y in zip(found, exact, strict=True)]


def test_the_loss_is_torchs_of_the_capped_logits() -> None:
    logits, targets = case()
    expected = F.cross_entropy(CAP * torch.tanh(logits / CAP).mT, targets, reduction="none")
    torch.testing.assert_close(softcapped_cross_entropy(logits, targets, cap=CAP), expected)


def test_the_loss_is_the_float64_formula() -> None:
    logits, targets = case()
    found = softcapped_cross_entropy(logits, targets, cap=CAP)
    assert found.shape == targets.shape
    torch.testing.assert_close(found.double(), formula(logits, targets), rtol=1e-6, atol=1e-5)


def test_the_gradient_is_the_float64_formulas() -> None:
    logits, targets = case()
    logits.requires_grad_()
    (found,) = torch.autograd.grad(softcapped_cross_entropy(logits, targets, cap=CAP).sum(), logits)
    (expected,) = torch.autograd.grad(formula(logits, targets).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_logits_are_capped_and_scored_in_float32() -> None:
    logits, targets = case()
    found = softcapped_cross_entropy(logits.bfloat16(), targets, cap=CAP)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), formula(logits.bfloat16(), targets), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "score", [softcapped_cross_entropy, pytest.param(fused_softcapped_cross_entropy, marks=needs_triton)]
)
def test_rounded_logits_are_capped_in_float32_and_then_pass_through_their_own_dtype(
    score: Callable[..., Tensor],
) -> None:
    logits, targets = case()
    capped = (CAP * torch.tanh(logits.bfloat16().double() / CAP)).bfloat16()
    expected = F.cross_entropy(capped.double().mT, targets, reduction="none")
    found = score(logits.bfloat16(), targets, cap=CAP, rounds=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    assert not torch.equal(found, score(logits.bfloat16(), targets, cap=CAP))
    exact = (score(logits, targets, cap=CAP, rounds=rounds) for rounds in (False, True))
    assert torch.equal(*exact)


def test_no_logit_leaves_the_cap() -> None:
    capped = softcap(torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9]), CAP)
    torch.testing.assert_close(capped, torch.tensor([-15.0, -0.998522, 0.0, 0.998522, 15.0]))


@needs_triton
@pytest.mark.parametrize("cap", [1.0, 100.0, None])  # below 1, what lies beyond a row would count for much
@pytest.mark.parametrize("vocab", [1, 423, 512, WIDE])
def test_the_fused_loss_and_gradient_are_the_float64_formulas(cap: float | None, vocab: int) -> None:
    logits, targets = case(1, 3, vocab)
    weights = torch.tensor([[0.5, -2.0, 0.0]], device=DEVICE)
    found = fused_softcapped_cross_entropy(logits.requires_grad_(), targets, cap=cap)
    expected = formula(logits, targets, cap)
    assert (found.shape, found.dtype) == (targets.shape, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    (grad,), (exact,) = gradients(found, weights, logits), gradients(expected, weights, logits)
    torch.testing.assert_close(grad, exact, rtol=1e-5, atol=1e-7)


@needs_triton
@caps
@pytest.mark.parametrize(("dtype", "spread"), [(torch.bfloat16, 2.0), (torch.float16, 20.0)])
def test_the_fused_errors_are_at_most_twice_the_eager_ones(
    cap: float | None, dtype: torch.dtype, spread: float
) -> None:
    logits, targets = case(5, spread=spread)
    logits = logits.to(dtype).requires_grad_()
    weights = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    exact = formula(double := logits.detach().double().requires_grad_(), targets, cap)
    exacts = (exact, *gradients(exact, weights, double))
    scores = (score(logits, targets, cap=cap) for score in BOTH)
    fused, eager = (errors((loss, *gradients(loss, weights, logits)), exacts) for loss in scores)
    assert fused[0] <= 2 * eager[0]
    assert fused[1] <= 1.01 * eager[1]  # the gradient is rounded once, as eager's


@needs_triton
@pytest.mark.parametrize("cap", [CAP, 100.0])
def test_fused_logits_are_rounded_to_what_plain_ones_are(cap: float) -> None:
    values = torch.arange(2**16).to(torch.int16).view(torch.bfloat16)
    values = torch.where((values.abs() > 1e-30) & (values.abs() < 1e4), values, 1.0).to(DEVICE)
    found = torch.empty(2**16, device=DEVICE)
    _capped_kernel[(64,)](values, found, CAP=cap, SIZE=1024)
    assert (found != softcap(values, cap).bfloat16()).sum() <= 1  # of 65,536; one may lie on the edge


@needs_triton
def test_fused_logits_are_capped_with_the_precision_of_float32() -> None:
    values = torch.logspace(-3, 3, 2**13, dtype=torch.float64).float().to(DEVICE)
    found = torch.empty(2, 2**13, device=DEVICE)
    for row, x in zip(found, (values, -values), strict=True):
        _capped_kernel[(8,)](x, row, CAP=100.0, SIZE=1024)
    exact = 100 * torch.tanh(values.double() / 100)
    error = (found.double() / torch.stack([exact, -exact]) - 1).abs()
    assert error[:, values < 25].max() < 2e-7  # by the series
    assert error.max() < 5e-7


@jit
def _capped_kernel(logits: "Any", capped: "Any", CAP: tl.constexpr, SIZE: tl.constexpr) -> None:
    columns = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(capped + columns, _score(tl.load(logits + columns), CAP, True)[0])


@needs_triton
@caps
def test_the_gradient_passes_a_rounding_by(cap: float | None) -> None:
    logits, targets = case(1, 3)
    logits = logits.bfloat16().requires_grad_()
    found = fused_softcapped_cross_entropy(logits, targets, cap=cap, rounds=True)
    (grad,) = gradients(found, torch.ones_like(found), logits)
    capped = softcap(logits, cap).bfloat16().double()
    slopes = 1.0 if cap is None else logits.double().div(cap).cosh() ** -2
    expected = (capped.softmax(-1) - F.one_hot(targets, 423)) * slopes
    torch.testing.assert_close(grad.double(), expected, rtol=2**-8, atol=1e-30)  # a unit in the last place


@needs_triton
@pytest.mark.parametrize("cap", [40.0, 100.0, None])
def test_a_sure_tokens_loss_and_gradient_keep_their_digits(cap: float | None) -> None:
    logits = torch.zeros(9, 423, device=DEVICE)
    logits[:, 7] = torch.linspace(9.0, 10.0, 9)  # all others together have 5 to 2 percent
    targets = torch.full((9,), 7, device=DEVICE)
    found = fused_softcapped_cross_entropy(logits.requires_grad_(), targets, cap=cap)
    expected = formula(logits, targets, cap)
    weights = torch.ones(9, device=DEVICE)
    (grad,), (exact,) = gradients(found, weights, logits), gradients(expected, weights, logits)
    torch.testing.assert_close(found.double(), expected, rtol=6e-5, atol=0)
    torch.testing.assert_close(grad[:, 7], exact[:, 7], rtol=6e-5, atol=0)


@needs_triton
@pytest.mark.parametrize("vocab", [423, WIDE])
def test_without_a_cap_a_constant_on_all_logits_changes_nothing(vocab: int) -> None:
    logits, targets = case(1, 3, vocab, spread=2.0)
    logits[..., -400:] += 9.0  # the largest comes late
    found, shifted = (fused_softcapped_cross_entropy(x, targets, cap=None) for x in (logits, logits - 512))
    torch.testing.assert_close(found.double(), formula(logits, targets, None), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-4)  # float32 has 6e-5 between numbers by 512


@needs_triton
def test_a_target_outside_the_vocabulary_makes_its_row_nan() -> None:
    logits, targets = case(1, 5, 23)
    targets[0, 1], targets[0, 3] = 23, -100
    losses = fused_softcapped_cross_entropy(logits.requires_grad_(), targets, cap=CAP)
    (grad,) = gradients(losses, torch.ones_like(losses), logits)
    bad = torch.tensor([False, True, False, True, False], device=DEVICE)
    assert torch.equal(losses.isnan()[0], bad)
    assert torch.equal(grad.isnan()[0], bad[:, None].expand(5, 23))


@needs_triton
@caps
def test_a_nan_among_the_logits_makes_its_row_nan(cap: float | None) -> None:
    logits, targets = case(1, 2, 423)
    logits[0, 1, 5] = float("nan")
    losses = fused_softcapped_cross_entropy(logits.requires_grad_(), targets, cap=cap)
    (grad,) = gradients(losses, torch.ones_like(losses), logits)
    assert losses.isnan().tolist() == [[False, True]]
    assert grad.isnan().all(-1).tolist() == [[False, True]]
    assert not grad[0, 0].isnan().any()


@needs_triton
@pytest.mark.parametrize("cap", [CAP, 100.0])
def test_infinite_logits_are_at_the_cap(cap: float) -> None:
    logits = torch.tensor([[float("inf"), -float("inf"), 1e30, -1.0, 0.0]], device=DEVICE).requires_grad_()
    target = torch.tensor([3], device=DEVICE)
    found = fused_softcapped_cross_entropy(logits, target, cap=cap)
    torch.testing.assert_close(found.double(), formula(logits, target, cap), rtol=1e-6, atol=1e-5)
    (grad,) = gradients(found, torch.ones(1, device=DEVICE), logits)
    assert torch.equal(grad[0, :3], torch.zeros(3, device=DEVICE))


@needs_triton
def test_without_a_cap_logits_may_be_minus_infinity() -> None:
    logits = torch.full((1, WIDE), -float("inf"), device=DEVICE)
    logits[0, -3:] = 0.0  # the whole first block is forbidden
    target = torch.tensor([WIDE - 1], device=DEVICE)
    found = fused_softcapped_cross_entropy(logits.requires_grad_(), target, cap=None)
    torch.testing.assert_close(found, torch.tensor([3.0], device=DEVICE).log())
    (grad,) = gradients(found, torch.ones(1, device=DEVICE), logits)
    torch.testing.assert_close(grad[0, -4:].cpu(), torch.tensor([0, 1 / 3, 1 / 3, -2 / 3]))
