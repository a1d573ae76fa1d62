"""One training step's gradient, as the loop takes it and as priming does."""

import torch
from torch import Tensor

from golf.model.plan import LayerPlan
from golf.quant.qat import fake_quantized_forward
from golf.train_state import TrainState


def forward_backward(state: TrainState, plan: LayerPlan, *, late_qat: bool) -> Tensor:
    """Accumulate the gradient of the next step's mean loss; return this rank's mean loss ()."""
    batches = state.loader.next_step()
    device = next(state.model.parameters()).device
    total = torch.zeros((), device=device)
    for batch in batches:
        batch = batch.to(device, non_blocking=True)
        if late_qat:
            losses = fake_quantized_forward(state.model, batch, plan=plan, config=state.recipe.quant)
        else:
            losses = state.model(batch, plan=plan, auxiliary=True)
        loss = losses.mean() / len(batches)
        loss.backward()
        total += loss.detach()
    return total
