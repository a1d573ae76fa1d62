"""Which attention a device gets: the fastest of FlashAttention's that is installed, or the padded form.

The choice is made once, before training, and told: a slower implementation is never taken silently.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from golf.errors import EnvironmentUnfitError
from golf.kernels.attention import attention
from golf.kernels.flash3_builds import find_flash3
from golf.kernels.flash_ops import DTYPES, open_flash3, open_flash4, open_varlen

AttentionChoice = Literal["auto", "fa3", "fa4", "varlen", "padded"]


class Backend(NamedTuple):
    """An implementation of `golf.kernels.attention.attention`, with its signature."""

    name: str  # of AttentionChoice
    function: Callable[..., Tensor]
    description: str  # for people: what it is, its packages' versions, and why no faster one was taken
    remedy: str = ""  # how to come by one that is much faster, if there is one for this GPU


class _Flash(NamedTuple):
    """What an implementation by FlashAttention is, where it runs and how one comes by it."""

    title: str
    module: str  # what is said to be missing or broken
    packages: Callable[[], tuple[str, ...]]  # that it is installed by; none if it is not
    majors: range  # of the compute capabilities that its kernels are made for
    open: Callable[[], Callable[..., Tensor]]
    remedy: str


_FLASH = {  # the fastest first; both of the newer ones take the same time for a step, the third less for a forward
    "fa3": _Flash(
        "FlashAttention-3",
        "flash_attn_3",
        lambda: () if (build := find_flash3()) is None else (build.package,),
        range(9, 10),
        open_flash3,
        "pip install --no-deps xformers==0.0.34 nvidia-cuda-runtime-cu12, or build FlashAttention's hopper folder",
    ),
    "fa4": _Flash(
        "FlashAttention-4",
        "flash_attn.cute",
        lambda: _packages_of("flash_attn.cute", "flash-attn-4", "nvidia-cutlass-dsl"),
        range(9, 13),
        open_flash4,
        "pip install flash-attn-4",
    ),
    "varlen": _Flash(
        "FlashAttention-2 by PyTorch's varlen_attn",
        "torch.nn.attention.varlen",
        lambda: _packages_of("torch.nn.attention.varlen", "torch"),
        range(8, 13),
        open_varlen,
        "install PyTorch 2.10 or newer",
    ),
}


_SLOW = ("varlen",)  # and the padded form


class _UnusableError(Exception):
    """Why an implementation cannot be had here, and what to do about it."""

    def __init__(self, reason: str, remedy: str, *, is_missing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.is_missing = reason, remedy, is_missing


def choose_attention(device: torch.device, dtype: torch.dtype, *, wanted: AttentionChoice = "auto") -> Backend:
    """Return the implementation that is `wanted` for tensors of `dtype` on `device`.

    "auto" takes the first of fa3, fa4, varlen and padded that works there; its description says why those before it do
    not. Off the GPU there is the padded form alone. Raises EnvironmentUnfitError, with the remedy, if the one asked for
    by name is not to be had.
    """
    if wanted not in ("auto", "padded"):
        try:
            return _open(wanted, device, dtype)
        except _UnusableError as error:
            raise EnvironmentUnfitError(
                f'attention "{wanted}" cannot be used: {error.reason}; {error.remedy}, or choose "auto"'
            ) from error
    passed_over: dict[str, list[str]] = {}
    remedies: list[str] = []
    for name in _FLASH if wanted == "auto" and device.type == "cuda" else ():
        try:
            backend = _open(name, device, dtype)
        except _UnusableError as error:
            passed_over.setdefault(error.reason, []).append(name)
            remedies += [error.remedy] if error.is_missing else []
        else:
            remedy = next(iter(remedies), "") if name in _SLOW else ""
            return backend._replace(description=_tell(backend.description, passed_over), remedy=remedy)
    padded = f"padded segments through PyTorch's scaled_dot_product_attention ({device.type})"
    return Backend("padded", attention, _tell(padded, passed_over), next(iter(remedies), ""))


def _tell(chosen: str, passed_over: Mapping[str, Sequence[str]]) -> str:
    """Say what was chosen, and for each reason which others were not."""
    return "; ".join([chosen, *(f"not {', '.join(names)}: {reason}" for reason, names in passed_over.items())])


def _open(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Import the implementation `name`; raises _UnusableError if it is missing, broken or made for something else."""
    flash = _FLASH[name]
    if device.type != "cuda":
        raise _UnusableError(f"it runs on a CUDA device, not on {device.type}", "take a GPU")
    if dtype not in DTYPES:
        raise _UnusableError(f"kernels for bfloat16 and float16 alone, not {dtype}", "compute in bfloat16")
    major, minor = torch.cuda.get_device_capability(device)
    if major not in flash.majors:
        raise _UnusableError(f"no kernels for compute capability {major}.{minor}", "take another GPU")
    try:
        packages = flash.packages()
        function = flash.open() if packages else None
    except Exception as error:  # a foreign package's import may raise anything, from a missing library to an assertion
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _UnusableError(
            f"{flash.module} is installed but broken ({told})", flash.remedy, is_missing=True
        ) from error
    if function is None:
        raise _UnusableError(f"{flash.module} is not installed", flash.remedy, is_missing=True)
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return Backend(name, function, f"{flash.title} ({versions})")


def _packages_of(module: str, *packages: str) -> tuple[str, ...]:
    """Return `packages` if their module can be found; its parent is imported on the way, and may raise anything."""
    parent = module.partition(".")[0]
    return packages if find_spec(parent) is not None and find_spec(module) is not None else ()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
