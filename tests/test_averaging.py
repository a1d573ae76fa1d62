"""Every average against its profile: the weight that each step has in it, summed in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from golf.averaging import Averages
from golf.profiles import PowerProfile, gamma_of_width, reconstruct
from golf.schedule import moment
from golf.training_config import AverageConfig
from tests.pico import pico_recipe

STEPS = 57
Profile = Callable[[int, int], float]  # step s, last step t -> weight of step s


class Walk(nn.Module):
    """A matrix and a bfloat16 vector that walk at random; every past value is kept."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(size, 5, generator=self.generator))
        self.table = nn.Parameter(torch.randn(7, generator=self.generator).bfloat16())
        self.past = [self.now()]

    def now(self) -> dict[str, Tensor]:
        return {name: tensor.detach().double().clone() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def walk(self) -> None:
        for parameter in self.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=self.generator).to(parameter.dtype))
        self.past.append(self.now())

    def summed(self, profile: Profile) -> dict[str, Tensor]:
        """The profile's sum over all past values, the first one being step 0."""
        last = len(self.past) - 1
        weights = torch.tensor([profile(step, last) for step in range(last + 1)], dtype=torch.float64)
        return {
            name: torch.einsum("s,s...->...", weights, torch.stack([values[name] for values in self.past]))
            for name in self.past[0]
        }


def after(config: AverageConfig, steps: int = STEPS, lr_multiplier: float = 0.1) -> tuple[Walk, Averages]:
    model = Walk()
    averages = Averages(model, config)
    for step in range(1, steps + 1):
        model.walk()
        averages.update(step=step, lr_multiplier=lr_multiplier)
    return model, averages


def assert_sums(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9965])
def test_the_exponential_average_has_the_exponential_profile(decay: float) -> None:
    model, averages = after(AverageConfig(ema_decay=decay, shadows=()))
    expected = model.summed(lambda s, t: decay**t if s == 0 else (1 - decay) * decay ** (t - s))
    assert_sums(averages.ema, expected)


@pytest.mark.parametrize("width", [0.25, 0.1, 0.05, 0.03])
def test_a_shadow_has_the_power_profile_of_its_width(width: float) -> None:
    model, averages = after(AverageConfig(shadows=(width,), use="raw"))
    power = gamma_of_width(width) + 1
    expected = model.summed(lambda s, t: 0.0 if s == 0 else (1 - (1 - 1 / s) ** power) * (s / t) ** power)
    assert_sums(averages.shadows[width], expected)


def test_a_shadow_forgets_the_weights_it_started_from() -> None:
    model, averages = after(AverageConfig(shadows=(0.1,), use="raw"), steps=1)
    assert_sums(averages.shadows[0.1], model.now())


def test_the_stochastic_average_is_the_mean_of_every_nth_step() -> None:
    model, averages = after(AverageConfig(swa_every=5, use="swa", shadows=()))
    taken = range(5, STEPS + 1, 5)
    assert averages.swa_count == len(taken) == 11
    assert_sums(averages.swa, model.summed(lambda s, t: (s in taken) / 11))


def test_the_stochastic_average_may_be_of_the_exponential_one() -> None:
    decay = 0.9
    model, averages = after(AverageConfig(ema_decay=decay, swa_every=20, swa_of="ema", use="swa", shadows=()))

    def profile(s: int, t: int) -> float:
        return sum(decay**n if s == 0 else (1 - decay) * decay ** (n - s) if s <= n else 0.0 for n in (20, 40)) / 2

    assert_sums(averages.swa, model.summed(profile))


def test_snapshots_are_taken_only_below_the_multiplier() -> None:
    model = Walk()
    averages = Averages(model, AverageConfig(swa_every=2, swa_below=0.2, use="swa", shadows=()))
    for step, multiplier in enumerate([0.1, 0.3, 0.1, 0.2, 0.1, 0.19, 0.1, 0.1], start=1):
        model.walk()
        averages.update(step=step, lr_multiplier=multiplier)
    assert averages.swa_count == 2
    assert_sums(averages.swa, model.summed(lambda s, t: (s in (6, 8)) / 2))


def test_the_401_setting_takes_fourteen_snapshots() -> None:
    recipe = pico_recipe("schedule.iterations=7006", f"schedule.warmdown_fraction={3500 / 7006}")
    averages = Averages(nn.Linear(1, 1), AverageConfig(swa_every=50, swa_below=0.2, use="swa", shadows=()))
    taken, count = [], 0
    for step in range(7006):
        averages.update(step=step + 1, lr_multiplier=moment(recipe, step=step, elapsed_seconds=0).lr_multiplier)
        if averages.swa_count > count:
            taken.append(step + 1)
        count = averages.swa_count
    assert taken == list(range(6350, 7001, 50))
    assert count == 14


@pytest.mark.parametrize("use", ["raw", "ema", "swa"])
def test_the_final_weights_are_the_chosen_ones_in_the_models_dtypes(use: str) -> None:
    config = AverageConfig(ema_decay=0.9, swa_every=5, use=use, shadows=())  # type: ignore[arg-type]  # parametrized
    model, averages = after(config)
    chosen = {"raw": averages.live, "ema": averages.ema, "swa": averages.swa}[use]
    final = averages.final()
    assert {name: tensor.dtype for name, tensor in final.items()} == {"matrix": torch.float32, "table": torch.bfloat16}
    assert all(torch.equal(tensor, chosen[name].to(tensor.dtype)) for name, tensor in final.items())
    model.walk()
    assert not torch.equal(final["matrix"], model.matrix)


@pytest.mark.parametrize(("every", "count"), [(99, 0), (STEPS, 1)])
@pytest.mark.parametrize("source", ["raw", "ema"])
def test_with_fewer_than_two_snapshots_the_final_weights_are_the_source(source: str, every: int, count: int) -> None:
    # One snapshot, of the step before the last, would be something else.
    config = AverageConfig(ema_decay=0.9, swa_every=every, swa_of=source, use="swa", shadows=())  # type: ignore[arg-type]
    model, averages = after(config)
    model.walk()
    averages.update(step=STEPS + 1, lr_multiplier=0.0)
    chosen = averages.ema if source == "ema" else averages.live
    assert torch.equal(averages.final()["matrix"], chosen["matrix"])
    assert averages.describe(STEPS)["swa"]["count"] == count


ALL = AverageConfig(ema_decay=0.9, swa_every=5, swa_of="ema", shadows=(0.05, 0.25))


def test_a_loaded_state_continues_bit_for_bit() -> None:
    model, averages = after(ALL, steps=31)
    saved, count = averages.state(), averages.swa_count
    fresh = Averages(model, ALL)
    fresh.load_state(saved, swa_count=count)
    for step in range(32, 46):
        model.walk()
        averages.update(step=step, lr_multiplier=0.1)
        fresh.update(step=step, lr_multiplier=0.1)
    assert fresh.swa_count == averages.swa_count
    found = fresh.state()
    assert all(torch.equal(tensor, found[name]) for name, tensor in averages.state().items())


def test_a_saved_state_does_not_change_with_later_steps() -> None:
    model, averages = after(ALL, steps=5)
    saved = averages.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    model.walk()
    averages.update(step=6, lr_multiplier=0.1)
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_the_state_names_each_average() -> None:
    _, averages = after(ALL, steps=1)
    sections = ("ema", "swa", "shadow/0.05", "shadow/0.25")
    assert sorted(averages.state()) == sorted(f"{key}/{name}" for key in sections for name in ("matrix", "table"))
    assert sorted(averages.shadow_state()) == sorted(
        f"{key}/{name}" for key in sections[2:] for name in ("matrix", "table")
    )
    assert {tensor.dtype for tensor in averages.state().values()} == {torch.float32}


def test_the_manifest_describes_each_profile() -> None:
    _, averages = after(ALL)
    assert averages.describe(STEPS) == {
        "ema": {"kind": "exponential", "decay": 0.9, "step": STEPS},
        "swa": {"kind": "mean", "of": "ema", "count": 11},
        "shadow/0.05": {"kind": "power", "width": 0.05, "gamma": gamma_of_width(0.05), "origin": 0, "step": STEPS},
        "shadow/0.25": {"kind": "power", "width": 0.25, "gamma": gamma_of_width(0.25), "origin": 0, "step": STEPS},
    }


@pytest.mark.parametrize("width", [0.06, 0.075, 0.15])
def test_another_length_is_reconstructed_from_stored_shadows_within_the_stated_residual(width: float) -> None:
    """The bound is Cauchy-Schwarz: the weights of the error sum to 0, so a constant may be taken off the walk."""
    model, steps, count = Walk(size=40), 480, 16
    kept = Averages(model, AverageConfig(shadows=(0.05, 0.10), use="raw"))
    direct = Averages(model, AverageConfig(shadows=(width,), use="raw"))
    stored, profiles = [], []
    for step in range(1, steps + 1):
        model.walk()
        kept.update(step=step, lr_multiplier=1.0)
        direct.update(step=step, lr_multiplier=1.0)
        if step % (steps // count) == 0:
            for length, gamma in kept.gammas.items():
                stored.append(kept.shadows[length]["matrix"].double().clone())
                profiles.append(PowerProfile(gamma, step))
    target = PowerProfile(gamma_of_width(width), steps)
    found = reconstruct(profiles, target)
    built = sum(weight * tensor for weight, tensor in zip(found.weights, stored, strict=True))
    wanted = direct.shadows[width]["matrix"].double()
    power = target.gamma + 1
    weights = torch.tensor([(1 - (1 - 1 / s) ** power) * (s / steps) ** power for s in range(1, steps + 1)])
    walk = torch.stack([past["matrix"] - wanted for past in model.past[1:]]).norm(dim=0)
    bound = found.residual * weights.double().norm() * walk
    error = (built - wanted).abs()
    assert float((error / bound).max()) < 1
    assert float(error.norm()) < 0.03 * float(
        (model.matrix.detach() - wanted).norm()
    )  # far nearer than the raw weights
