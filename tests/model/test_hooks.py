"""The two hooks: no trace when absent, every site and every matrix's input when present."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from golf.model.gpt import GPT
from golf.model.hooks import Hooks, Site, tap_of
from golf.model.plan import plan_layers
from golf.roles import Role, role_of
from tests.pico import pico_batch, pico_model, pico_recipe

RECIPE = pico_recipe()
PLAN = plan_layers(RECIPE.model, looping=True)
DIMS: dict[Site, int] = {"q": 32, "k": 16, "v": 16, "o": 32, "mlp": 32, "head": 61}


class Deltas:
    """An adapter that adds a constant at every site, or at the chosen slots and sites, and notes who asked."""

    def __init__(self, value: float, at: tuple[int, Site] | None = None) -> None:
        self.value, self.at = value, at
        self.asked: list[tuple[int, Site, int]] = []

    def delta(self, slot: int, site: Site, x: Tensor) -> Tensor | None:
        self.asked.append((slot, site, x.shape[-1]))
        if self.at is not None and self.at != (slot, site):
            return None
        return torch.full((*x.shape[:-1], DIMS[site]), self.value)


class Shown:
    """An observer that keeps the width of what it saw, tap by tap."""

    def __init__(self) -> None:
        self.widths: dict[str, list[int]] = {}

    def see(self, tap: str, x: Tensor) -> None:
        self.widths.setdefault(tap, []).append(x.shape[-1])


class Operations(TorchDispatchMode):
    """Notes the name of every operation that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(model: GPT, adapters: Deltas | None = None, observer: Shown | None = None) -> list[str]:
    """What one forward runs, in order, once the rotary tables are made."""
    batch = pico_batch(2, 23)
    model(batch, plan=PLAN)
    ran = Operations()
    with ran:
        model(batch, plan=PLAN, adapters=adapters, observer=observer)
    return ran.names


def test_without_hooks_a_forward_runs_the_operations_of_one_that_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model(RECIPE)
    hooked = operations(model)
    monkeypatch.setattr(Hooks, "adapt", lambda self, slot, site, y, x, gain=None: y)
    monkeypatch.setattr(Hooks, "show", lambda self, tap, x: None)
    assert hooked == operations(model)
    assert len(hooked) > 300


def test_an_observer_that_computes_nothing_adds_no_operation() -> None:
    model = pico_model(RECIPE)
    assert operations(model, observer=Shown()) == operations(model)


def test_an_adapter_adds_operations() -> None:
    model = pico_model(RECIPE)
    added = len(operations(model, adapters=Deltas(0.0))) - len(operations(model))
    assert added >= 2 * (5 * len(PLAN.visits) + 1)  # each delta is made and added


@torch.no_grad()
def test_zero_deltas_give_the_same_bits() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    assert torch.equal(model(batch, plan=PLAN, adapters=Deltas(0.0)), model(batch, plan=PLAN))


@torch.no_grad()
def test_adapters_are_asked_by_slot_not_by_layer() -> None:
    adapter = Deltas(0.0)
    pico_model(RECIPE)(pico_batch(2, 23), plan=PLAN, adapters=adapter)
    sites: list[Site] = ["q", "k", "v", "o", "mlp"]
    expected = [(slot, site) for slot in range(6) for site in sites] + [(6, "head")]
    assert [(slot, site) for slot, site, _ in adapter.asked] == expected
    assert {width for _, _, width in adapter.asked} == {32}  # every site branches off a normalized stream


class Inputs:
    """Both hooks at once: keeps what each site of a slot branches off, and what each tap showed, in order."""

    def __init__(self) -> None:
        self.sites: list[tuple[str, Tensor]] = []
        self.taps: list[tuple[str, Tensor]] = []

    def delta(self, slot: int, site: Site, x: Tensor) -> None:
        self.sites.append((site, x))

    def see(self, tap: str, x: Tensor) -> None:
        self.taps.append((tap, x))


@torch.no_grad()
def test_attention_sites_branch_off_its_input_the_mlp_site_off_its_own_and_the_head_off_the_last_norm() -> None:
    model, kept = pico_model(RECIPE), Inputs()
    model(pico_batch(2, 23), plan=PLAN, adapters=kept, observer=kept)
    shown = [(tap, x) for tap, x in kept.taps if not tap.endswith("proj")]  # what attention, MLP and head are fed
    expected = [(site, x) for tap, x in shown for site in (("q", "k", "v", "o") if "attn" in tap else (tap[-4:],))]
    assert [site.removeprefix(".") for site, _ in expected] == [site for site, _ in kept.sites]
    assert all(torch.equal(found, x) for (_, found), (_, x) in zip(kept.sites, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("slot", [1, 3])  # both visits of layer 1
@pytest.mark.parametrize("site", ["q", "k", "v", "o", "mlp"])
def test_a_delta_acts_on_its_own_slot_and_site(slot: int, site: Site) -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, out: outputs.append(*out)) for block in model.blocks]
    plain = model(batch, plan=PLAN)
    adapted = model(batch, plan=PLAN, adapters=Deltas(0.7, at=(slot, site)))
    for handle in handles:
        handle.remove()
    same = [torch.equal(a, b) for a, b in zip(outputs[:6], outputs[6:], strict=True)]
    assert same[: slot + 1] == [True] * slot + [False]
    assert not torch.equal(plain, adapted)


@torch.no_grad()
def test_a_delta_of_a_branch_is_scaled_as_the_branch_is() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    outputs: list[Tensor] = []
    handle = model.blocks[-1].register_forward_hook(lambda _, __, out: outputs.append(*out))
    last = PLAN.visits[-1]
    for adapter in (None, Deltas(0.7, at=(last.slot, "mlp"))):
        model(batch, plan=PLAN, adapters=adapter)
    handle.remove()
    scale = model.get_parameter(f"blocks.{last.layer}.mlp_scale")
    torch.testing.assert_close(outputs[1] - outputs[0], (0.7 * scale).expand_as(outputs[0]))
    assert float(scale.std()) > 0.01


@torch.no_grad()
def test_a_delta_at_the_head_is_added_to_the_logits() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    plain = model.raw_logits(batch, plan=PLAN)
    adapted = model.raw_logits(batch, plan=PLAN, adapters=Deltas(0.5, at=(6, "head")))
    torch.testing.assert_close(adapted, plain + 0.5)


@torch.no_grad()
def test_every_matrixs_input_is_shown_at_its_width_once_a_visit() -> None:
    model, observer = pico_model(RECIPE), Shown()
    model(pico_batch(2, 23), plan=PLAN, observer=observer)
    visits = [visit.layer for visit in PLAN.visits]
    expected: dict[str, list[int]] = {}
    for name, weight in model.named_parameters():
        role = role_of(name, weight.ndim)
        if role.is_matrix or role is Role.EMBED:
            times = visits.count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
            expected[tap_of(name)] = times * [weight.shape[1]]
    assert observer.widths == expected


class Products(TorchFunctionMode):
    """Notes the input and the matrix of every linear map."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self.made.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_what_is_shown_is_what_the_matrix_multiplies() -> None:
    model, batch = pico_model(RECIPE), pico_batch(2, 23)
    seen: dict[str, Tensor] = {}

    class Keep:
        def see(self, tap: str, x: Tensor) -> None:
            seen[tap] = x

    products = Products()
    with products:
        model(batch, plan=PLAN, observer=Keep())
    weights = dict(model.named_parameters())
    roles = {name: role_of(name, weight.ndim) for name, weight in weights.items()}
    names = [name for name, role in roles.items() if role.is_matrix or role is Role.EMBED]
    assert len(names) == 4 * 6 + 2 + 1
    for name in names:
        block, _, part = name.rpartition(".proj.weight")[0].rpartition(".")
        gain = weights.get(f"{block}.{part}_scale")  # is multiplied into the matrix before
        acting = weights[name] if gain is None else gain[:, None] * weights[name]
        fed = [x for x, matrix in products.made if torch.equal(matrix, acting)]
        assert torch.equal(seen[tap_of(name)], fed[-1]), name  # of the last visit


@pytest.mark.parametrize(
    ("weight", "tap"),
    [
        ("blocks.3.attn.c_q.weight", "blocks.3.attn"),
        ("blocks.3.attn.c_k.weight", "blocks.3.attn"),
        ("blocks.3.attn.c_v.weight", "blocks.3.attn"),
        ("blocks.3.attn.proj.weight", "blocks.3.attn.proj"),
        ("blocks.3.mlp.fc.weight", "blocks.3.mlp"),
        ("blocks.3.mlp.proj.weight", "blocks.3.mlp.proj"),
        ("stem.bigram.proj.weight", "stem.bigram.proj"),
        ("value_embedding.proj.weight", "value_embedding.proj"),
        ("tok_emb.weight", "head"),
    ],
)
def test_the_tap_of_a_weight_is_where_its_input_is_shown(weight: str, tap: str) -> None:
    assert tap_of(weight) == tap
