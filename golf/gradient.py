"""One training step's gradient, as the loop takes it and as priming does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from golf.config import Recipe
from golf.data.documents import Batch, boundary_lengths, build_cu_seqlens
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.quant.qat import fake_quantized_forward
from golf.recording import Recorder, can_record


class _Graph(NamedTuple):
    """What a recording depends on besides the shape of its batch."""

    plan: LayerPlan
    parts: int  # micro-batches in a step
    late_qat: bool


class StepGradient:
    """The gradients of a model's parameters, added up over the micro-batches of a step.

    Recorded ones are added to buffers that stay, so what drops a parameter's `.grad` frees nothing.
    """

    def __init__(self, model: GPT, recipe: Recipe) -> None:
        self.model, self.quant = model, recipe.quant
        self.parameters = list(model.parameters())
        device = self.parameters[0].device
        records = can_record(recipe.run, model.kernels, device)
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters] if records else []
        self.recorder = Recorder(self._add, device, records=records)
        self.device = device

    def of(self, batches: Sequence[Batch], plan: LayerPlan, *, late_qat: bool) -> Tensor:
        """Make `.grad` the gradient of the mean loss over `batches`; return that loss ()."""
        total = torch.zeros((), device=self.device)
        self._begin()
        for batch in batches:
            total += self.recorder(batch, _Graph(plan, len(batches), late_qat))
        return total

    def record(self, batch: Batch, plan: LayerPlan, *, count: int, late_qat: bool) -> None:
        """Record what `count` micro-batches of a step need that are as large as `batch`, whatever documents they hold.

        What the gradients are afterwards means nothing.
        """
        self._begin()
        total = batch.tokens.numel()
        pieces = range(0, total, batch.max_seqlen)
        for length in boundary_lengths(total):
            if length > len(pieces):
                cu_seqlens, _ = build_cu_seqlens(pieces, total, max_doc_len=0, bucket=length)
                self.recorder(replace(batch, cu_seqlens=cu_seqlens), _Graph(plan, count, late_qat))

    def _begin(self) -> None:
        """Empty the buffers and make them the parameters' `.grad`, which the optimizer drops after each step."""
        if self.buffers:
            for (buffers,) in _by_dtype(self.buffers):
                torch._foreach_zero_(buffers)
            for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
                parameter.grad = buffer

    def _add(self, batch: Batch, graph: _Graph) -> Tensor:
        """Add the gradient of a micro-batch; return its share of the mean loss ()."""
        if graph.late_qat:
            losses = fake_quantized_forward(self.model, batch, plan=graph.plan, config=self.quant)
        else:
            losses = self.model(batch, plan=graph.plan, auxiliary=True)
        loss = losses.mean() / graph.parts
        wanted = [parameter for parameter in self.parameters if parameter.requires_grad]
        _add_to_grad(wanted, torch.autograd.grad(loss, wanted, allow_unused=True))
        return loss.detach()


def _add_to_grad(parameters: Sequence[Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to the parameters' `.grad`; autograd would start a kernel for every parameter."""
    totals: list[Tensor] = []
    more: list[Tensor] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:  # what autograd gives may be another parameter's too, or one number for all
            parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
        else:
            totals.append(parameter.grad)
            more.append(gradient)
    for pair in _by_dtype(totals, more):
        torch._foreach_add_(*pair)


def _by_dtype(*lists: Sequence[Tensor]) -> list[tuple[list[Tensor], ...]]:
    """Sort lists of equal length by the dtype of the first one's tensors: of two dtypes at once there is no kernel."""
    sorted_lists: dict[torch.dtype, tuple[list[Tensor], ...]] = {}
    for tensors in zip(*lists, strict=True):
        found = sorted_lists.setdefault(tensors[0].dtype, tuple([] for _ in lists))
        for one, tensor in zip(found, tensors, strict=True):
            one.append(tensor)
    return list(sorted_lists.values())
