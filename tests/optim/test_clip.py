"""The clip's factor, and its limit while gradient norms grow."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from golf.optim.clip import Clip, sum_of_squares, tightening

CPU = torch.device("cpu")


def growing(rate: float, count: int) -> list[float]:
    return [2.0 * (1.0 + rate) ** step for step in range(count)]


def factors(norms: list[float], *, limit: float = 0.3, window: int = 20) -> list[float]:
    """By what a gradient of each of `norms` in turn is multiplied."""
    clip, found = Clip(limit, window=window, device=CPU), []
    for norm in norms:
        gradient = torch.ones(3)
        clip.shorten_([gradient], torch.tensor(norm))
        found.append(float(gradient[0]))
    return found


def limit_in_words(norms: list[float], limit: float = 0.3) -> float:
    logs = [math.log(after / before) for before, after in itertools.pairwise(norms)]
    exponent = sum(logs) / len(logs)
    return limit * math.exp(-5.0 * exponent) if exponent > 0.05 else limit


def test_norms_that_grow_by_ten_percent_a_step_tighten_the_limit_as_published() -> None:
    norms = growing(0.10, 20)
    assert float(torch.tensor(norms).log().diff().mean()) == pytest.approx(0.0953, abs=1e-4)
    assert factors(norms)[-1] * norms[-1] == pytest.approx(0.186, abs=5e-4)


def test_the_limit_is_the_formula_at_every_step_of_an_uneven_series() -> None:
    generator = torch.Generator().manual_seed(0)
    norms = (torch.linspace(0, 4, 40) + 0.5 * torch.randn(40, generator=generator)).exp().tolist()
    norms = [norm + 1.0 for norm in norms]  # all above the limit, so that the factor is limit / norm
    expected = [0.3 if step < 6 else limit_in_words(norms[step - 6 : step + 1]) for step in range(40)]
    assert len(set(expected)) > 10
    found = [factor * norm for factor, norm in zip(factors(norms, window=7), norms, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_it_does_not_compound() -> None:
    norms = growing(0.10, 30)
    limits = [factor * norm for factor, norm in zip(factors(norms), norms, strict=True)]
    assert limits[19:] == pytest.approx(11 * [limits[19]], rel=1e-3)


def test_the_limit_is_the_recipes_until_the_window_is_full() -> None:
    norms = growing(0.10, 19)
    assert factors(norms) == factors(norms, window=0)


def test_the_limit_is_the_recipes_again_once_the_norms_stop_growing() -> None:
    norms = growing(0.10, 20) + 20 * [9.0]
    assert factors(norms)[-1] * norms[-1] == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("rate", [0.051, 0.0, -0.2])
def test_norms_that_grow_by_less_than_the_threshold_change_no_bit(rate: float) -> None:
    norms = growing(rate, 25)
    assert factors(norms) == factors(norms, window=0)


def test_a_growth_just_above_the_threshold_acts() -> None:
    norms = growing(math.exp(0.0501) - 1.0, 20)
    assert factors(norms)[-1] * norms[-1] == pytest.approx(0.3 * math.exp(-5 * 0.0501), rel=1e-3)


@pytest.mark.parametrize("wrong", [0.0, math.inf, math.nan])
@pytest.mark.parametrize("place", [0, -1])
def test_a_norm_without_logarithm_tightens_nothing(wrong: float, place: int) -> None:
    norms = torch.tensor(growing(0.1, 5))
    norms[place] = wrong
    assert float(tightening(norms)) == 1.0


@pytest.mark.parametrize("norm", [0.1, 7.0])
def test_a_gradient_is_shortened_to_the_limit_and_never_lengthened(norm: float) -> None:
    assert factors([norm], window=0) == pytest.approx([min(1.0, 0.3 / (norm + 1e-6))])


def test_a_millionth_is_added_to_the_norm() -> None:
    assert factors([1e-6], limit=1e-6, window=0) == pytest.approx([0.5])


@pytest.mark.parametrize(("last", "shortened_to"), [(0.25, 0.3 * 1.1**-5), (0.15, 0.15)])
def test_the_tighter_limit_holds_for_gradients_below_the_recipes(last: float, shortened_to: float) -> None:
    norms = [last * 1.1 ** (step - 19) for step in range(20)]
    assert factors(norms)[-1] * last == pytest.approx(shortened_to, rel=1e-4)


def test_a_bfloat16_gradient_is_multiplied_by_the_unrounded_factor() -> None:
    gradient = torch.randn(423, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (gradient.float() * (0.3 / (torch.tensor(2.5) + 1e-6))).bfloat16()
    Clip(0.3, window=0, device=CPU).shorten_([gradient], torch.tensor(2.5))
    assert torch.equal(gradient, expected)


def test_without_a_limit_nothing_is_shortened() -> None:
    assert factors([7.0, 1e9], limit=0.0, window=0) == [1.0, 1.0]


def continued(saved: dict[str, Tensor], norms: list[float]) -> list[Tensor]:
    clip = Clip(0.3, window=20, device=CPU)
    clip.load_state(saved)
    gradients = [torch.ones(3) for _ in norms]
    for gradient, norm in zip(gradients, norms, strict=True):
        clip.shorten_([gradient], torch.tensor(norm))
    return gradients


@pytest.mark.parametrize("saved_after", [0, 3, 25])
def test_a_loaded_history_continues_bit_for_bit(saved_after: int) -> None:
    norms = growing(0.08, 30)
    clip = Clip(0.3, window=20, device=CPU)
    for norm in norms[:saved_after]:
        clip.shorten_([torch.ones(3)], torch.tensor(norm))
    found = [float(gradient[0]) for gradient in continued(clip.state(), norms[saved_after:])]
    assert found == factors(norms)[saved_after:]


def test_no_more_norms_are_kept_than_the_window_holds() -> None:
    clip = Clip(0.3, window=4, device=CPU)
    for norm in growing(0.1, 9):
        clip.shorten_([torch.ones(3)], torch.tensor(norm))
    assert clip.state()["norms"].tolist() == pytest.approx(growing(0.1, 9)[-4:])


def test_without_a_window_there_is_no_state() -> None:
    clip = Clip(0.3, window=0, device=CPU)
    clip.shorten_([torch.ones(3)], torch.tensor(5.0))
    assert clip.state() == {}


def test_a_state_without_the_norms_of_a_window_is_refused() -> None:
    with pytest.raises(KeyError, match="norms"):
        Clip(0.3, window=20, device=CPU).load_state({})


def test_squares_of_bfloat16_values_are_summed_in_float32() -> None:
    gradients = [torch.full((423,), 1.5, dtype=torch.bfloat16), torch.full((3, 5), -2.0)]
    assert float(sum_of_squares(gradients)) == 423 * 2.25 + 15 * 4
