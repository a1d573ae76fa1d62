"""Late quantization-aware training: the forward sees quantized matrices, the gradient passes straight through.

A function of the weights, applied from outside the model: with it off no trace of it is in any graph, with it on the
graph is another one. (The record stacks switched a class attribute that their compiled graph had folded to "off".)
"""

import torch
from torch import Tensor
from torch.func import functional_call

from golf.data.documents import Batch
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.quant.nearest import row_max_scale
from golf.quant.pipeline import scheme_of
from golf.quant.primitives import dequantize, round_to_codes
from golf.quant.rotation import hadamard
from golf.quant.scheme import TensorScheme
from golf.quant.sdclip import plain_scale
from golf.quant_config import QuantConfig
from golf.roles import role_of


def fake_quantize(weight: Tensor, name: str, config: QuantConfig) -> Tensor:
    """Return w + stopgrad(Q(w) - w), Q being the recipe's quantizer as far as one step can do it.

    GPTQ: to nearest at the plain SDClip scale, for there is no Hessian yet. The methods without Hessian: to
    nearest over the row's largest magnitude, with a float32 scale, as the records did it for all of them; no code can
    lie below -R then. A matrix that will stay float16 is returned as it is.

    Nothing is checked, for that would wait for the GPU at every matrix of every micro-batch: a NaN or an infinity gives
    NaN, which the training loop finds in the loss.
    """
    scheme = scheme_of(name, weight, config)
    if scheme.kind == "float16":
        return weight
    with torch.no_grad():
        rows = hadamard(weight) if scheme.rotated else weight
        rounded = _round(rows, scheme)
        rounded = (hadamard(rounded) if scheme.rotated else rounded).to(weight.dtype)
    return weight + (rounded - weight).detach()


def fake_quantized_forward(model: GPT, batch: Batch, *, plan: LayerPlan, config: QuantConfig) -> Tensor:
    """Return what training minimizes (B, T), with every matrix fake-quantized."""
    matrices = {
        name: fake_quantize(parameter, name, config)
        for name, parameter in model.named_parameters()
        if role_of(name, parameter.ndim).is_matrix
    }
    losses: Tensor = functional_call(model, matrices, (batch,), {"plan": plan, "auxiliary": True})
    return losses


def _round(rows: Tensor, scheme: TensorScheme) -> Tensor:
    levels = scheme.levels
    if scheme.kind == "gptq":
        scale = plain_scale(rows, clip_sigmas=scheme.clip_sigmas, levels=levels, floor=scheme.floor)
    else:
        scale = row_max_scale(rows, scheme)
    return dequantize(round_to_codes(rows, scale, -levels, levels), scale)
