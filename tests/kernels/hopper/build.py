"""Compile Triton kernels for Hopper (compute capability 9.0) on a machine without a GPU, and read what they take.

The interpreter shows what a kernel computes; only the compiler shows whether it is one: types that do not meet, tiles
that do not fit the shared memory, values spilled out of registers.
"""

import functools
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SHARED_LIMIT = 227 * 1024  # bytes that one block may have on Hopper


class Case(NamedTuple):
    """A kernel as it is launched for a record's sizes."""

    name: str
    kernel: Any  # what golf.kernels.jit.jit returned
    signature: Mapping[str, str]  # of every argument in order: "*bf16", "*fp32", "*i64", "i32", "fp32", "constexpr"
    constants: Mapping[str, Any]  # of the constexpr arguments
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, int] = {}  # further ones of the launch
    unspecialized: tuple[str, ...] = ()  # sizes that it is compiled once for


class Usage(NamedTuple):
    """What one compiled kernel takes."""

    name: str
    registers: int  # a thread
    spilled: int  # bytes of local memory a thread
    shared: int  # bytes a block
    is_gluon: bool
    unfenced: int  # see `count_unfenced`


def compile_for_hopper(case: Case) -> Usage:
    """Compile down to machine code; pointers and sizes are taken to be multiples of 16, as a record's are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name, kind in case.signature.items() if kind != "constexpr"]
    assert set(case.constants) == set(case.signature) - set(names), case.name
    positions = {name: index for index, name in enumerate(case.signature)}
    aligned = {
        (positions[name],): [["tt.divisibility", 16]]
        for name in names
        if name not in case.unspecialized
        and (case.signature[name].startswith("*") or case.signature[name] in ("i32", "i64"))
    }
    is_gluon = hasattr(case.kernel, "is_gluon") and case.kernel.is_gluon()
    make = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource if is_gluon else ASTSource
    source = make(fn=case.kernel, signature=dict(case.signature), constexprs=dict(case.constants), attrs=dict(aligned))
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, spilled = _resources(built.asm["cubin"], Path(triton.__file__).parent)
    unfenced = count_unfenced(built.asm["ptx"])
    return Usage(case.name, registers, spilled, built.metadata.shared, is_gluon, unfenced)


def count_unfenced(ptx: str) -> int:
    """Count where shared memory is given to the TMA that threads may still be at.

    Between ldmatrix or stmatrix and the arrival at a barrier, or the TMA's store, each thread must fence what it did,
    and then all must meet.
    """
    gives = r"mbarrier\.arrive\.shared|cp\.async\.bulk\.tensor\S*\.global\.shared"
    steps = re.finditer(
        rf"(?P<touch>(?:ld|st)matrix)|(?P<fence>fence\.proxy\.async)|(?P<meet>bar\.sync)|(?P<give>{gives})", ptx
    )
    state, found = "apart", 0
    for step in steps:
        if step.lastgroup == "touch":
            state = "touched"
        elif step.lastgroup == "fence" and state == "touched":
            state = "fenced"
        elif step.lastgroup == "meet" and state == "fenced":
            state = "apart"
        elif step.lastgroup == "give":
            found += state != "apart"
    return found


@functools.cache
def usages() -> list[Usage]:
    """Compile the cases of every module beside this one, in a process of its own that interprets nothing."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.hopper.build"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Usage(*json.loads(line)) for line in done.stdout.splitlines()]


def _resources(cubin: bytes, triton_folder: Path) -> tuple[int, int]:
    """Return registers and bytes of local memory a thread."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    words = dict(word.split(":") for word in text.stdout.rsplit("Function", 1)[1].split() if word.count(":") == 1)
    return int(words["REG"]), int(words["STACK"]) + int(words["LOCAL"])


def _cases() -> Iterator[Case]:
    folder = str(Path(__file__).parent)
    for module in sorted(info.name for info in pkgutil.iter_modules([folder]) if info.name != "build"):
        yield from importlib.import_module(f"tests.kernels.hopper.{module}").CASES


if __name__ == "__main__":
    for case in _cases():
        sys.stdout.write(json.dumps(compile_for_hopper(case)) + "\n")
