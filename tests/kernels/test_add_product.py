"""A product added to a stream in its place: values, gradients, and when the stream is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.kernels.add_product import fused_add_product, plain_add_product
from tests.kernels.test_norm import DEVICE, drop, error, random

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = [(2, 13), (3, 5, 2), (1,), (), (0,), (2, 0)]  # of the leading dimensions


def leaves(leading: tuple[int, ...] = (2, 13), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return a stream of 23 channels, what is multiplied, of 11, and the matrix."""
    shapes = ((*leading, 23), (*leading, 11), (23, 11))
    return [random(shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


def outcome(form: Form, given: list[Tensor]) -> list[Tensor]:
    """Return the sum, onto a stream that may be spent, and the gradients of all three leaves."""
    leaf, y, weight = given
    total = form(leaf * 1, y, weight)
    incoming = random(tuple(total.shape), seed=9).bfloat16().to(total.dtype)
    return [total.detach(), *torch.autograd.grad(total, given, incoming)]


def test_the_plain_form_adds_the_product() -> None:
    x, y, weight = leaves()
    torch.testing.assert_close(plain_add_product(x, y, weight), x + torch.einsum("btf,cf->btc", y, weight))


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # a thread of autograd's that has started no kernel yet
@pytest.mark.parametrize("leading", SHAPES)
def test_values_and_gradients_are_the_plain_ones(leading: tuple[int, ...]) -> None:
    given = leaves(leading)
    torch.testing.assert_close(outcome(fused_add_product, given), outcome(plain_add_product, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_of_halves_are_at_most_twice_the_plain_ones(dtype: torch.dtype) -> None:
    given = leaves((2, 150), dtype)
    exact = outcome(plain_add_product, [x.detach().double().requires_grad_() for x in given])
    for fused, plain, right in zip(
        *(outcome(f, given) for f in (fused_add_product, plain_add_product)), exact, strict=True
    ):
        assert fused.dtype == plain.dtype == dtype
        assert error(fused, right) <= 2 * error(plain, right)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_sum_takes_the_streams_place(gradients: bool) -> None:
    leaf, y, weight = leaves()
    with torch.set_grad_enabled(gradients):
        x = leaf * 2
        place = x.data_ptr()
        total = fused_add_product(x, y, weight)
    assert total is x
    assert total.data_ptr() == place
    assert total.requires_grad == gradients
    torch.testing.assert_close(total, plain_add_product(leaf * 2, y, weight))


def test_one_sum_may_be_added_to_again() -> None:
    def twice(form: Form) -> Form:
        return lambda x, y, weight: form(form(x, y, weight), 2 * y, weight)

    given = leaves()
    torch.testing.assert_close(outcome(twice(fused_add_product), given), outcome(twice(plain_add_product), given))


UNFIT: dict[str, Callable[[Tensor], Tensor]] = {
    "a leaf": lambda leaf: leaf,
    "a view": lambda leaf: (leaf * 1).view(2, 13, 23),
    "not contiguous": lambda leaf: leaf.mT.contiguous().mT * 1,
    "another dtype": lambda leaf: leaf.float() * 1,
    "one row for all": lambda leaf: leaf[0, 0] * 1,
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", UNFIT)
def test_a_stream_that_may_not_be_overwritten_is_not(name: str, gradients: bool) -> None:
    leaf, y, weight = leaves()
    with torch.set_grad_enabled(gradients):
        x = UNFIT[name](leaf)
        before = x.detach().clone()
        total = fused_add_product(x, y, weight)
        assert torch.equal(total, plain_add_product(x, y, weight))
    assert torch.equal(x, before)
    if gradients:
        incoming = random(tuple(total.shape), seed=9).to(total.dtype)
        found, expected = (
            torch.autograd.grad(result, (leaf, y, weight), incoming)
            for result in (total, plain_add_product(UNFIT[name](leaf), y, weight))
        )
        torch.testing.assert_close(found, expected)


def test_the_streams_gradient_is_the_sums_unwritten() -> None:
    leaf, y, weight = leaves()
    arrived: list[Tensor] = []
    x = leaf * 1
    x.register_hook(arrived.append)  # before the sum takes its place
    incoming = random((2, 13, 23)).double()
    fused_add_product(x, y, weight).backward(incoming)
    assert [gradient.data_ptr() for gradient in arrived] == [incoming.data_ptr()]


def test_the_gradient_of_the_sum_is_not_changed_by_what_is_added_to_the_streams() -> None:
    def total(form: Form, given: list[Tensor]) -> Tensor:
        leaf, y, weight = given
        u = form(leaf * 1, y * leaf[..., :11], weight)
        v = form(u.sin(), y, weight)  # its gradient joins others of u
        return (v * u).sum() + (u * leaf).sum()

    given = leaves()
    found, expected = (torch.autograd.grad(total(f, given), given) for f in (fused_add_product, plain_add_product))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(needed: int) -> None:
    given = [x if index == needed else x.detach() for index, x in enumerate(leaves())]
    x, y, weight = given[0] * 1, *given[1:]
    fused_add_product(x, y, weight).sum().backward()
    assert [x.grad is not None for x in given] == [index == needed for index in range(3)]


@pytest.mark.parametrize("arrangement", ["transposed", "expanded"])
def test_factors_and_incoming_gradients_may_lie_anyhow(arrangement: str) -> None:
    leaf, y, weight = leaves()
    incoming = random((2, 13, 23), seed=4).double()
    if arrangement == "transposed":
        y, weight, incoming = (x.detach().mT.contiguous().mT.requires_grad_() for x in (y, weight, incoming))
    else:
        y, incoming = y.detach()[:, :1].expand(2, 13, 11).requires_grad_(), incoming[:1, :1, :1].expand(2, 13, 23)
    found, expected = (
        torch.autograd.grad(form(leaf * 1, y, weight), (leaf, y, weight), incoming)
        for form in (fused_add_product, plain_add_product)
    )
    torch.testing.assert_close(found, expected)


def test_a_stream_that_autograd_kept_is_told() -> None:
    leaf, y, weight = leaves()
    x = leaf * 1
    kept = x.square()
    total = fused_add_product(x, y, weight) + kept
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.sum().backward()


def test_where_no_gradient_arrives_none_is_given() -> None:
    given = leaves()
    drop(fused_add_product(given[0] * 1, *given[1:])).sum().backward()
    assert [x.grad for x in given] == [None] * 3


def test_the_second_derivative_is_refused() -> None:
    leaf, y, weight = leaves()
    (first,) = torch.autograd.grad(fused_add_product(leaf * 1, y, weight).square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # the same
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    def twice(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return fused_add_product(fused_add_product(x * 2, y, weight), y, weight)

    torch.compiler.reset()
    given = leaves(dtype=torch.float32)
    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    found, expected = (outcome(form, given) for form in (compiled, twice))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
def test_a_recorded_sum_starts_anew_with_every_replay() -> None:
    leaf, y, weight = (x.detach() for x in leaves(dtype=torch.bfloat16))
    expected = fused_add_product(leaf * 1, y, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = fused_add_product(leaf * 1, y, weight)
    for _ in range(2):
        graph.replay()
        assert torch.equal(total, expected)
    assert total.device.type == DEVICE.type
