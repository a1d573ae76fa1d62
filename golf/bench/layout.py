"""Parameters by layer, as golf has them, against one parameter for all matrices of a shape ("banks").

What differs is timed alone: the casts of the weights of every visit, the addition of their gradients, and Muon's step.
No product with activations is taken, and the gradients that would come from them are random.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from golf.bench.findings import Findings
from golf.bench.measurement import Measurement
from golf.bench.timing import time_calls
from golf.config import Recipe
from golf.data.documents import Batch
from golf.distributed import World
from golf.model.init import build_model
from golf.model.plan import plan_layers
from golf.optim.groups import split_parameters
from golf.optim.muon import Muon
from golf.optim.polar import Coefficients, coefficients, orthogonalize
from golf.recording import Recorder

Weight = Callable[[str], Tensor]  # from a matrix's name


class _Layout(NamedTuple):
    parameters: Sequence[nn.Parameter]
    weight: Weight
    step: Callable[[], None]  # takes the parameters' gradients


def time_layouts(recipe: Recipe, world: World, *, seconds: float) -> Findings:
    """Time the weights' use in a forward and backward with the loop on, and one optimizer step, in both layouts.

    On a GPU both are replayed as CUDA graphs, as in training. A process alone, so nothing is sent between ranks.
    """
    model = build_model(recipe.model, seed=0, dtype=torch.float32, device=world.device)
    matrices = {name: parameter.detach() for name, parameter in split_parameters(model).matrix.items()}
    plan = plan_layers(recipe.model, looping=recipe.model.loop is not None)
    used = [name for visit in plan.visits for name in matrices if name.startswith(f"blocks.{visit.layer}.")]
    dtype = getattr(torch, recipe.run.dtype)
    layouts = {"layers": _by_layer(matrices, recipe, dtype, world), "banks": _by_shape(matrices, recipe, dtype)}
    calls: dict[str, Sequence[Callable[[], object]]] = {}
    for name, layout in layouts.items():
        calls[f"layout/{name}/weights"] = [_recorded(_use(layout, used, dtype), world)]
        calls[f"layout/{name}/optimizer"] = [_recorded(layout.step, world)]
    times = time_calls(calls, world.device, seconds=seconds)
    return Findings([Measurement.of(name, samples) for name, samples in times.items()])


def _use(layout: _Layout, used: Iterable[str], dtype: torch.dtype) -> Callable[[], None]:
    """Return a call that casts the matrices `used` in this order and adds their gradients up in `.grad`."""
    names, incoming = list(used), dict[torch.Size, Tensor]()
    for parameter in layout.parameters:
        parameter.grad = torch.zeros_like(parameter)
    for name in names:
        shape = layout.weight(name).shape
        incoming[shape] = torch.randn(shape, device=layout.parameters[0].device).to(dtype)

    def use() -> None:
        torch._foreach_zero_([parameter.grad for parameter in layout.parameters if parameter.grad is not None])
        weights = [layout.weight(name).to(dtype) for name in names]
        torch.autograd.backward(weights, [incoming[weight.shape] for weight in weights])

    return use


def _by_layer(matrices: Mapping[str, Tensor], recipe: Recipe, dtype: torch.dtype, world: World) -> _Layout:
    parameters = {name: nn.Parameter(matrix.clone()) for name, matrix in matrices.items()}
    optim = recipe.optim
    muon = Muon(
        parameters,
        form="plain",
        nesterov=True,
        iterations=_iterations(recipe),
        row_normalize=False,
        weight_decay=optim.matrix_weight_decay,
        dtype=dtype,
        world=world,
    )

    def step() -> None:
        muon.step(muon.reduced_gradients(), lr=optim.matrix_lr, momentum=optim.momentum)

    return _Layout(list(parameters.values()), parameters.__getitem__, torch.no_grad()(step))


def _by_shape(matrices: Mapping[str, Tensor], recipe: Recipe, dtype: torch.dtype) -> _Layout:
    names: dict[torch.Size, list[str]] = defaultdict(list)
    for name, matrix in sorted(matrices.items()):
        names[matrix.shape].append(name)
    banks = {shape: nn.Parameter(torch.stack([matrices[name] for name in own])) for shape, own in names.items()}
    place = {name: (banks[shape], index) for shape, own in names.items() for index, name in enumerate(own)}
    momenta = [torch.zeros_like(bank, dtype=dtype) for bank in banks.values()]
    optim, iterations = recipe.optim, _iterations(recipe)

    def weight(name: str) -> Tensor:
        bank, index = place[name]
        return bank[index]

    def step() -> None:
        for bank, momentum in zip(banks.values(), momenta, strict=True):
            assert bank.grad is not None
            gradient = bank.grad.to(dtype)
            momentum.mul_(optim.momentum).add_(gradient)
            update = orthogonalize(gradient.add(momentum, alpha=optim.momentum), iterations)
            scale = max(1.0, bank.shape[1] / bank.shape[2]) ** 0.5
            bank.mul_(1.0 - optim.matrix_lr * optim.matrix_weight_decay)
            bank.add_(update.to(bank.dtype), alpha=-optim.matrix_lr * scale)

    return _Layout(list(banks.values()), weight, torch.no_grad()(step))


def _iterations(recipe: Recipe) -> Coefficients:
    return coefficients(recipe.optim.newton_schulz, recipe.optim.newton_schulz_steps)


def _recorded(call: Callable[[], None], world: World) -> Callable[[], object]:
    """Return `call`, on a GPU as a replay of it."""
    nothing = torch.zeros((), device=world.device)
    batch = Batch(nothing, nothing, nothing, 0)

    def function(batch: Batch, key: None) -> Tensor:
        call()
        return nothing

    recorder: Recorder[None] = Recorder(function, world.device, records=world.device.type == "cuda")
    return lambda: recorder(batch, None)
