"""Which form of each operation a model computes with: plain PyTorch on any device, fused kernels on a GPU.

The plain forms are the specification. A model is built with one table and hands it to its parts with every forward, so
no part asks where it runs, and a test, a benchmark or a recipe can exchange one entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from golf.kernels.add_product import fused_add_product, plain_add_product
from golf.kernels.attention import attention
from golf.kernels.exclude import fused_exclude, plain_exclude
from golf.kernels.flash import AttentionChoice, choose_attention
from golf.kernels.jit import HAS_TRITON
from golf.kernels.mix import fused_mix, fused_mix_norm, plain_mix, plain_mix_norm
from golf.kernels.norm import fused_norm, fused_stream_norm, plain_norm, plain_stream_norm
from golf.kernels.project import fused_project, plain_project
from golf.kernels.scale_rows import fused_scale_rows, plain_scale_rows
from golf.kernels.softcapped_ce import fused_softcapped_cross_entropy, softcapped_cross_entropy
from golf.kernels.square_mlp import can_go_by_rows, fused_square_mlp, plain_square_mlp
from golf.kernels.turn_heads import Heads, fused_turn_heads, plain_turn_heads

KernelChoice = Literal["auto", "plain"]


class AttentionFunction(Protocol):
    """See `golf.kernels.attention`."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        again: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor: ...


class NormFunction(Protocol):
    """See `golf.kernels.norm`."""

    def __call__(self, x: Tensor, *, scale: float = 1.0) -> Tensor: ...


class StreamNormFunction(Protocol):
    """See `golf.kernels.norm`."""

    def __call__(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]: ...


class ScaleRowsFunction(Protocol):
    """See `golf.kernels.scale_rows`."""

    def __call__(self, weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor: ...


class AddProductFunction(Protocol):
    """See `golf.kernels.add_product`."""

    def __call__(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor: ...


class MixFunction(Protocol):
    """See `golf.kernels.mix`."""

    def __call__(self, streams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]: ...


class MixNormFunction(Protocol):
    """See `golf.kernels.mix`."""

    def __call__(self, streams: Sequence[Tensor], weights: Tensor, *, scale: float) -> tuple[Tensor, ...]: ...


class ProjectFunction(Protocol):
    """See `golf.kernels.project`."""

    def __call__(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]: ...


class TurnFunction(Protocol):
    """See `golf.kernels.turn_heads`."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool
    ) -> Heads: ...


class ExcludeFunction(Protocol):
    """See `golf.kernels.exclude`."""

    def __call__(self, y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor: ...


class SquareMlpFunction(Protocol):
    """See `golf.kernels.square_mlp`."""

    def __call__(
        self, n: Tensor, fc: Tensor, proj: Tensor, *, negative_slope: float, onto: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


class CrossEntropyFunction(Protocol):
    """See `golf.kernels.softcapped_ce`."""

    def __call__(
        self, logits: Tensor, targets: Tensor, *, cap: float | None, rounds: bool = False, spends: bool = False
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One form of every operation, and what to call them all."""

    attention: AttentionFunction
    norm: NormFunction
    stream_norm: StreamNormFunction
    mix: MixFunction
    mix_norm: MixNormFunction
    scale_rows: ScaleRowsFunction
    add_product: AddProductFunction
    project: ProjectFunction
    turn_heads: TurnFunction
    exclude: ExcludeFunction
    square_mlp: SquareMlpFunction
    cross_entropy: CrossEntropyFunction
    description: str
    attention_description: str

    def names(self) -> dict[str, str]:
        """Say what computes, for the console and for the record of a run."""
        return {"kernels": self.description, "attention": self.attention_description}

    def sentence(self) -> str:
        """Say it in one line."""
        return ", ".join(f"{key}: {value}" for key, value in self.names().items())


PLAIN = Kernels(
    attention=attention,
    norm=plain_norm,
    stream_norm=plain_stream_norm,
    mix=plain_mix,
    mix_norm=plain_mix_norm,
    scale_rows=plain_scale_rows,
    add_product=plain_add_product,
    project=plain_project,
    turn_heads=plain_turn_heads,
    exclude=plain_exclude,
    square_mlp=plain_square_mlp,
    cross_entropy=softcapped_cross_entropy,
    description="plain PyTorch",
    attention_description="padded segments through PyTorch's scaled_dot_product_attention",
)


# Told of the table, which knows no model: hence the sizes.
MLP_BY_ROWS = ", the squared MLP's products of whole rows (hidden a multiple of 128, model dim of 16 and up to 512)"


def choose_kernels(
    device: torch.device, dtype: torch.dtype, *, wanted: KernelChoice = "auto", attention: AttentionChoice = "auto"
) -> Kernels:
    """Return the table for activations of `dtype` on `device`: fused kernels on CUDA unless "plain" ones are `wanted`.

    Raises EnvironmentUnfitError for an attention that is not installed.
    """
    backend = choose_attention(device, dtype, wanted=attention)
    fuses = device.type == "cuda" and HAS_TRITON and wanted == "auto"
    chosen = fused_kernels(mlp_by_rows=can_go_by_rows(device, dtype)) if fuses else PLAIN
    return replace(chosen, attention=backend.function, attention_description=backend.description)


def fused_kernels(*, mlp_by_rows: bool = False) -> Kernels:
    """Return the table of fused kernels with the plain attention, for CUDA or for Triton's interpreter.

    With `mlp_by_rows` the MLP takes the kernels that `can_go_by_rows` asks for, for sizes that fit.
    """
    return Kernels(
        attention=attention,
        norm=fused_norm,
        stream_norm=fused_stream_norm,
        mix=fused_mix,
        mix_norm=fused_mix_norm,
        scale_rows=fused_scale_rows,
        add_product=fused_add_product,
        project=fused_project,
        turn_heads=fused_turn_heads,
        exclude=fused_exclude,
        square_mlp=partial(fused_square_mlp, by_rows=True) if mlp_by_rows else fused_square_mlp,
        cross_entropy=fused_softcapped_cross_entropy,
        description="fused Triton kernels" + (MLP_BY_ROWS if mlp_by_rows else ""),
        attention_description=PLAIN.attention_description,
    )
