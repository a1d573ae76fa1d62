"""The fused soft-capped cross-entropy as an operation: where it reads and writes, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from golf.kernels import softcapped_ce
from golf.kernels.softcapped_ce import (
    _gradient_op,
    _loss_op,
    _spend_op,
    _with_whole_rows,
    fused_softcapped_cross_entropy,
)
from tests.kernels.test_softcapped_ce import BOTH, CAP, DEVICE, case, gradients, needs_triton

# The checks of whole graphs differentiate the same logits again and again, of which none that are spent are left.
CHECKS = {
    False: ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    True: ("test_schema", "test_autograd_registration", "test_faketensor"),
}


@needs_triton
def test_rows_apart_from_each_other_are_read_where_they_lie() -> None:
    logits, targets = case(1, 3)
    wide = F.pad(logits, (16, 5), value=float("nan"))  # none of which is the vocabulary's
    for rows in (wide[0, :, 16:-5], logits[0].mT.contiguous().mT):
        assert not rows.is_contiguous()
        assert (_with_whole_rows(rows) is rows) == (rows.stride(1) == 1)
        losses = [score(rows.requires_grad_(), targets[0], cap=CAP) for score in BOTH]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(gradients(loss, torch.ones_like(loss), rows) for loss in losses))


@needs_triton
def test_rows_beyond_two_billion_logits_are_found() -> None:
    stride = 2**30 + 64
    flat = torch.empty(2 * stride + 423, dtype=torch.float16, device=DEVICE)  # takes room only where it is written
    logits = flat.as_strided((3, 423), (stride, 1))
    logits.copy_(case(1, 3)[0][0])
    targets = torch.tensor([3, 422, 0], device=DEVICE)
    losses = [score(logits.requires_grad_(), targets, cap=CAP) for score in BOTH]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(gradients(loss, torch.ones_like(loss), logits) for loss in losses))


@needs_triton
def test_expanded_and_scattered_gradients_arrive_where_they_belong() -> None:
    logits, targets = case(1, 5, 23)
    logits, targets = logits[0].requires_grad_(), targets[0]
    losses = [score(logits, targets, cap=CAP) for score in BOTH]
    for weights in (torch.tensor(0.25).expand(5), torch.arange(10.0)[::2]):
        assert weights.stride() != (1,)
        torch.testing.assert_close(*(gradients(loss, weights.to(DEVICE), logits) for loss in losses))


@needs_triton
def test_no_row_gives_no_loss_and_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_loss_kernel", "_gradient_kernel"):
        monkeypatch.setattr(softcapped_ce, name, None)
    logits = torch.empty(0, 7, 423, device=DEVICE, requires_grad=True)
    losses = fused_softcapped_cross_entropy(logits, case()[1][:0], cap=CAP)
    (grad,) = gradients(losses, losses, logits)
    assert (losses.shape, grad.shape) == ((0, 7), (0, 7, 423))


@needs_triton
@pytest.mark.parametrize(("cap", "rounds"), [(CAP, True), (None, False)])
def test_the_operations_are_what_pytorch_asks_of_custom_ones(cap: float | None, rounds: bool) -> None:
    logits, targets = (tensor[0] for tensor in case(1, 3, 23))
    logits = logits.bfloat16().requires_grad_()
    for spends in (False, True):
        opcheck(_loss_op, (logits, targets, cap, rounds, spends), test_utils=CHECKS[spends])
    weights, partition = torch.tensor([0.5, 1.0, 2.0], device=DEVICE), torch.ones(3, 2, device=DEVICE)
    for operation in (_gradient_op, _spend_op):
        opcheck(operation, (weights, logits.detach(), targets, partition, cap, rounds))


@needs_triton
def test_no_gradient_flows_through_what_the_operation_returns_for_its_backward() -> None:
    logits, targets = (tensor[0] for tensor in case(1, 3, 23))
    losses, partition = _loss_op(logits.requires_grad_(), targets, CAP, False, False)
    assert losses.requires_grad
    assert not partition.requires_grad


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    logits, targets = case(1, 3, 23)
    losses = fused_softcapped_cross_entropy(logits.requires_grad_(), targets, cap=CAP)
    (grad,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": torch.zeros(3, 5, dtype=torch.float64)}, "not torch.float64"),
        ({"targets": torch.zeros(3, dtype=torch.int32)}, r"targets are \(3,\) torch.int32"),
        ({"targets": torch.zeros(3, 1, dtype=torch.int64)}, r"\(3, 5\) need \(3,\) torch.int64"),
        ({"logits": torch.zeros(5), "targets": torch.tensor(0)}, r"targets are \(\)"),
        ({"cap": 0.0}, "cap is 0.0"),
        ({"cap": float("nan")}, "cap is nan"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"logits": torch.zeros(3, 5), "targets": torch.zeros(3, dtype=torch.int64), "cap": CAP}
    with pytest.raises(ValueError, match=words):
        fused_softcapped_cross_entropy(**given | change)


@needs_triton
@pytest.mark.parametrize("rounds", [False, True])
def test_logits_that_are_spent_become_their_gradient_once(rounds: bool) -> None:
    leaf, targets = case(2, 3)
    leaf = leaf.bfloat16().requires_grad_()
    settings: dict[str, Any] = {"cap": CAP, "rounds": rounds}
    kept = fused_softcapped_cross_entropy(leaf * 1, targets, **settings)
    logits = leaf * 1
    losses = fused_softcapped_cross_entropy(logits, targets, spends=True, **settings)
    assert torch.equal(losses, kept)
    weights = torch.rand_like(losses)
    (expected,) = torch.autograd.grad(kept, leaf, weights)
    (found,) = torch.autograd.grad(losses, leaf, weights, retain_graph=True)
    assert torch.equal(found, expected)
    assert torch.equal(logits.detach(), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(losses, leaf, weights)


@needs_triton
def test_spent_logits_that_are_not_contiguous_stay() -> None:
    leaf, targets = (tensor[0] for tensor in case(1, 3))
    wide = F.pad(leaf, (0, 5)).requires_grad_()
    logits = (wide * 1)[:, :-5]
    before = logits.detach().clone()
    losses = fused_softcapped_cross_entropy(logits, targets, cap=CAP, spends=True)
    (found,) = torch.autograd.grad(losses.sum(), wide)
    assert torch.equal(logits.detach(), before)
    (expected,) = torch.autograd.grad(fused_softcapped_cross_entropy(wide[:, :-5], targets, cap=CAP).sum(), wide)
    assert torch.equal(found, expected)


@needs_triton
def test_spent_logits_compile_as_one_graph() -> None:
    leaf, targets = case(1, 3, 23)

    def score(leaf: Tensor) -> Tensor:
        return fused_softcapped_cross_entropy(leaf * 2, targets, cap=CAP, spends=True).sum()

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    leaf.requires_grad_()
    found, expected = (torch.autograd.grad(function(leaf), leaf)[0] for function in (compiled, score))
    assert torch.equal(found, expected)
