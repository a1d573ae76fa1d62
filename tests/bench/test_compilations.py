"""What torch.compile and Triton build inside a block is counted there, and only there."""

import pytest
import torch
from torch import Tensor

from golf.bench.compilations import watched
from golf.kernels.jit import HAS_TRITON


def double(x: Tensor) -> Tensor:
    return x * 2


def test_a_graph_and_its_recompile_count() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(double, backend="eager", dynamic=False)
    with watched() as first:
        compiled(torch.ones(3))
        assert first.count == 1
        compiled(torch.ones(3))
        assert first.count == 1
    with watched() as second:
        compiled(torch.ones(3))
        assert second.count == 0
        compiled(torch.ones(423))
        assert second.count == 1
    assert str(second) == "1 graphs and 0 Triton kernels"


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton here")
def test_a_kernel_counts_by_name_and_whoever_listened_before_still_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton import knobs

    heard: list[str] = []
    listener = lambda *, src, metadata, cache_hit: heard.append(f"{src} {metadata['name']} {cache_hit}")  # noqa: E731
    monkeypatch.setattr(knobs.compilation, "listener", listener)
    with watched() as found:
        for name in ("_b", "_a", "_b"):
            knobs.compilation.listener(src="source", metadata={"name": name}, cache_hit=True)
    knobs.compilation.listener(src="source", metadata={"name": "_after"}, cache_hit=False)
    assert found.count == 3
    assert str(found) == "0 graphs and 3 Triton kernels (_a, _b)"
    assert heard == ["source _b True", "source _a True", "source _b True", "source _after False"]


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton here")
def test_the_listener_is_taken_away_even_if_the_block_fails() -> None:
    from triton import knobs

    before = knobs.compilation.listener
    with pytest.raises(ValueError, match="inside"), watched():
        raise ValueError("inside")
    assert knobs.compilation.listener is before
