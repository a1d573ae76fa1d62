"""The whole optimizer step on the pico model: AdamW parity, the clips, and any number of ranks."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.distributed import World
from golf.errors import UsageError
from golf.model.gpt import GPT
from golf.optim.groups import split_parameters
from golf.optim.optimizer import Optimizer
from golf.training_config import OptimConfig
from tests.pico import pico_model, pico_recipe
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
CLIPS: tuple[Literal["global", "local"], ...] = ("global", "local")
DECAYS = ("optim.embed_weight_decay=0.085", "optim.scalar_weight_decay=0.02")
CONFIG = pico_recipe(*DECAYS).optim
UNTIED = pico_recipe(*DECAYS, "model.tie_embeddings=false", "optim.head_lr=0.008")
OPTIONS: dict[str, tuple[str, ...]] = {
    "normuon": ("optim.muon=normuon",),
    "mousse": ("optim.muon=mousse", "optim.row_normalize=false", "optim.grad_clip_norm=0.0"),
    "no_nesterov": ("optim.nesterov=false",),
    "lyapunov": ("optim.lyapunov_window=2",),
}


def scale_of(config: OptimConfig) -> float:
    """A size of gradients that matters: Mousse's running mean squares begin at one and hide smaller ones for long."""
    return 1.0 if config.muon == "mousse" else 0.01


def config_with(option: str) -> OptimConfig:
    return pico_recipe(*DECAYS, *OPTIONS[option]).optim


def optimizer_of(
    model: GPT,
    config: OptimConfig = CONFIG,
    world: World = ALONE,
    clip: Literal["global", "local"] = "global",
) -> Optimizer:
    return Optimizer(model, config, dtype=torch.float32, world=world, clip=clip)


def random_gradients(model: GPT, seed: int, scale: float = 0.01) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def take_step(model: GPT, optimizer: Optimizer, step: int, *, lr_multiplier: float = 0.7) -> Tensor:
    """One step from the mean over this rank's share of four gradients, which grow by half from step to step."""
    world = optimizer.world
    scale = scale_of(optimizer.config) * 1.5**step
    own = [random_gradients(model, 4 * step + part, scale) for part in range(world.rank, 4, world.size)]
    for name, parameter in model.named_parameters():
        parameter.grad = torch.stack([gradients[name] for gradients in own]).mean(0)
    return optimizer.step(lr_multiplier=lr_multiplier, momentum=0.9)


def trained(world: World, config: OptimConfig = CONFIG) -> dict[str, dict[str, Any]]:
    """Weights, state and norms after three steps, as arrays."""
    model = pico_model()
    optimizer = optimizer_of(model, config, world)
    norms = [float(take_step(model, optimizer, step)) for step in range(3)]
    return {
        "weights": {name: p.detach().numpy().copy() for name, p in model.named_parameters()},
        "state": {name: tensor.numpy().copy() for name, tensor in optimizer.state().items()},
        "norms": {"norms": np.array(norms)},
    }


def trained_with_every_option(world: World) -> list[dict[str, dict[str, Any]]]:
    return [trained(world), *(trained(world, config_with(option)) for option in OPTIONS)]


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_takes_the_same_steps(size: int, tmp_path: Path) -> None:
    all_expected = trained_with_every_option(ALONE)
    for all_found in run_ranks(size, tmp_path, trained_with_every_option):
        for option, found, expected in zip(("none", *OPTIONS), all_found, all_expected, strict=True):
            for part, arrays in expected.items():
                assert found[part].keys() == arrays.keys()
                for name, values in arrays.items():
                    message = f"{option}: {name}"
                    np.testing.assert_allclose(found[part][name], values, rtol=1e-6, atol=1e-6, err_msg=message)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_weights(option: str) -> None:
    plain = config_with(option)
    without = dataclasses.replace(plain, muon="plain", nesterov=True, lyapunov_window=0)
    found, expected = trained(ALONE, plain)["weights"], trained(ALONE, without)["weights"]
    assert max(np.abs(found[name] - expected[name]).max() for name in found) > 1e-3


def test_all_ranks_have_the_same_bits_after_a_step(tmp_path: Path) -> None:
    first, second = run_ranks(2, tmp_path, trained)
    for name, values in first["weights"].items():
        assert np.array_equal(values, second["weights"][name]), name


@pytest.mark.parametrize(
    ("group", "lr", "decay"), [("embed", 0.03, 0.085), ("scalar", 0.02, 0.02), ("head", 0.008, 0.085)]
)
def test_all_but_matrices_are_updated_by_torchs_adamw(group: str, lr: float, decay: float) -> None:
    recipe = UNTIED if group == "head" else pico_recipe(*DECAYS)
    ours, theirs = pico_model(recipe), pico_model(recipe)
    optimizer = optimizer_of(ours, dataclasses.replace(recipe.optim, grad_clip_norm=0.0, adam_eps=1e-3))
    named = getattr(split_parameters(theirs), group)
    reference = torch.optim.AdamW(
        named.values(), lr=lr * 0.7, betas=(0.9, 0.95), eps=1e-3, weight_decay=decay, foreach=False
    )
    for step in range(3):
        take_step(ours, optimizer, step)
        gradients = [random_gradients(theirs, 4 * step + part, 0.01 * 1.5**step) for part in range(4)]
        for name, parameter in named.items():
            parameter.grad = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        reference.step()
    found = dict(ours.named_parameters())
    for name, expected in named.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_a_head_without_a_rate_is_refused() -> None:
    with pytest.raises(UsageError, match=r"set optim\.head_lr"):
        optimizer_of(pico_model(UNTIED), CONFIG)


def test_a_rate_without_a_head_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optim\.head_lr acts on nothing"):
        optimizer_of(pico_model(), UNTIED.optim)


def test_a_head_is_saved_and_continued() -> None:
    model = pico_model(UNTIED)
    optimizer = optimizer_of(model, UNTIED.optim)
    take_step(model, optimizer, 0)
    saved = optimizer.state()
    fresh = optimizer_of(pico_model(UNTIED), UNTIED.optim)
    fresh.load_state(saved)
    assert "adam/head.weight/exp_avg_sq" in saved
    assert all(torch.equal(tensor, saved[name]) for name, tensor in fresh.state().items())


def test_the_returned_norm_is_that_of_the_averaged_gradient() -> None:
    model = pico_model()
    mean = [
        sum(parts) / 4 for parts in zip(*(random_gradients(model, part).values() for part in range(4)), strict=True)
    ]
    expected = float(torch.cat([torch.as_tensor(gradient).flatten() for gradient in mean]).double().norm())
    assert float(take_step(model, optimizer_of(model), 0)) == pytest.approx(expected, rel=1e-5)


def moments_after_one_step(scale: float, limit: float) -> dict[str, Tensor]:
    """First moments of AdamW and momentum of Muon after a gradient of size `scale`."""
    model = pico_model()
    optimizer = optimizer_of(model, dataclasses.replace(CONFIG, grad_clip_norm=limit))
    for name, gradient in random_gradients(model, 0, scale).items():
        dict(model.named_parameters())[name].grad = gradient
    optimizer.step(lr_multiplier=1.0, momentum=0.9)
    return {name: tensor for name, tensor in optimizer.state().items() if name.endswith(("exp_avg", "momentum"))}


def test_a_long_gradient_is_shortened_to_the_limit() -> None:
    moments = moments_after_one_step(1.0, 0.3)
    squares = sum((t / 0.1 if n.endswith("exp_avg") else t).double().square().sum() for n, t in moments.items())
    assert float(torch.as_tensor(squares)) ** 0.5 == pytest.approx(0.3, rel=1e-4)


def test_all_gradients_are_shortened_by_one_factor() -> None:
    long, short = moments_after_one_step(1.0, 0.3), moments_after_one_step(1.0, 0.15)
    for name, tensor in long.items():
        torch.testing.assert_close(short[name], tensor / 2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("limit", [0.0, 1e6])
def test_a_short_gradient_or_no_limit_changes_nothing(limit: float) -> None:
    moments = moments_after_one_step(1.0, limit)
    gradients = random_gradients(pico_model(), 0, 1.0)
    for name in ("blocks.0.attn.c_q.weight", "blocks.3.mlp.proj.weight"):
        assert torch.equal(moments[f"muon/{name}/momentum"], gradients[name])


def opposed(world: World) -> tuple[float, dict[str, Any]]:
    """Two ranks whose long gradients cancel but for a short rest, which is below the limit."""
    model = pico_model()
    rest = random_gradients(model, 0, 1e-3)
    big = random_gradients(model, 1, 1.0)
    for name, parameter in model.named_parameters():
        parameter.grad = rest[name] + (big[name] if world.rank == 0 else -big[name])
    optimizer = optimizer_of(model, world=world)
    norm = float(optimizer.step(lr_multiplier=1.0, momentum=0.9))
    return norm, {name: tensor.numpy() for name, tensor in optimizer.state().items() if "momentum" in name}


def test_the_clip_acts_on_the_averaged_gradient(tmp_path: Path) -> None:
    rest = random_gradients(pico_model(), 0, 1e-3)
    length = float(torch.cat([gradient.flatten() for gradient in rest.values()]).norm())
    assert length < 0.3
    for norm, momenta in run_ranks(2, tmp_path, opposed):
        assert norm == pytest.approx(length, rel=1e-3)  # the cancelled part leaves rounding noise
        for name, momentum in momenta.items():
            expected = rest[name.removeprefix("muon/").removesuffix("/momentum")].numpy()
            np.testing.assert_allclose(momentum, expected, atol=1e-6)


def opposed_locally(world: World) -> tuple[float, dict[str, Any]]:
    """The same on ranks that clip their own: rank 1's gradient is three times as long."""
    model = pico_model()
    for name, gradient in random_gradients(model, world.rank, 1.0 + 2.0 * world.rank).items():
        model.get_parameter(name).grad = gradient
    optimizer = optimizer_of(model, world=world, clip="local")
    norm = float(optimizer.step(lr_multiplier=1.0, momentum=0.9))
    return norm, {name: tensor.numpy() for name, tensor in optimizer.state().items()}


def test_the_local_clip_shortens_each_ranks_own_gradient_before_averaging(tmp_path: Path) -> None:
    gradients = [random_gradients(pico_model(), rank, 1.0 + 2.0 * rank) for rank in (0, 1)]
    norms = [float(torch.cat([g.flatten() for g in own.values()]).double().norm()) for own in gradients]
    for norm, state in run_ranks(2, tmp_path, opposed_locally):
        assert norm == pytest.approx(sum(norms) / 2, rel=1e-5)
        for name in gradients[0]:
            parts = [own[name] * 0.3 / (length + 1e-6) for own, length in zip(gradients, norms, strict=True)]
            expected = (parts[0] + parts[1]) / 2
            matrix = state.get(f"muon/{name}/momentum")
            found = state[f"adam/{name}/exp_avg"] / 0.1 if matrix is None else matrix
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_alone_the_local_clip_is_the_global_one(scale: float) -> None:
    ends = []
    for clip in CLIPS:
        model = pico_model()
        for name, gradient in random_gradients(model, 0, scale).items():
            model.get_parameter(name).grad = gradient
        optimizer = optimizer_of(model, clip=clip)
        norm = optimizer.step(lr_multiplier=1.0, momentum=0.9)
        ends.append((norm, *optimizer.state().values()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-12)


def test_a_lyapunov_clip_on_ranks_that_clip_locally_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optim\.lyapunov_window needs the global clip"):
        optimizer_of(pico_model(), config_with("lyapunov"), clip="local")


def test_a_growing_norm_tightens_the_clip_of_every_gradient() -> None:
    model = pico_model()
    optimizer = optimizer_of(model, dataclasses.replace(CONFIG, lyapunov_window=3))
    for step in range(3):
        gradients = random_gradients(model, 0, 1.2**step)
        for name, gradient in gradients.items():
            model.get_parameter(name).grad = gradient.clone()
        norm = float(optimizer.step(lr_multiplier=1.0, momentum=0.0))
    for name, tensor in optimizer.state().items():
        if name.endswith("/momentum"):
            expected = gradients[name[5:-9]] * 0.3 * 1.2**-5 / norm
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.muon=mousse",), "would undo the row scales"),  # the pico recipe normalizes rows
        (("optim.lyapunov_window=20", "optim.grad_clip_norm=0.0"), "does nothing without grad_clip_norm"),
        (("optim.lyapunov_window=1",), "must be 0 or at least 2"),
        (("optim.lyapunov_window=-2",), "must be 0 or at least 2"),
        (("optim.grad_clip_norm=-0.3",), "grad_clip_norm must be at least 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pico_recipe(*overrides)


def change_at(lr_multiplier: float) -> dict[str, Tensor]:
    """By how much a first step moves each parameter."""
    model = pico_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    take_step(model, optimizer_of(model), 0, lr_multiplier=lr_multiplier)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_the_multiplier_scales_the_step_and_the_decay_of_every_group() -> None:
    whole, half = change_at(1.0), change_at(0.5)
    for name, change in whole.items():
        torch.testing.assert_close(half[name], change / 2, rtol=1e-4, atol=1e-6)
        assert float(change.abs().max()) > 1e-3


def test_gradients_are_dropped_after_a_step() -> None:
    model = pico_model()
    take_step(model, optimizer_of(model), 0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("clip", CLIPS)
def test_a_parameter_without_gradient_is_only_decayed(clip: Literal["global", "local"]) -> None:
    model = pico_model()
    before = model.get_parameter("blocks.0.attn_scale").detach().clone()
    optimizer = optimizer_of(model, clip=clip)
    for name, parameter in model.named_parameters():
        parameter.grad = None if name == "blocks.0.attn_scale" else torch.ones_like(parameter)
    optimizer.step(lr_multiplier=0.5, momentum=0.9)
    torch.testing.assert_close(model.get_parameter("blocks.0.attn_scale").detach(), before * (1 - 0.5 * 0.02 * 0.02))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_saved_state_continues_bit_for_bit(steps: int, option: str) -> None:
    model, config = pico_model(), config_with(option)
    optimizer = optimizer_of(model, config)
    for step in range(steps):
        take_step(model, optimizer, step)
    saved, weights = optimizer.state(), {name: t.clone() for name, t in model.state_dict().items()}
    take_step(model, optimizer, steps)
    other = pico_model()
    other.load_state_dict(weights)
    fresh = optimizer_of(other, config)
    fresh.load_state(saved)
    take_step(other, fresh, steps)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(tensor, fresh.state()[name]) for name, tensor in optimizer.state().items())


def test_a_state_saved_before_the_first_step_undoes_all_steps() -> None:
    model = pico_model()
    optimizer = optimizer_of(model, config_with("lyapunov"))
    saved = optimizer.state()
    take_step(model, optimizer, 0)
    optimizer.load_state(saved)
    found = optimizer.state()
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


def test_a_saved_state_does_not_change_with_later_steps() -> None:
    model = pico_model()
    optimizer = optimizer_of(model)
    take_step(model, optimizer, 0)
    saved = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    take_step(model, optimizer, 1)
    assert [name for name in saved if not torch.equal(saved[name], kept[name])] == []


def test_a_loaded_state_is_a_copy() -> None:
    model = pico_model()
    optimizer = optimizer_of(model)
    take_step(model, optimizer, 0)
    saved = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    optimizer.load_state(saved)
    take_step(model, optimizer, 1)
    assert [name for name in saved if not torch.equal(saved[name], kept[name])] == []


def test_bfloat16_tables_have_bfloat16_moments_that_survive_saving() -> None:
    model = pico_model()
    model.tok_emb.to(torch.bfloat16)
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step(lr_multiplier=1.0, momentum=0.9)
    saved = optimizer.state()
    assert saved["adam/tok_emb.weight/exp_avg"].dtype == torch.bfloat16
    fresh = optimizer_of(model)
    fresh.load_state(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in fresh.state().items())


def test_options_that_are_off_leave_no_trace_in_the_state() -> None:
    model = pico_model()
    optimizer = optimizer_of(model)
    take_step(model, optimizer, 0)
    kinds = {name.split("/")[0] + "/" + name.split("/")[-1] for name in optimizer.state()}
    assert kinds == {"muon/momentum", "adam/step", "adam/exp_avg", "adam/exp_avg_sq"}
