"""Initial weights: every parameter's scheme in one list, drawn in the record stacks' order."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from golf.kernels.table import PLAIN, Kernels
from golf.model.gpt import GPT
from golf.model_config import ModelConfig
from golf.roles import Role, is_exported, role_of

_TABLE_STD = 0.01
_ZERO = ("bigram.table.weight", "head.weight")  # silent at first
_FIRST = ("attn.c_q.weight", "attn.c_k.weight", "attn.c_v.weight")  # in this order, layer by layer; then the MLPs


def build_model(
    config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device, kernels: Kernels = PLAIN
) -> GPT:
    """Build and initialize a model on the CPU, then move it.

    Lookup tables live in `dtype`, which thereby is the dtype of all activations; everything else is float32, but starts
    from values that `dtype` can hold, as the record stacks cast their whole model down and most of it up again.
    """
    model = GPT(config, kernels)
    init_weights(model, torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded if role_of(name, parameter.ndim).is_lookup else rounded.float()
    return model.to(device)


@torch.no_grad()
def init_weights(model: GPT, generator: torch.Generator) -> None:
    """Draw all random weights from `generator`.

    token embedding: normal, std from the config · other tables: normal, std 0.01, the bigram's zero · output
    projections of attention and MLP, heads and corrections: zero · other matrices of blocks: orthogonal, or uniform in
    1/sqrt(inputs) under init = "default" · matrices outside the blocks: orthogonal / sqrt(2 layers) · gates: zero, or
    normal with their std · positions: orthogonal rows of their std · scales and mixes keep their constructors' values.

    Order of the draws: what the record stacks draw and overwrite (the default embedding, the additive smear gate's 12
    uniforms), around the gates of every block; the token embedding; q, k and v of every layer; the MLP's matrices of
    every layer; all other parts by name. So PRs #1787, #1801 and #1855 start from the same bits as here.
    """
    torch.empty_like(model.tok_emb.weight, dtype=torch.float32).normal_(generator=generator)
    parameters = dict(model.named_parameters())
    _init_gates(parameters, model.config, generator)
    if "stem.smear.weight" in parameters:
        torch.empty_like(parameters["stem.smear.weight"]).uniform_(generator=generator)
    parameters["tok_emb.weight"].normal_(0.0, model.config.embed_init_std, generator=generator)
    for name in _drawing_order(model.config, parameters):
        _init_one(name, parameters[name], model.config, generator)


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def _init_gates(parameters: dict[str, nn.Parameter], config: ModelConfig, generator: torch.Generator) -> None:
    std = config.attention_gate.init_std if config.attention_gate else 0.0
    for layer in range(config.num_layers if std else 0):
        parameters[f"blocks.{layer}.attn.gate.weight"].normal_(0.0, std, generator=generator)


def _drawing_order(config: ModelConfig, parameters: dict[str, nn.Parameter]) -> Iterator[str]:
    """Yield every name but the token embedding's and the gates', those of plain blocks first."""
    layers = range(config.num_layers)
    first = [f"blocks.{layer}.{matrix}" for layer in layers for matrix in _FIRST]
    first += [f"blocks.{layer}.mlp.fc.weight" for layer in layers]
    first = [name for name in first if name in parameters]  # a low-rank MLP has no such matrix
    yield from first
    done = {*first, "tok_emb.weight"}
    yield from (name for name in sorted(parameters) if name not in done)


def _init_one(name: str, parameter: nn.Parameter, config: ModelConfig, generator: torch.Generator) -> None:
    role = role_of(name, parameter.ndim)
    if name.endswith(_ZERO) or not is_exported(name):
        parameter.zero_()
    elif role is Role.TABLE:
        parameter.normal_(0.0, _TABLE_STD, generator=generator)
    elif role is Role.MATRIX:
        parameter.copy_(_orthogonal(parameter, generator) / math.sqrt(2 * config.num_layers))
    elif role.is_matrix:
        parameter.copy_(torch.zeros_like(parameter) if _is_silent(name) else _matrix(parameter, config, generator))
    elif name == "share.positions" and config.share:
        parameter.copy_(_orthogonal(parameter, generator) * config.share.position_std)


def _is_silent(name: str) -> bool:
    """Whether the matrix is the last of its branch, which then adds nothing at first."""
    last_of_correction = "_passes." in name and name.endswith(".up.weight")
    return last_of_correction or name.endswith((".proj.weight", ".proj.up.weight"))


def _matrix(like: Tensor, config: ModelConfig, generator: torch.Generator) -> Tensor:
    if config.init == "orthogonal":
        return _orthogonal(like, generator)
    bound = like.shape[1] ** -0.5
    return torch.empty_like(like).uniform_(-bound, bound, generator=generator)


def _orthogonal(like: Tensor, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty_like(like), generator=generator)
