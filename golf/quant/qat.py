"""Late quantization-aware training: the forward sees quantized matrices, the gradient passes straight through.

A function of the weights, applied from outside the model: with it off no trace of it is in any graph, with it on the
graph is another one. (The record stacks switched a class attribute that their compiled graph had folded to "off".)
"""

import torch
from torch import Tensor
from torch.func import functional_call

from golf.config import QuantConfig
from golf.data.documents import Batch
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.quant.pipeline import scheme_of
from golf.quant.primitives import dequantize, quantize
from golf.quant.sdclip import choose_scale
from golf.roles import role_of


def fake_quantize(weight: Tensor, name: str, config: QuantConfig) -> Tensor:
    """Return w + stopgrad(Q(w) - w), Q rounding to nearest at the plain SDClip scale: there is no Hessian yet."""
    scheme = scheme_of(name, weight, config)
    with torch.no_grad():
        scale = choose_scale(weight, clip_sigmas=scheme.clip_sigmas, levels=scheme.levels)
        rounded = dequantize(quantize(weight, scale, scheme.levels), scale).to(weight.dtype)
    return weight + (rounded - weight).detach()


def fake_quantized_forward(model: GPT, batch: Batch, *, plan: LayerPlan, config: QuantConfig) -> Tensor:
    """Return what `model(batch, plan=plan)` returns, (B, T), with every matrix fake-quantized."""
    matrices = {
        name: fake_quantize(parameter, name, config)
        for name, parameter in model.named_parameters()
        if role_of(name, parameter.ndim).is_matrix
    }
    losses: Tensor = functional_call(model, matrices, (batch,), {"plan": plan})
    return losses
