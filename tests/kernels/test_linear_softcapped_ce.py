"""The head's loss by chunks of rows, against its formula in float64 and against the whole logits' loss."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from golf.kernels import linear_softcapped_ce
from golf.kernels.linear_softcapped_ce import _head_gradients_op, _head_op, linear_softcapped_cross_entropy
from golf.kernels.softcapped_ce import fused_softcapped_cross_entropy, softcapped_cross_entropy
from tests.kernels.test_softcapped_ce import CAP, DEVICE, errors, formula, gradients, needs_triton


def case(rows: int = 3, tokens: int = 3, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return states (rows, tokens, 13), a float32 weight (423, 13) and targets (rows, tokens)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, tokens, 13, generator=generator).to(DEVICE, dtype).requires_grad_()
    weight = (torch.randn(423, 13, generator=generator) * 3).to(DEVICE).requires_grad_()
    return x, weight, torch.randint(423, (rows, tokens), generator=generator).to(DEVICE)


@needs_triton
@pytest.mark.parametrize(("cap", "chunk_rows"), [(CAP, 4), (CAP, 9), (None, 100)])
def test_the_loss_and_its_gradients_are_the_float64_formulas(cap: float | None, chunk_rows: int) -> None:
    x, weight, targets = case()
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = linear_softcapped_cross_entropy(x, weight, targets, cap=cap, chunk_rows=chunk_rows)
    expected = formula(F.linear(x.double(), weight.double()), targets, cap)
    assert (found.shape, found.dtype) == (targets.shape, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    grads, exact = gradients(found, weights, x, weight), gradients(expected, weights, x, weight)
    torch.testing.assert_close(grads, exact, rtol=1e-4, atol=1e-5)


@needs_triton
def test_bfloat16_errors_are_the_eager_ones() -> None:
    x, weight, targets = case(dtype=torch.bfloat16)
    weights = torch.ones_like(targets)
    double, matrix = (leaf.detach().double().requires_grad_() for leaf in (x, weight.bfloat16()))
    exact = formula(F.linear(double, matrix), targets)
    exacts = (exact, *gradients(exact, weights, double, matrix))
    fused = linear_softcapped_cross_entropy(x, weight, targets, cap=CAP, chunk_rows=4)
    eager = softcapped_cross_entropy(F.linear(x, weight.to(x.dtype)), targets, cap=CAP)
    found, whole = (errors((loss, *gradients(loss, weights, x, weight)), exacts) for loss in (fused, eager))
    assert all(one <= 1.01 * other for one, other in zip(found, whole, strict=True))


@needs_triton
def test_the_weights_gradient_is_added_up_in_float32() -> None:
    x, weight, targets = case(dtype=torch.bfloat16)
    logits = F.linear(x, weight.bfloat16()).detach().requires_grad_()
    (of_logits,) = torch.autograd.grad(fused_softcapped_cross_entropy(logits, targets, cap=CAP).sum(), logits)
    expected = of_logits.double().flatten(0, 1).T @ x.double().flatten(0, 1)
    losses = linear_softcapped_cross_entropy(x, weight, targets, cap=CAP, chunk_rows=4)
    (found,) = torch.autograd.grad(losses.sum(), weight)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@needs_triton
def test_a_weight_in_the_states_dtype_has_its_gradient_rounded_once() -> None:
    x, weight, targets = case(dtype=torch.bfloat16)
    rounded = weight.detach().bfloat16().requires_grad_()
    losses = [linear_softcapped_cross_entropy(x, leaf, targets, cap=CAP, chunk_rows=4) for leaf in (weight, rounded)]
    assert torch.equal(*losses)
    ones = torch.ones_like(targets)
    (grad,), (half,) = gradients(losses[0], ones, weight), gradients(losses[1], ones, rounded)
    assert torch.equal(grad.bfloat16(), half)


@needs_triton
def test_no_more_logits_exist_than_a_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    for name in ("fill_losses", "fill_gradient"):
        fill = getattr(linear_softcapped_ce, name)
        monkeypatch.setattr(linear_softcapped_ce, name, _watched(fill, seen))
    x, weight, targets = case()
    linear_softcapped_cross_entropy(x, weight, targets, cap=CAP, chunk_rows=4).sum().backward()
    assert seen == 2 * [(4, 4 * 423 * 4), (4, 4 * 423 * 4), (1, 4 * 423 * 4)]


def _watched(fill: Callable[..., None], seen: list[tuple[int, int]]) -> Callable[..., None]:
    """Note how many rows of logits are asked for, and the bytes of all memory as wide as they are."""

    def noting(*tensors: Tensor, cap: float | None) -> None:
        wide = [tensor for tensor in tensors if tensor.shape[-1] == 423]
        seen.append(
            (len(wide[0]), sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in wide}.values()))
        )
        fill(*tensors, cap=cap)

    return noting


@needs_triton
def test_scattered_states_and_gradients_are_read_where_they_lie() -> None:
    x, weight, targets = case()
    scattered = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    columns = weight.detach().mT.contiguous().mT.requires_grad_()
    weights = torch.arange(18.0, device=DEVICE)[::2].view(3, 3)
    losses = [
        linear_softcapped_cross_entropy(*leaves, targets, cap=CAP, chunk_rows=4)
        for leaves in ((x, weight), (scattered, columns))
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(
        gradients(losses[0], weights, x, weight), gradients(losses[1], weights, scattered, columns)
    )


@needs_triton
def test_no_row_gives_no_loss_and_no_gradient() -> None:
    x, weight, targets = case(0)
    losses = linear_softcapped_cross_entropy(x, weight, targets, cap=CAP, chunk_rows=4)
    grad_x, grad_weight = gradients(losses, losses, x, weight)
    assert (losses.shape, grad_x.shape) == ((0, 3), (0, 3, 13))
    assert torch.equal(grad_weight, torch.zeros_like(weight))


@needs_triton
def test_the_operations_are_what_pytorch_asks_of_custom_ones() -> None:
    x, weight, targets = case(1, dtype=torch.bfloat16)
    x, targets = x.detach()[0].requires_grad_(), targets[0]
    opcheck(_head_op, (x, weight, targets, CAP, 2))
    weights, partition = torch.tensor([0.5, 1.0, 2.0], device=DEVICE), torch.ones(3, 2, device=DEVICE)
    opcheck(_head_gradients_op, (weights, x.detach(), weight.detach().bfloat16(), targets, partition, CAP, 2))


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    x, weight, targets = case(1)
    losses = linear_softcapped_cross_entropy(x, weight, targets, cap=CAP, chunk_rows=4)
    (grad,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk_rows", "words"),
    [
        ((423, 12), torch.float32, 4, r"weight is \(423, 12\)"),
        ((13,), torch.float32, 4, r"weight is \(13,\)"),
        ((423, 13), torch.bfloat16, 4, r"allowed are \(V, 13\) in torch.float32"),
        ((423, 13), torch.float32, 0, "chunk_rows is 0"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    shape: tuple[int, ...], dtype: torch.dtype, chunk_rows: int, words: str
) -> None:
    x, _, targets = case()
    with pytest.raises(ValueError, match=words):
        linear_softcapped_cross_entropy(x, torch.ones(shape, dtype=dtype), targets, cap=CAP, chunk_rows=chunk_rows)


def test_targets_of_another_shape_are_refused() -> None:
    x, weight, targets = case()
    with pytest.raises(ValueError, match="targets are"):
        linear_softcapped_cross_entropy(x, weight, targets[:2], cap=CAP, chunk_rows=4)
