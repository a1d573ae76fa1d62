"""The forms of Muon against their words, written again in float64, and what zeros do to them."""

import pytest
import torch
from torch import Tensor

from golf.optim.forms import Form, first_squares, level_rows, precondition, track_mousse_, track_normuon_

SHAPE = (2, 3, 423)
CPU = torch.device("cpu")


def values(seed: int, spread: float = 2.0) -> Tensor:
    """Matrices whose rows and columns differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    count, rows, columns = SHAPE
    sizes = [(spread * torch.randn(count, size, generator=generator)).exp() for size in (rows, columns)]
    return torch.randn(SHAPE, generator=generator) * sizes[0][:, :, None] * sizes[1][:, None, :]


def test_mousse_remembers_ones_and_then_the_mean_squares_of_rows_and_columns() -> None:
    squares = first_squares("mousse", SHAPE, CPU)
    rows, columns = (torch.ones(SHAPE[0], size, dtype=torch.float64) for size in SHAPE[1:])
    for seed in range(3):
        track_mousse_(squares, values(seed))
        rows = 0.99 * rows + 0.01 * values(seed).double().pow(2).mean(2)
        columns = 0.99 * columns + 0.01 * values(seed).double().pow(2).mean(1)
    torch.testing.assert_close(squares["row_squares"].double(), rows, rtol=1e-5, atol=0)
    torch.testing.assert_close(squares["column_squares"].double(), columns, rtol=1e-5, atol=0)


def test_mousse_divides_by_the_roots_of_both_mean_squares() -> None:
    roots = values(1)[:, :, 0], values(2)[:, 0, :]
    squares = dict(zip(("row_squares", "column_squares"), (r.square().clamp_min(1e-7) for r in roots), strict=True))
    updates = values(0)
    rows, columns = squares["row_squares"].double(), squares["column_squares"].double()
    expected = torch.einsum("nrc,nr,nc->nrc", updates.double(), rows**-0.5, columns**-0.5)
    torch.testing.assert_close(precondition(updates, squares).double(), expected, rtol=1e-5, atol=0)


def test_mousse_takes_mean_squares_below_the_floor_for_the_floor() -> None:
    squares = {"row_squares": torch.tensor([[0.0, 1e-12, 4.0]]), "column_squares": torch.tensor([[1.0, 1e-9]])}
    found = precondition(torch.ones(1, 3, 2), squares)
    torch.testing.assert_close(found, torch.tensor([[[1e4, 1e8], [1e4, 1e8], [0.5, 5e3]]]))


def test_normuon_remembers_zeros_and_then_the_mean_squares_of_rows() -> None:
    squares = first_squares("normuon", SHAPE, CPU)
    rows = torch.zeros(SHAPE[:2], dtype=torch.float64)
    for seed in range(3):
        track_normuon_(squares, values(seed))
        rows = 0.95 * rows + 0.05 * values(seed).double().pow(2).mean(2)
    torch.testing.assert_close(squares["row_squares"].double(), rows, rtol=1e-5, atol=0)


def test_normuon_divides_rows_by_their_root_and_keeps_the_length_of_the_matrix() -> None:
    directions, squares = values(0), {"row_squares": values(1)[:, :, 0].square()}
    divided = directions.double() / squares["row_squares"].double()[:, :, None] ** 0.5
    lengths = [matrix.flatten(1).norm(dim=1)[:, None, None] for matrix in (directions.double(), divided)]
    expected = divided * lengths[0] / lengths[1]
    torch.testing.assert_close(level_rows(directions, squares).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept_and_what_is_remembered_is_float32(dtype: torch.dtype) -> None:
    updates = values(0).to(dtype)
    mousse, normuon = (first_squares(form, SHAPE, CPU) for form in ("mousse", "normuon"))
    track_mousse_(mousse, updates)
    track_normuon_(normuon, updates)
    assert precondition(updates, mousse).dtype == level_rows(updates, normuon).dtype == dtype
    assert {tensor.dtype for squares in (mousse, normuon) for tensor in squares.values()} == {torch.float32}


@pytest.mark.parametrize("form", ["normuon", "mousse"])
def test_zero_matrices_and_zero_rows_stay_zero_for_a_thousand_steps(form: Form) -> None:
    updates = values(0)
    updates[0], updates[1, 2] = 0.0, 0.0
    squares = first_squares(form, SHAPE, CPU)
    for _ in range(1000):  # long enough for the ones that Mousse begins with to be forgotten
        if form == "normuon":
            track_normuon_(squares, updates)
        else:
            track_mousse_(squares, updates)
    found = level_rows(updates, squares) if form == "normuon" else precondition(updates, squares)
    assert found.isfinite().all()
    assert not found[0].any()
    assert not found[1, 2].any()
    assert found[1, :2].any()


def test_plain_muon_remembers_nothing_beside_its_momentum() -> None:
    assert first_squares("plain", SHAPE, CPU) == {}
