"""The two ways into a forward from outside: an adapter adds to a site, an observer sees a matrix's input.

With neither, a forward traces to the same operations as a model written without hooks.
"""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Site = Literal["q", "k", "v", "o", "mlp", "head"]


class Adapter(Protocol):
    """Adds a learned correction at the sites of a slot (a visit, not a layer)."""

    def delta(self, slot: int, site: Site, x: Tensor) -> Tensor | None:
        """Return what to add to the site's output for input `x`, or None."""
        ...


class Observer(Protocol):
    """Looks at the inputs of matrix products."""

    def see(self, tap: str, x: Tensor) -> None:
        """Look at `x`, the input (..., in) of the products that `tap_of` maps to `tap`."""
        ...


class Hooks(NamedTuple):
    """What one forward carries along."""

    adapters: Adapter | None = None
    observer: Observer | None = None

    def adapt(self, slot: int, site: Site, y: Tensor, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return `y` plus the adapter's correction for input `x`, times `gain` (channels,) where y is scaled by one."""
        delta = None if self.adapters is None else self.adapters.delta(slot, site, x)
        if delta is None:
            return y
        return y + (delta if gain is None else gain.to(delta.dtype) * delta)

    def show(self, tap: str, x: Tensor) -> None:
        """Let the observer see `x`."""
        if self.observer is not None:
            self.observer.see(tap, x)


def tap_of(weight_name: str) -> str:
    """Name the tap that sees the input of a matrix: q, k and v share one, the tied embedding is the head's.

    blocks.3.attn.c_k.weight -> blocks.3.attn, blocks.3.mlp.proj.weight -> blocks.3.mlp.proj, tok_emb.weight -> head;
    of two thin matrices, blocks.3.mlp.fc.down.weight -> blocks.3.mlp.fc, its partner up -> blocks.3.mlp.fc.up.
    """
    if weight_name in ("tok_emb.weight", "head.weight"):
        return "head"
    path, matrix = weight_name.removesuffix(".weight").rsplit(".", 1)
    return f"{path}.{matrix}" if matrix in ("proj", "up") else path
