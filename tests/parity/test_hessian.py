"""What the observer sums against the recorded Hessians of PR #1787's calibration."""

from pathlib import Path

import torch
from torch import Tensor

from golf.model.hooks import tap_of
from golf.quant.calibration import GramObserver
from tests.parity.fixture_set import read_fixture, under
from tests.parity.recorded import Recorded, causal_rows
from tests.parity.unbank import hessian_of


def mean_gram(folder: Path, tensors: dict[str, Tensor], loop: str) -> dict[str, Tensor]:
    """Sum over the recorded batches of plain causal windows, over the number of batches."""
    recorded, observer = Recorded(folder, "model_1787"), GramObserver()
    batches = [tensors[key] for key in sorted(tensors) if key.startswith("in::batch")]
    for tokens in batches:
        with torch.no_grad():
            recorded.model(causal_rows(tokens.long(), tokens.long()), plan=recorded.plan(loop), observer=observer)
    return {tap: gram / len(batches) for tap, gram in observer.grams.items()}


def test_every_recorded_hessian_is_the_observers_sum(fixtures: Path) -> None:
    description, tensors = read_fixture(fixtures, "hessian")
    grams = mean_gram(fixtures, tensors, "on")
    limit = description["tolerances"]["relative_frobenius"]
    assert description["asymmetry_relative"] <= limit  # so that a triangle holds the whole matrix
    for name in description["names"]:
        expected = hessian_of(fixtures, name)
        assert float((grams[tap_of(name)] - expected).norm()) <= limit * float(expected.norm()), name
    missing = grams.keys() - {tap_of(name) for name in description["names"]}
    assert bool(missing) == ("left_out" in description)  # of the compact subset


def test_with_the_loop_off_the_recorded_diagonals_are_ours(fixtures: Path) -> None:
    description, tensors = read_fixture(fixtures, "hessian")
    grams = mean_gram(fixtures, tensors, "off")
    limit = description["tolerances"]["relative_frobenius"]
    diagonals = under(tensors, "diag_loop_off::")
    assert diagonals
    for name, expected in diagonals.items():
        found = grams[tap_of(name)].diagonal()
        assert float((found - expected).norm()) <= limit * float(expected.norm()), name
