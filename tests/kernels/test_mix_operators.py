"""The fused sums of streams as operators: what they save, write, share and refuse, and that they compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.kernels import mix
from golf.kernels.jit import HAS_TRITON
from golf.kernels.mix import fused_mix, fused_mix_norm, plain_mix_norm
from tests.kernels.test_mix import MIX, MIX_NORM, Form, arriving, check, forms, gradients, inputs
from tests.kernels.test_norm import SCALE, drop, random

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")


@needs_triton
@forms
def test_where_no_gradient_arrives_none_is_given(form: Form) -> None:
    streams, weights = inputs(1, 2)
    for fixed in (weights, weights.detach()):
        torch.autograd.backward([drop(result).sum() for result in form.fused(streams, fixed)])
    assert [leaf.grad for leaf in (*streams, weights)] == [None] * 3


@needs_triton
@pytest.mark.parametrize("form", [MIX, MIX_NORM], ids=lambda form: form.name)
def test_only_the_gradients_that_are_needed_are_written(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    backward = mix._mix_backward

    def watch(*arguments: Any) -> list[Tensor]:
        found: list[Tensor] = backward(*arguments)
        asked.append((arguments[-1], len(found)))
        return found

    monkeypatch.setattr(mix, "_mix_backward", watch)
    for needed in ([True, False, False, True], [False, True, True, False], [False, False, False, True]):
        streams, weights = inputs(1, 3)
        for leaf, wanted in zip((*streams, weights), needed, strict=True):
            leaf.requires_grad_(wanted)
        leaves = [leaf for leaf, wanted in zip((*streams, weights), needed, strict=True) if wanted]
        results = [
            [result for result in function(streams, weights) if result.requires_grad]
            for function in (form.fused, form.exact)
        ]
        found, expected = (torch.autograd.grad(result, leaves, arriving(result)) for result in results)
        check(found, expected)
        assert asked.pop() == (needed, sum(needed))


@needs_triton
def test_fixed_weights_keep_no_streams() -> None:
    streams, weights = inputs(1, 3)
    kept = []
    for given in (weights, weights.detach()):
        packed: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda packed: packed):
            fused_mix(streams, given)
        kept.append(len(packed))
    assert kept == [4, 1]


@needs_triton
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_sums_are_operators(outputs: int) -> None:
    streams, weights = inputs(outputs, 2, (3, 5), torch.bfloat16)
    torch.library.opcheck(mix._mix, (streams, weights))
    fixed, other = [x.detach() for x in streams], weights.detach()
    nothing: list[Tensor | None] = []
    for wanted in ([True, True, True], [False, True, False]):
        arguments = (fixed, other, [fixed[0], None][:outputs], None, None, nothing, 1.0, wanted)
        torch.library.opcheck(mix._mix_backward, arguments)


@needs_triton
def test_the_sums_with_norms_are_operators() -> None:
    streams, weights = inputs(1, 2, (3, 5), torch.bfloat16)
    fixed, other = [x.detach() for x in streams], weights.detach()
    torch.library.opcheck(mix._mix_norm, (fixed, other[0], SCALE))
    returned: list[list[Tensor | None]] = [[], [None, fixed[1]], [*fixed]]
    for handed_on, wanted in zip(returned, ([True, False, True], [False, True, False], [True] * 3), strict=True):
        arguments = (fixed, other, [None], fixed[0], random((3,)), handed_on, SCALE, wanted)
        torch.library.opcheck(mix._mix_backward, arguments)


@needs_triton
@forms
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_the_fused_forms_compile_as_one_graph(form: Form) -> None:
    streams, weights = inputs(1, 2)
    compiled = torch.compile(form.fused, fullgraph=True, backend="aot_eager")
    found, expected = (gradients(function, streams, weights) for function in (compiled, form.fused))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@needs_triton
@forms
def test_second_derivatives_are_refused(form: Form) -> None:
    streams, weights = inputs(1, 2)
    total = sum(result.pow(3).sum() for result in form.fused(streams, weights))
    assert isinstance(total, Tensor)
    (first,) = torch.autograd.grad(total, streams[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered|once_differentiable"):
        first.sum().backward()


def test_what_does_not_fit_is_refused() -> None:
    streams, weights = inputs(2, 4)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        fused_mix([x.double() for x in streams], weights)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        fused_mix(streams, weights.double())
    with pytest.raises(ValueError, match="1 to 4 streams and 1 to 2 outputs"):
        fused_mix([*streams, streams[0]], weights)
    with pytest.raises(ValueError, match="1 to 4 streams and 1 to 2 outputs"):
        fused_mix(streams, weights.repeat(2, 1, 1))
    with pytest.raises(ValueError, match=r"weights of shape \(2, 4, 8\) do not fit \(2, 4, 9\)"):
        fused_mix(streams, weights[..., :8])
    with pytest.raises(ValueError, match=r"weights of shape \(1, 2, 9\) do not fit \(1, 4, 9\)"):
        fused_mix_norm(streams, weights[0, :2], scale=1.0)
    with pytest.raises(
        ValueError, match=r"one shape and dtype, not \(3, 5, 9\) torch.float32, \(3, 5, 9\) torch.float16"
    ):
        fused_mix_norm((streams[0], streams[1].half()), weights[0, :2], scale=1.0)
    with pytest.raises(ValueError, match="one shape and dtype"):
        fused_mix([*streams[:3], streams[3].half()], weights)
    with pytest.raises(ValueError, match=r"one shape and dtype, not \(3, 5, 9\) torch.float32, \(5, 9\)"):
        fused_mix_norm((streams[0], streams[1][0]), weights[0, :2], scale=1.0)


def chain(mix_norm: Callable[..., tuple[Tensor, ...]], streams: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Take a stream through three visits that hand on what they mix: x0 to the next visit, the stream to the end."""
    x, x0 = streams
    waiting = []
    for _ in range(3):
        u, n, x, x0 = mix_norm((x, x0), weights[0], scale=SCALE)
        waiting.append(x)
        x = u + n
    return [x + sum(waiting[1:])]


@needs_triton
def test_gradients_of_a_stream_that_is_handed_on_are_added_up_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[list[bool]] = []
    backward = mix._mix_backward

    def watch(*arguments: Any) -> list[Tensor]:
        added.append([gradient is not None for gradient in arguments[5]])
        return list(backward(*arguments))

    monkeypatch.setattr(mix, "_mix_backward", watch)
    streams, weights = inputs(1, 2)
    (found,), (expected,) = chain(fused_mix_norm, streams, weights), chain(plain_mix_norm, streams, weights)
    upstream = random(tuple(found.shape), seed=5)
    pairs = (torch.autograd.grad(result, (*streams, weights), upstream) for result in (found, expected))
    check(*pairs)
    # The last visit first: nothing reads x0 after it, nor the first visit's stream.
    assert added == [[True, False], [True, True], [False, True]]


@needs_triton
def test_a_stream_without_a_gradient_has_none_when_it_is_handed_on() -> None:
    streams, weights = inputs(1, 2)
    _, _, same, fixed = fused_mix_norm((streams[0], streams[1].detach()), weights[0], scale=SCALE)
    assert same.requires_grad
    assert not fixed.requires_grad
    assert torch.equal(same, streams[0])
    assert torch.equal(fixed, streams[1])


@needs_triton
def test_a_stream_that_comes_twice_gets_both_gradients() -> None:
    (x, _), weights = inputs(1, 2)
    results = [mix_norm((x, x), weights[0], scale=SCALE) for mix_norm in (fused_mix_norm, plain_mix_norm)]
    found, expected = (torch.autograd.grad(result, (x, weights), arriving(result)) for result in results)
    check(found, expected)
