"""Soft-capped cross-entropy against torch, against float64 and against the sigmoid form of the same function."""

import torch
import torch.nn.functional as F

from golf.kernels.softcapped_ce import softcap, softcapped_cross_entropy

CAP = 15.0


def case(rows: int = 3, tokens: int = 7, vocab: int = 423) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, tokens, vocab, generator=generator) * 20
    return logits, torch.randint(vocab, (rows, tokens), generator=generator)


def formula(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """lse(z) - z_t with z = 2 c sigmoid(2 x / c); the constant -c cancels."""
    z = 2 * CAP * torch.sigmoid(2 * logits.double() / CAP)
    return z.logsumexp(-1) - z.gather(-1, targets[..., None])[..., 0]


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


def test_rounded_logits_are_capped_in_float32_and_then_pass_through_their_own_dtype() -> None:
    logits, targets = case()
    capped = (CAP * torch.tanh(logits.bfloat16().double() / CAP)).bfloat16()
    expected = F.cross_entropy(capped.double().mT, targets, reduction="none")
    found = softcapped_cross_entropy(logits.bfloat16(), targets, cap=CAP, rounds=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    assert not torch.equal(found, softcapped_cross_entropy(logits.bfloat16(), targets, cap=CAP))
    exact = (softcapped_cross_entropy(logits, targets, cap=CAP, rounds=rounds) for rounds in (False, True))
    assert torch.equal(*exact)


def test_no_logit_leaves_the_cap() -> None:
    capped = softcap(torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9]), CAP)
    torch.testing.assert_close(capped, torch.tensor([-15.0, -0.998522, 0.0, 0.998522, 15.0]))
