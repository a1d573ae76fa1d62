"""One training step's gradient, as the loop takes it and as priming does."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from golf.config import Recipe
from golf.data.documents import Batch, boundary_lengths, build_cu_seqlens
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.quant.qat import fake_quantized_forward
from golf.recording import Recorder, can_record


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
            if late_qat:  # another graph, which is not recorded
                total += self._add_quantized(batch.to(self.device, non_blocking=True), plan, len(batches))
            else:
                total += self.recorder(batch, (plan, len(batches)))
        return total

    def record(self, batch: Batch, plan: LayerPlan, *, count: int) -> None:
        """Record what `count` micro-batches of a step need that are as large as `batch`, whatever documents they hold.

        What the gradients are afterwards means nothing.
        """
        if not self.recorder.records:
            return
        self._begin()
        total = batch.tokens.numel()
        pieces = range(0, total, batch.max_seqlen)
        for length in boundary_lengths(total):
            if length > len(pieces):
                cu_seqlens, _ = build_cu_seqlens(pieces, total, max_doc_len=0, bucket=length)
                self.recorder(replace(batch, cu_seqlens=cu_seqlens), (plan, count))

    def _begin(self) -> None:
        """Empty the buffers and make them the parameters' `.grad`, which the optimizer drops after each step."""
        if self.buffers:
            torch._foreach_zero_(self.buffers)
            for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
                parameter.grad = buffer

    def _add(self, batch: Batch, key: tuple[LayerPlan, int]) -> Tensor:
        plan, count = key
        return _descend(self.model(batch, plan=plan, auxiliary=True), count)

    def _add_quantized(self, batch: Batch, plan: LayerPlan, count: int) -> Tensor:
        return _descend(fake_quantized_forward(self.model, batch, plan=plan, config=self.quant), count)


def _descend(losses: Tensor, count: int) -> Tensor:
    """Add the gradient of one of `count` micro-batches; return its share of the mean loss ()."""
    loss = losses.mean() / count
    loss.backward()
    return loss.detach()
