"""What is compiled behind one's back: graphs by torch.compile, kernels by Triton; in a timed run there must be none."""

import contextlib
from collections.abc import Iterator
from typing import Any

from golf.compilation import count_graphs
from golf.kernels.jit import HAS_TRITON


class Compilations:
    """Graphs and kernels compiled, or loaded from a cache, since this was made; read it inside `watched`."""

    def __init__(self) -> None:
        self._graphs_before = count_graphs()
        self.kernels: list[str] = []

    @property
    def count(self) -> int:
        """Number of both."""
        return count_graphs() - self._graphs_before + len(self.kernels)

    def __str__(self) -> str:
        graphs = count_graphs() - self._graphs_before
        named = f" ({', '.join(sorted(set(self.kernels)))})" if self.kernels else ""
        return f"{graphs} graphs and {len(self.kernels)} Triton kernels{named}"


@contextlib.contextmanager
def watched() -> Iterator[Compilations]:
    """Yield what is compiled within the block; kernels that torch.compile makes count as their graph."""
    found = Compilations()
    if not HAS_TRITON:
        yield found
        return
    from triton import knobs

    before = knobs.compilation.listener

    def listen(*, metadata: dict[str, Any], **rest: Any) -> None:
        found.kernels.append(metadata["name"])
        if before is not None:
            before(metadata=metadata, **rest)

    knobs.compilation.listener = listen
    try:
        yield found
    finally:
        knobs.compilation.listener = before
