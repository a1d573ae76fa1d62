"""torch.compile over a model: block by block, or the whole walk over the plan as one graph; and a count of its graphs.

What is compiled keeps its parameters, so weights may be swapped in place. Shapes are static: a graph serves one batch
size, one plan and one length of `cu_seqlens`. Calibration looks into the forward and therefore runs it uncompiled.
The compiler is imported when something is compiled, so that evaluating and inspecting need not wait for it.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Literal

import torch

from golf.model.gpt import GPT, walk

Compile = Literal["off", "block", "model"]

_COMPILER = "torch._dynamo"


def compile_model(model: GPT, how: Compile, *, backend: str = "inductor") -> None:
    """Compile the forward of `model` in place; nothing is built before its first use."""
    if how == "block":
        from torch._dynamo import config

        # All layers share one code object, but have a graph each: for training, late QAT and evaluation.
        config.recompile_limit = max(config.recompile_limit, 4 * len(model.blocks))
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=False, backend=backend)
    elif how == "model":
        model.walk = torch.compile(walk, fullgraph=True, dynamic=False, backend=backend)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what is compiled as plain Python for a while."""
    if _COMPILER not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def count_graphs() -> int:
    """Return how many graphs this process has compiled so far; a rise after priming is a recompile."""
    if _COMPILER not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
