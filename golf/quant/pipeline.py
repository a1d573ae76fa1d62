"""A state dict quantized by the roles of its tensors, and back."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from golf.config import QuantConfig
from golf.errors import NumericalFaultError
from golf.model.hooks import tap_of
from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.primitives import absmax_scale, quantize
from golf.quant.scheme import QuantizedTensor, Stored, TensorScheme
from golf.quant.sdclip import choose_scale
from golf.roles import Role, role_of

_TABLE_BITS = _GATE_BITS = 8


def scheme_of(name: str, tensor: Tensor, config: QuantConfig) -> TensorScheme:
    """Decide how a tensor is stored, by its role."""
    role = role_of(name, tensor.ndim)
    clips = {
        Role.ATTN: config.attn_clip_sigmas,
        Role.MLP: config.mlp_clip_sigmas,
        Role.MATRIX: config.matrix_clip_sigmas,
    }
    if role is Role.EMBED:
        return TensorScheme(kind="gptq", bits=config.embed_bits, clip_sigmas=config.embed_clip_sigmas)
    if role in clips:
        return TensorScheme(kind="gptq", bits=config.matrix_bits, clip_sigmas=clips[role])
    if role is Role.TABLE:
        return TensorScheme(kind="nearest", bits=_TABLE_BITS)
    if role is Role.GATE:
        return TensorScheme(kind="nearest", bits=_GATE_BITS)
    return TensorScheme(kind="float16")


@torch.no_grad()
def quantize_weights(
    weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor], config: QuantConfig
) -> dict[str, Stored]:
    """Quantize a state dict; matrices that share an input are rounded together, their rows being independent.

    Raises NumericalFaultError naming the tensor whose values or Hessian cannot be used.
    """
    stored: dict[str, Stored] = {}
    shared: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, weight in weights.items():
        scheme = scheme_of(name, weight, config)
        if scheme.kind == "gptq":
            shared[tap_of(name), scheme.bits].append(name)
        elif scheme.kind == "nearest":
            with _naming(name):
                scale = absmax_scale(weight, levels=scheme.levels)
                codes = quantize(weight, scale, scheme.levels)
            stored[name] = QuantizedTensor(codes=codes, scale=scale, bits=scheme.bits, shape=tuple(weight.shape))
        else:
            stored[name] = _finite(name, weight.half())
    for (tap, _), names in shared.items():
        with _naming(*names):
            stored.update(_quantize_together({name: weights[name] for name in names}, hessians[tap], config))
    return {name: stored[name] for name in weights}


def dequantize_weights(stored: Mapping[str, Stored], template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn stored tensors back into a state dict with the dtypes and devices of `template`.

    Raises ValueError unless the names and shapes agree exactly.
    """
    if stored.keys() != template.keys():
        raise ValueError(f"artifact and model differ in {sorted(stored.keys() ^ template.keys())}")
    weights = {}
    for name, like in template.items():
        value = stored[name]
        value = value.dequantize() if isinstance(value, QuantizedTensor) else value
        if value.shape != like.shape:
            raise ValueError(f"{name}: stored as {tuple(value.shape)}, the model wants {tuple(like.shape)}")
        weights[name] = value.to(like.device, like.dtype)
    return weights


def _quantize_together(weights: Mapping[str, Tensor], hessian: Tensor, config: QuantConfig) -> dict[str, Stored]:
    schemes = {name: scheme_of(name, weight, config) for name, weight in weights.items()}
    diagonal = damped_diagonal(hessian, damping=config.damping)
    scales = [
        choose_scale(
            weight,
            clip_sigmas=schemes[name].clip_sigmas,
            levels=schemes[name].levels,
            hessian_diagonal=diagonal,
            hessian_lambda=config.hessian_lambda,
        )
        for name, weight in weights.items()
    ]
    scheme = next(iter(schemes.values()))
    stacked = torch.cat([weight.float() for weight in weights.values()])
    codes = gptq(stacked, hessian, torch.cat(scales), levels=scheme.levels, damping=config.damping)
    parts = codes.split([len(weight) for weight in weights.values()])
    return {
        name: QuantizedTensor(codes=part, scale=scale, bits=scheme.bits, shape=tuple(weights[name].shape))
        for name, part, scale in zip(weights, parts, scales, strict=True)
    }


@contextlib.contextmanager
def _naming(*names: str) -> Iterator[None]:
    """Say of which tensors a numerical fault is."""
    try:
        yield
    except NumericalFaultError as error:
        raise NumericalFaultError(f"{', '.join(names)}: {error}") from error


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise NumericalFaultError(f"{name}: not finite, or too large for float16")
    return tensor
