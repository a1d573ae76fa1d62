"""The choice of an attention, on a machine as the tests describe it: which GPU it has, and which packages."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from golf.errors import EnvironmentUnfitError
from golf.kernels.attention import attention
from golf.kernels.flash import AttentionChoice, Backend, choose_attention
from golf.kernels.flash_ops import flash3_attention, flash4_attention
from tests.kernels.flash_stand_ins import hide_modules, place_flash4, place_module, placed_flash3

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PADDED = "padded segments through PyTorch's scaled_dot_product_attention"


def choose(wanted: AttentionChoice = "auto", dtype: torch.dtype = torch.bfloat16) -> Backend:
    return choose_attention(GPU, dtype, wanted=wanted)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Hopper GPU, and none of FlashAttention installed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    hide_modules(monkeypatch, "flash_attn", "flash_attn_interface", "xformers", "torch.nn.attention.varlen")
    monkeypatch.setattr(metadata, "version", lambda package: "2.11.0" if package == "torch" else "4.5.6")
    return monkeypatch


@pytest.fixture
def full(bare: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A Hopper GPU with every FlashAttention."""
    place_flash4(bare)
    place_varlen(bare)
    with placed_flash3(bare):
        yield bare


def place_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(varlen_attn=lambda *given, window_size: given[0], __spec__="found")
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)


def test_off_the_gpu_it_is_the_padded_form_without_regrets() -> None:
    assert choose_attention(CPU, torch.bfloat16) == Backend("padded", attention, f"{PADDED} (cpu)")


@pytest.mark.parametrize("wanted", ["fa4", "fa3", "varlen"])
def test_off_the_gpu_no_flash_attention_can_be_had(wanted: AttentionChoice) -> None:
    with pytest.raises(EnvironmentUnfitError, match=f'"{wanted}" cannot be used: it runs on a CUDA device, not on cpu'):
        choose_attention(CPU, torch.bfloat16, wanted=wanted)


def test_hopper_takes_the_third_where_all_are_installed(full: pytest.MonkeyPatch) -> None:
    backend = choose()
    assert backend.function is flash3_attention
    assert backend.name == "fa3"


def test_hopper_takes_the_fourth_where_the_third_is_missing(full: pytest.MonkeyPatch) -> None:
    hide_modules(full, "flash_attn_interface")
    backend = choose()
    assert backend.function is flash4_attention
    assert backend.name == "fa4"
    assert backend.description.endswith("; not fa3: flash_attn_3 is not installed")


def test_hopper_takes_pytorchs_own_where_both_are_missing(full: pytest.MonkeyPatch) -> None:
    hide_modules(full, "flash_attn", "flash_attn_interface")
    assert choose()[:3:2] == (
        "varlen",
        "FlashAttention-2 by PyTorch's varlen_attn (torch 2.11.0); not fa3: flash_attn_3 is not installed; "
        "not fa4: flash_attn.cute is not installed",
    )


def test_hopper_takes_the_padded_form_where_nothing_is_installed(bare: pytest.MonkeyPatch) -> None:
    backend = choose()
    assert backend.function is attention
    assert backend.description == (
        f"{PADDED} (cuda); not fa3: flash_attn_3 is not installed; not fa4: flash_attn.cute is not installed; "
        "not varlen: torch.nn.attention.varlen is not installed"
    )


def test_an_older_flash_attention_of_the_same_package_is_not_the_fourth(full: pytest.MonkeyPatch) -> None:
    place_module(full, "flash_attn")
    hide_modules(full, "flash_attn.cute", "flash_attn_interface")
    assert "not fa4: flash_attn.cute is not installed" in choose().description


@pytest.mark.parametrize(
    ("capability", "name"), [((7, 5), "padded"), ((8, 0), "varlen"), ((8, 9), "varlen"), ((10, 0), "fa4")]
)
def test_other_gpus_take_what_has_kernels_for_them(
    full: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    full.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose().name == name


def test_a_gpu_without_kernels_is_told(full: pytest.MonkeyPatch) -> None:
    full.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert choose().description.endswith("; not fa3, fa4: no kernels for compute capability 8.9")
    with pytest.raises(EnvironmentUnfitError, match=r"no kernels for compute capability 8.9; take another GPU"):
        choose("fa3")


def test_the_capability_asked_for_is_that_of_the_device(full: pytest.MonkeyPatch) -> None:
    full.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index == 3 else (9, 0))
    assert choose_attention(torch.device("cuda", 3), torch.bfloat16).name == "varlen"


def test_float32_takes_the_padded_form_and_says_why(full: pytest.MonkeyPatch) -> None:
    assert choose(dtype=torch.float32) == Backend(
        "padded",
        attention,
        f"{PADDED} (cuda); not fa3, fa4, varlen: kernels for bfloat16 and float16 alone, not torch.float32",
    )


def test_float32_is_refused_by_name_with_a_remedy(full: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentUnfitError, match=r'not torch\.float32; compute in bfloat16, or choose "auto"'):
        choose("fa4", torch.float32)


@pytest.mark.parametrize("name", ["fa4", "fa3", "varlen", "padded"])
def test_one_asked_for_by_name_is_taken_whatever_else_is_there(full: pytest.MonkeyPatch, name: AttentionChoice) -> None:
    backend = choose(name)
    assert backend.name == name
    assert "not " not in backend.description


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("fa4", "flash_attn.cute is not installed; pip install flash-attn-4, or"),
        (
            "fa3",
            "flash_attn_3 is not installed; pip install --no-deps xformers==0.0.34 nvidia-cuda-runtime-cu12, "
            "or build FlashAttention's hopper folder, or",
        ),
        ("varlen", "torch.nn.attention.varlen is not installed; install PyTorch 2.10 or newer, or"),
    ],
)
def test_one_asked_for_by_name_that_is_missing_is_refused_with_the_remedy(
    bare: pytest.MonkeyPatch, name: AttentionChoice, remedy: str
) -> None:
    with pytest.raises(EnvironmentUnfitError) as refusal:
        choose(name)
    assert str(refusal.value) == f'attention "{name}" cannot be used: {remedy} choose "auto"'


def test_a_description_names_the_versions_of_its_packages(full: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "flash-attn-4":
            return "4.5.6"
        raise metadata.PackageNotFoundError(package)

    full.setattr(metadata, "version", version)
    assert choose("fa4").description == ("FlashAttention-4 (flash-attn-4 4.5.6, nvidia-cutlass-dsl of unknown version)")


@pytest.fixture
def broken(full: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """FlashAttention-3 is missing, and FlashAttention-4's import needs a library that is not there."""
    hide_modules(full, "flash_attn_interface")
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('libcute.so: cannot open\\nshared object file')\n")
    full.syspath_prepend(tmp_path)
    for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        full.delitem(sys.modules, name)
    return tmp_path


def test_a_broken_package_is_passed_over_and_told(broken: Path) -> None:
    backend = choose()
    assert backend.name == "varlen"
    assert backend.description.endswith(
        "; not fa4: flash_attn.cute is installed but broken (ImportError: libcute.so: cannot open)"
    )


def test_a_broken_package_asked_for_by_name_is_refused(broken: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"is installed but broken \(ImportError: libcute.so: cannot open"):
        choose("fa4")


def test_a_package_of_another_version_is_broken_too(full: pytest.MonkeyPatch) -> None:
    hide_modules(full, "flash_attn_interface")
    place_module(full, "flash_attn.cute.interface", _flash_attn_fwd=lambda q, k, v: q)
    assert "not fa4: flash_attn.cute is installed but broken (TypeError: " in choose().description


def test_importing_golf_imports_no_flash_attention(tmp_path: Path) -> None:
    for name in ("flash_attn", "flash_attn_interface"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import golf.kernels.flash"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    ("hidden", "capability", "remedy"),
    [
        ((), (9, 0), ""),
        (("flash_attn_interface",), (9, 0), ""),  # the fourth is as fast
        (("flash_attn_interface", "flash_attn"), (9, 0), "pip install --no-deps xformers"),
        (("flash_attn_interface", "flash_attn"), (8, 0), ""),
        (("flash_attn",), (10, 0), "pip install flash-attn-4"),
        (("flash_attn", "flash_attn_interface", "torch.nn.attention.varlen"), (8, 0), "install PyTorch 2.10"),
    ],
)
def test_how_to_come_by_a_faster_one_is_told(
    full: pytest.MonkeyPatch, hidden: tuple[str, ...], capability: tuple[int, int], remedy: str
) -> None:
    hide_modules(full, *hidden)
    full.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = choose().remedy
    assert found.startswith(remedy)
    assert bool(found) == bool(remedy)
