"""A step whose communication overlaps its arithmetic against the same step in a straight line, bit for bit."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf.distributed import World, _all_gather, _reduce_scatter
from golf.model.gpt import GPT
from golf.optim.clip import Clip, sum_of_squares
from golf.optim.forms import first_squares, level_rows, precondition, track_mousse_, track_normuon_
from golf.optim.groups import split_parameters
from golf.optim.optimizer import Optimizer
from golf.optim.polar import coefficients, normalize_rows, orthogonalize
from golf.training_config import OptimConfig
from tests.pico import pico_model, pico_recipe
from tests.ranks import run_ranks

LR, MOMENTUM, STEPS = 0.7, 0.9, 3


class Case(NamedTuple):
    overrides: tuple[str, ...] = ()
    clip: Literal["global", "local"] = "global"
    dtype: torch.dtype = torch.float32


CASES = {
    "plain": Case(),
    "bfloat16": Case(dtype=torch.bfloat16),
    "local clip": Case(clip="local"),
    "normuon": Case(("optim.muon=normuon",)),
    "mousse": Case(("optim.muon=mousse", "optim.row_normalize=false", "optim.nesterov=false")),
    "lyapunov": Case(("optim.lyapunov_window=2",)),
}


class StraightLine:
    """One thing after the other, with new tensors in every step, and nothing of golf's communication."""

    def __init__(self, model: GPT, config: OptimConfig, case: Case, world: World) -> None:
        self.config, self.case, self.world = config, case, world
        groups = split_parameters(model)
        self.matrices = [*groups.matrix.values()]
        self.named = [*groups.embed.values(), *groups.scalar.values()]
        stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for _, parameter in sorted(groups.matrix.items()):
            stacks[parameter.shape].append(parameter)
        self.stacks = list(stacks.values())
        shapes = [(math.ceil(len(stack) / world.size), *stack[0].shape) for stack in self.stacks]
        self.momenta = [torch.zeros(shape, dtype=case.dtype) for shape in shapes]
        self.squares = [first_squares(config.muon, shape, torch.device("cpu")) for shape in shapes]
        settings = [
            {"params": [*groups.embed.values()], "lr": config.embed_lr, "weight_decay": config.embed_weight_decay},
            {"params": [*groups.scalar.values()], "lr": config.scalar_lr, "weight_decay": config.scalar_weight_decay},
        ]
        betas = (config.beta1, config.beta2)
        self.adam = torch.optim.AdamW(settings, betas=betas, eps=config.adam_eps, fused=True)
        for group in self.adam.param_groups:
            group["lr"] *= LR
        self.clip = Clip(config.grad_clip_norm, window=config.lyapunov_window, device=torch.device("cpu"))

    def step(self) -> Tensor:
        local = self.case.clip == "local"
        if local:
            own = [p.grad for p in [*self.matrices, *self.named] if p.grad is not None]
            norm = sum_of_squares(own).sqrt()
            self.clip.shorten_(own, norm)
            self.mean_(norm)
        slices = [self.reduced(stack) for stack in self.stacks]
        self.average_others()
        if not local:
            others = [p.grad for p in self.named if p.grad is not None]
            squares = sum_of_squares(slices)
            if self.world.size > 1:
                dist.all_reduce(squares)
            norm = (squares + sum_of_squares(others)).sqrt()
            self.clip.shorten_([*slices, *others], norm)
        for stack, gradient, momentum, squares_of_stack in zip(
            self.stacks, slices, self.momenta, self.squares, strict=True
        ):
            momentum.mul_(MOMENTUM).add_(gradient)
            update = gradient.add(momentum, alpha=MOMENTUM) if self.config.nesterov else momentum
            self.apply(stack, self.gathered(self.direction(update, squares_of_stack)))
        self.adam.step()
        for parameter in [*self.matrices, *self.named]:
            parameter.grad = None
        return norm

    def mean_(self, tensor: Tensor) -> None:
        if self.world.size > 1:
            dist.all_reduce(tensor)
        tensor.div_(self.world.size)

    def reduced(self, stack: list[nn.Parameter]) -> Tensor:
        matrices = [torch.zeros_like(p) if p.grad is None else p.grad for p in stack]
        matrices += (-len(stack) % self.world.size) * [torch.zeros_like(stack[0])]
        whole = torch.stack(matrices).to(self.case.dtype)
        if self.world.size == 1:
            return whole
        shard = whole.new_empty(len(whole) // self.world.size, *whole.shape[1:])
        _reduce_scatter(shard, whole)
        return shard.div_(self.world.size)

    def average_others(self) -> None:
        packs: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
        for parameter in self.named:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            packs[parameter.dtype].append(parameter)
        for pack in packs.values():
            flat = torch.cat([p.grad.flatten() for p in pack if p.grad is not None])
            self.mean_(flat)
            for parameter, mean in zip(pack, flat.split([p.numel() for p in pack]), strict=True):
                parameter.grad = mean.view_as(parameter).clone()

    def direction(self, update: Tensor, squares: dict[str, Tensor]) -> Tensor:
        update = normalize_rows(update) if self.config.row_normalize else update
        if self.config.muon == "mousse":
            track_mousse_(squares, update)
            update = precondition(update, squares)
        found = orthogonalize(update, coefficients(self.config.newton_schulz, self.config.newton_schulz_steps))
        if self.config.muon == "normuon":
            track_normuon_(squares, found)
            found = level_rows(found, squares)
        return found

    def gathered(self, shard: Tensor) -> Tensor:
        if self.world.size == 1:
            return shard
        whole = shard.new_empty(len(shard) * self.world.size, *shard.shape[1:])
        _all_gather(whole, shard.contiguous())
        return whole

    def apply(self, stack: list[nn.Parameter], update: Tensor) -> None:
        lr = self.config.matrix_lr * LR
        rows, columns = stack[0].shape
        weights = [parameter.data for parameter in stack]
        torch._foreach_mul_(weights, 1.0 - lr * self.config.matrix_weight_decay)
        scale = math.sqrt(max(1.0, rows / columns))
        torch._foreach_add_(weights, list(update[: len(stack)].to(weights[0].dtype)), alpha=-lr * scale)


def give_gradients(model: GPT, step: int, rank: int) -> None:
    """Long and different ones on every rank; some parameters, others in each step, get none on any."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    for number, parameter in enumerate(model.parameters()):
        gradient = torch.randn(parameter.shape, generator=generator) * 0.1 * 1.5**step
        parameter.grad = None if (number + step) % 11 == 0 else gradient.to(parameter.dtype)


def ends(world: World, name: str, kind: str) -> dict[str, Any]:
    """Weights and norms after some steps, as bytes."""
    case = CASES[name]
    config = pico_recipe("optim.embed_weight_decay=0.085", "optim.scalar_weight_decay=0.02", *case.overrides).optim
    model = pico_model()
    model.tok_emb.to(torch.bfloat16)  # a second dtype among the replicated ones
    straight = StraightLine(model, config, case, world)
    overlapping = Optimizer(model, config, dtype=case.dtype, world=world, clip=case.clip)
    norms = []
    for step in range(STEPS):
        give_gradients(model, step, world.rank)
        with torch.no_grad():
            norm = straight.step() if kind == "straight" else overlapping.step(lr_multiplier=LR, momentum=MOMENTUM)
        norms.append(norm.numpy().tobytes())
    weights = {key: parameter.detach().float().numpy().tobytes() for key, parameter in model.named_parameters()}
    return weights | {"norms": norms}


def differences(world: World) -> list[str]:
    """What comes out otherwise, over all cases."""
    found, first = [], pico_model().get_parameter("blocks.0.attn.c_q.weight").detach().numpy().tobytes()
    for name in CASES:
        straight, overlapping = (ends(world, name, kind) for kind in ("straight", "overlapping"))
        assert straight["blocks.0.attn.c_q.weight"] != first
        found += [f"{name}: {key}" for key in straight if straight[key] != overlapping[key]]
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_overlap_changes_no_bit(size: int, tmp_path: Path) -> None:
    assert run_ranks(size, tmp_path, differences) == size * [[]]
