"""A state dict quantized by the roles of its tensors, and back."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from golf.errors import NumericalFaultError
from golf.model.hooks import tap_of
from golf.model.parts.ternary import ternarize
from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.lqer import Correction, correct_worst, factor_names, is_factor
from golf.quant.nearest import quantize_nearest
from golf.quant.primitives import SCALE_FLOOR, levels_of
from golf.quant.rotation import can_rotate, hadamard
from golf.quant.scheme import Kind, QuantizedTensor, Stored, TensorScheme
from golf.quant.sdclip import choose_scale
from golf.quant.ternary import TernaryTensor
from golf.quant_config import QuantConfig
from golf.roles import Role, role_of

_TABLE_BITS = _GATE_BITS = 8
_TERNARY_ROLES = (Role.ATTN, Role.MLP)


def needs_hessians(config: QuantConfig) -> bool:
    """Whether `quantize_weights` looks at Hessians; if not, none need be collected and an empty mapping will do."""
    return config.method == "gptq"


def scheme_of(
    name: str, tensor: Tensor, config: QuantConfig, *, ternary: bool = False, untied: bool = False
) -> TensorScheme:
    """Decide how a tensor is stored, by its role and its size.

    `ternary`: attention and MLP act as ternary; `untied`: the embedding is no head, so it multiplies no activation.
    """
    role = role_of(name, tensor.ndim)
    if role is Role.SCALAR or tensor.numel() <= config.float16_below:
        return TensorScheme(kind="float16")
    if ternary and role in _TERNARY_ROLES:
        return TensorScheme(kind="ternary")
    bits = _bits_of(name, role, config)
    kind = _kind_of(role, bits, config, untied=untied)
    return TensorScheme(
        kind=kind,
        bits=bits,
        clip_sigmas=_clip_of(role, config) if kind == "gptq" else 0.0,
        floor=1 / levels_of(bits) if config.scale_floor == "unit" else SCALE_FLOOR,
        rotated=config.rotate and can_rotate(len(tensor)),
    )


@torch.no_grad()
def quantize_weights(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    config: QuantConfig,
    *,
    ternary_group: int | None = None,
) -> dict[str, Stored]:
    """Quantize a state dict; matrices that share an input are rounded together, their rows being independent.

    `ternary_group` is the model's, if its matrices act as ternary. The two factors of a corrected matrix follow all
    else, under names of their own. Raises NumericalFaultError naming the tensor whose values or Hessian cannot be used.
    """
    schemes = {
        name: scheme_of(name, weight, config, ternary=ternary_group is not None, untied="head.weight" in weights)
        for name, weight in weights.items()
    }
    stored: dict[str, Stored] = {}
    shared: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, weight in weights.items():
        if schemes[name].kind == "gptq":
            shared[tap_of(name), schemes[name].bits].append(name)
        else:
            with _naming(name):
                stored[name] = _quantize_alone(weight, schemes[name], ternary_group)
    for (tap, _), names in shared.items():
        with _naming(*names):
            group = {name: weights[name] for name in names}
            stored.update(_quantize_together(group, schemes, hessians[tap], config))
    factors: dict[str, Stored] = {}
    if config.lqer is not None:
        rounded = [name for names in shared.values() for name in names]
        errors = {name: weights[name].float() - _plain(stored[name]) for name in rounded}
        factors.update(correct_worst(errors, {name: hessians[tap_of(name)] for name in rounded}, config.lqer))
    return {name: stored[name] for name in weights} | factors


def dequantize_weights(stored: Mapping[str, Stored], template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn stored tensors back into a state dict with the dtypes and devices of `template`.

    Raises ValueError unless the names and shapes agree exactly and every pair of factors fits its matrix.
    """
    names = {name for name in stored if not is_factor(name)}
    known = template.keys() | {factor for name in template for factor in factor_names(name)}
    if names != template.keys() or not stored.keys() <= known:
        odd = (names ^ template.keys()) | (stored.keys() - known)
        raise ValueError(f"artifact and model differ in {sorted(odd)}")
    weights = {}
    for name, like in template.items():
        value = _plain(stored[name])
        if value.shape != like.shape:
            raise ValueError(f"{name}: stored as {tuple(value.shape)}, the model wants {tuple(like.shape)}")
        correction = _correction_of(name, stored)
        if correction is not None:
            value = value + correction.expand(tuple(value.shape))
        weights[name] = value.to(like.device, like.dtype)
    return weights


def _bits_of(name: str, role: Role, config: QuantConfig) -> int:
    if role in (Role.EMBED, Role.HEAD):
        return config.embed_bits
    if role is Role.TABLE:
        return _TABLE_BITS
    if role is Role.GATE:
        return _GATE_BITS
    if config.attn_proj_bits is not None and name.endswith(".attn.proj.weight"):
        return config.attn_proj_bits
    return config.matrix_bits


def _kind_of(role: Role, bits: int, config: QuantConfig, *, untied: bool) -> Kind:
    if config.method == "gptq":
        has_no_hessian = role in (Role.TABLE, Role.GATE) or (untied and role is Role.EMBED)
        return "nearest" if has_no_hessian else "gptq"
    return "percentile" if bits == 8 else config.method  # the records knew one quantizer of 8 bits


def _clip_of(role: Role, config: QuantConfig) -> float:
    if role is Role.ATTN:
        return config.attn_clip_sigmas
    if role is Role.MLP:
        return config.mlp_clip_sigmas
    return config.embed_clip_sigmas if role in (Role.EMBED, Role.HEAD) else config.matrix_clip_sigmas


def _quantize_alone(weight: Tensor, scheme: TensorScheme, ternary_group: int | None) -> Stored:
    if scheme.kind == "float16":
        return _finite(weight.half())
    if scheme.kind == "ternary":
        assert ternary_group is not None
        codes, scale = ternarize(_finite(weight.float()), ternary_group)
        return TernaryTensor(codes=codes, scale=scale)
    return quantize_nearest(weight, scheme)


def _quantize_together(
    weights: Mapping[str, Tensor], schemes: Mapping[str, TensorScheme], hessian: Tensor, config: QuantConfig
) -> dict[str, Stored]:
    diagonal = damped_diagonal(hessian, damping=config.damping)
    turned = {name: hadamard(weight) if schemes[name].rotated else weight.float() for name, weight in weights.items()}
    scales = [
        choose_scale(
            weight,
            clip_sigmas=schemes[name].clip_sigmas,
            levels=schemes[name].levels,
            hessian_diagonal=diagonal,
            hessian_lambda=config.hessian_lambda,
            floor=schemes[name].floor,
        )
        for name, weight in turned.items()
    ]
    levels = schemes[next(iter(weights))].levels
    stacked = torch.cat(list(turned.values()))
    codes = gptq(stacked, hessian, torch.cat(scales), levels=levels, damping=config.damping)
    parts = codes.split([len(weight) for weight in weights.values()])
    return {
        name: QuantizedTensor(
            codes=part,
            scale=scale,
            bits=schemes[name].bits,
            shape=tuple(weights[name].shape),
            rotated=schemes[name].rotated,
        )
        for name, part, scale in zip(weights, parts, scales, strict=True)
    }


def _correction_of(name: str, stored: Mapping[str, Stored]) -> Correction | None:
    left, right = (stored.get(factor) for factor in factor_names(name))
    if left is None and right is None:
        return None
    if not isinstance(left, QuantizedTensor) or not isinstance(right, QuantizedTensor):
        raise ValueError(f"{name}: one of its two factors is missing or not quantized")
    return Correction(left, right)


def _plain(value: Stored) -> Tensor:
    return value if isinstance(value, Tensor) else value.dequantize()


@contextlib.contextmanager
def _naming(*names: str) -> Iterator[None]:
    """Say of which tensors a numerical fault is."""
    try:
        yield
    except NumericalFaultError as error:
        raise NumericalFaultError(f"{', '.join(names)}: {error}") from error


def _finite(tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise NumericalFaultError("not finite, or too large for float16")
    return tensor
