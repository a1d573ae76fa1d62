"""Linear, squared leaky ReLU, linear in all its ways, against the formula in float64."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from golf.kernels import square_mlp, square_mlp_gemm
from golf.kernels.jit import HAS_TRITON
from golf.kernels.square_mlp import FASTEST, MATMUL, Ways, fused_square_mlp, plain_square_mlp, square_mlp_by, ways_for
from golf.kernels.square_mlp_gemm import BACKWARD_TILES, FORWARD_TILES
from tests.kernels.test_norm import drop

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(3, 7, 13, 423, 11), (1, 5, 3, 32, 1), (2, 33, 64, 65, 9), (1, 1, 1, 1, 1)]  # B, T, C, F, outputs
SLOPES = [0.5, 0.0, -0.3, 1.0]
TILED = (1, 145, 80, 272, 96)  # of tokens, hidden units and steps, two tiles each, the second not a whole one
SMALL = (1, 70, 32, 80, 48)
BOTH_MATMUL = Ways(MATMUL, MATMUL)
BOTH_FLOAT32 = Ways("float32", "float32")
HALF_WAYS = [Ways(one, "wide") for one in FORWARD_TILES if one != "float32"]
HALF_WAYS += [Ways("whole", other) for other in BACKWARD_TILES if other not in ("float32", "wide")]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="no Triton on this platform")
Shape = tuple[int, int, int, int, int]
Form = partial[tuple[Tensor, Tensor]]  # of n, fc and proj


class Given(NamedTuple):
    """Random float32 inputs, or what became of them."""

    n: Tensor
    fc: Tensor
    proj: Tensor
    weight: Tensor  # the gradient that arrives

    def leaves(self, dtype: torch.dtype) -> "Given":
        """Round to a dtype, ask for gradients."""
        n, fc, proj, weight = (x.detach().to(dtype) for x in self)
        return Given(n.requires_grad_(), fc.requires_grad_(), proj.requires_grad_(), weight)


def given(shape: Shape) -> Given:
    batch, tokens, dim, width, outputs = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, tokens, dim), (width, dim), (outputs, width), (batch, tokens, outputs)]
    n, fc, proj, weight = (torch.randn(size, generator=generator).to(DEVICE) for size in sizes)
    return Given(n, fc / dim**0.5, proj / width**0.5, weight)


def formula(n: Tensor, fc: Tensor, proj: Tensor, *, negative_slope: float) -> tuple[Tensor, Tensor]:
    """Return the output and hidden in float64."""
    z = torch.einsum("btc,fc->btf", n.double(), fc.double())
    hidden = z.clamp_min(0).square() + (negative_slope * z.clamp_max(0)).square()
    return torch.einsum("btf,of->bto", hidden, proj.double()), hidden


def outcome(form: Form, case: Given) -> list[Tensor]:
    """Return the output, hidden and the gradients of n, fc and proj."""
    y, hidden = form(case.n, case.fc, case.proj)
    return [y.detach(), hidden.detach(), *torch.autograd.grad(y, case[:3], case.weight.to(y.dtype))]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], rtol: float = 1e-5) -> None:
    """Compare each number, to a relative error or that of its tensor's root mean square."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        size = float(other.double().square().mean().sqrt()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=rtol * size)


def by(ways: Ways, slope: float = 0.5) -> Form:
    return partial(square_mlp_by, ways, negative_slope=slope)


def fused(slope: float = 0.5) -> Form:
    return partial(fused_square_mlp, negative_slope=slope)


def exact(slope: float = 0.5) -> Form:
    return partial(formula, negative_slope=slope)


def plain(slope: float = 0.5) -> Form:
    return partial(plain_square_mlp, negative_slope=slope)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_the_plain_form_and_its_gradients_are_the_formulas(shape: Shape, slope: float) -> None:
    case = given(shape).leaves(torch.float32)
    assert_near(outcome(plain(slope), case), outcome(exact(slope), case))


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", SLOPES)
def test_the_fused_form_and_its_gradients_are_the_formulas(shape: Shape, slope: float) -> None:
    case = given(shape).leaves(torch.float32)
    assert_near(outcome(fused(slope), case), outcome(exact(slope), case))


@needs_triton
@pytest.mark.parametrize("slope", SLOPES)
def test_tiled_float32_products_are_the_formulas(slope: float) -> None:
    case = given(SMALL).leaves(torch.float32)
    assert_near(outcome(by(BOTH_FLOAT32, slope), case), outcome(exact(slope), case))


@needs_triton
@pytest.mark.parametrize("ways", HALF_WAYS, ids="-".join)
def test_tiles_of_any_cut_give_the_formulas_numbers(ways: Ways) -> None:
    case = given(TILED).leaves(torch.bfloat16)
    assert_near(outcome(by(ways), case), outcome(exact(), case.leaves(torch.float64)), rtol=2**-6)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ways", [BOTH_MATMUL, FASTEST], ids="-".join)
def test_the_fused_error_is_at_most_twice_the_plain_forms(ways: Ways, dtype: torch.dtype) -> None:
    case = given(TILED).leaves(dtype)
    reference = outcome(exact(), case.leaves(torch.float64))
    for right, one, other in zip(reference, outcome(plain(), case), outcome(by(ways), case), strict=True):
        assert other.dtype == dtype
        allowed, found = (float((x.double() - right).norm() / right.norm()) for x in (one, other))
        assert 0 < found <= 2 * allowed


@needs_triton
def test_tiles_square_the_sums_before_they_are_rounded() -> None:
    case = given(SMALL).leaves(torch.bfloat16)
    (_, hidden), (_, right) = by(FASTEST)(*case[:3]), exact()(*case[:3])
    torch.testing.assert_close(hidden.double(), right, rtol=1.001 * 2**-8, atol=1e-7)  # one rounding


@needs_triton
@pytest.mark.parametrize("form", [plain(), fused(), by(BOTH_FLOAT32)], ids=["plain", "fused", "tiled"])
def test_a_stream_is_added_in_its_place(form: Form) -> None:
    case = given(SMALL).leaves(torch.float32)
    leaf = torch.randn_like(case.weight).requires_grad_()
    stream = leaf * 3
    y, hidden = form(*case[:3], onto=stream)
    right, *others = outcome(exact(), case)
    found = [y.detach(), torch.autograd.grad(y, leaf, case.weight, retain_graph=True)[0], hidden]
    found += torch.autograd.grad(y, case[:3], case.weight)
    assert_near(found, [leaf.detach() * 3 + right, 3 * case.weight, *others])
    assert (y is stream) == (form.func is not plain_square_mlp)


@needs_triton
def test_a_stream_that_may_not_be_overwritten_is_added_to_a_tensor_of_its_own() -> None:
    case = given(SMALL).leaves(torch.float32)
    leaf = torch.randn_like(case.weight).requires_grad_()
    before = leaf.detach().clone()
    y, _ = fused()(*case[:3], onto=leaf)
    right, _, *gradients = outcome(exact(), case)
    assert_near([y.detach()], [before + right])
    assert torch.equal(leaf, before)
    assert_near(torch.autograd.grad(y, [leaf, *case[:3]], case.weight), [case.weight, *gradients])


@needs_triton
def test_a_stream_alone_may_want_the_gradient() -> None:
    case = given(SMALL)
    leaf = torch.randn_like(case.weight).requires_grad_()
    y, _ = fused()(*case[:3], onto=leaf * 1)
    assert torch.equal(torch.autograd.grad(y, leaf, case.weight)[0], case.weight)


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
@pytest.mark.parametrize("arrangement", ["transposed", "expanded", "strided"])
def test_the_gradient_that_arrives_may_lie_anyhow(arrangement: str, ways: Ways) -> None:
    case = given(SMALL).leaves(torch.float32)
    weight = {
        "transposed": case.weight.mT.contiguous().mT,
        "expanded": case.weight[:1, :1, :1].expand_as(case.weight),
        "strided": case.weight.repeat(1, 1, 2)[..., ::2],
    }[arrangement]
    assert not weight.is_contiguous()
    case = case._replace(weight=weight)
    assert_near(outcome(by(ways), case), outcome(exact(), case))


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
def test_inputs_may_lie_anyhow(ways: Ways) -> None:
    case = given((2, 35, 32, 80, 16))
    n, fc, proj = case.n.repeat_interleave(2, -1)[..., ::2], case.fc.mT.contiguous().mT, case.proj.repeat(1, 2)[:, 80:]
    assert not any(x.is_contiguous() for x in (n, fc, proj))
    case = Given(n.requires_grad_(), fc.requires_grad_(), proj.requires_grad_(), case.weight)
    assert_near(outcome(by(ways), case), outcome(exact(), case))


@needs_triton
def test_tiled_inputs_need_not_start_at_16_bytes() -> None:
    case = given(SMALL)
    n, fc, proj, weight = (torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in case)
    assert n.data_ptr() % 16 == 4
    case = Given(n.requires_grad_(), fc.requires_grad_(), proj.requires_grad_(), weight)
    assert_near(outcome(by(BOTH_FLOAT32), case), outcome(exact(), case))


@needs_triton
def test_a_single_token_needs_no_batch() -> None:
    case = given((1, 1, 13, 423, 11))
    y, hidden = fused()(case.n[0, 0], case.fc, case.proj)
    right = exact()(*case[:3])
    assert_near([y, hidden], [x[0, 0] for x in right])


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
def test_the_signs_are_a_bit_a_hidden_unit(ways: Ways) -> None:
    n, fc, _, _ = given((1, 67, 16, 96, 16))
    n = n[0]
    signs = square_mlp._hidden_op(n, fc, 0.5, ways.forward)[1]
    bits = (signs[..., None] >> torch.arange(32, device=DEVICE)) & 1
    assert (signs.dtype, signs.shape) == (torch.int32, (67, 3))
    assert torch.equal(bits.flatten(1) == 1, n.double() @ fc.double().T < 0)


@needs_triton
def test_hidden_units_beyond_the_last_word_have_no_sign() -> None:
    n, fc, _, _ = given((1, 67, 16, 70, 5))
    signs = square_mlp._hidden_op(n[0], -fc.abs() * n[0, 0].sign(), 0.5, MATMUL)[1]
    assert signs[0].tolist() == [-1, -1, 2**6 - 1]  # of the first token all z are below zero


@needs_triton
def test_the_backward_keeps_the_input_hidden_and_a_bit_a_hidden_unit() -> None:
    case = given((1, 64, 32, 96, 16)).leaves(torch.bfloat16)
    kept: list[tuple[torch.dtype, tuple[int, ...]]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x.dtype, tuple(x.shape))), lambda x: x):
        by(BOTH_MATMUL)(*case[:3])
    halves = [(torch.bfloat16, shape) for shape in ((64, 32), (96, 32), (16, 96), (64, 96))]
    assert kept == [*halves, (torch.int32, (64, 3))]


@needs_triton
@pytest.mark.parametrize("form", [plain(), fused()])
def test_no_gradient_flows_through_hidden(form: Form) -> None:
    case = given(SHAPES[0]).leaves(torch.float32)
    y, hidden = form(*case[:3])
    assert (y.requires_grad, hidden.requires_grad) == (True, False)


@needs_triton
def test_no_zeros_stand_for_a_gradient_of_hidden() -> None:
    case = given(SHAPES[0]).leaves(torch.float32)
    y, _ = fused()(*case[:3])
    names: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]  # torch's own
        torch.autograd.grad(y, case[:3], case.weight)
    assert "golf.square_mlp_backward.default" in names
    assert [name for name in names if "zeros" in name or "fill" in name] == []


@needs_triton
def test_where_no_gradient_arrives_none_is_given() -> None:
    case = given(SHAPES[0]).leaves(torch.float32)
    drop(fused()(*case[:3])[0]).sum().backward()
    assert [x.grad for x in case[:3]] == [None] * 3


@needs_triton
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_the_gradients_that_are_wanted_are_computed(
    wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = given(SHAPES[0]).leaves(torch.float32)
    expected = outcome(exact(), case)[2:]
    inputs = [x if index in wanted else x.detach() for index, x in enumerate(case[:3])]
    y, _ = fused()(*inputs)
    counts: list[int] = []
    compute = square_mlp._backward_op

    def counted(*arguments: Any) -> list[Tensor]:
        found = compute(*arguments)
        counts.append(len(found))
        return list(found)

    monkeypatch.setattr(square_mlp, "_backward_op", counted)
    found = torch.autograd.grad(y, [inputs[index] for index in wanted], case.weight)
    assert counts == [len(wanted)]
    assert_near(found, [expected[index] for index in wanted])


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
def test_where_nothing_arrives_there_is_neither_value_nor_slope(ways: Ways) -> None:
    case = given(SMALL)
    found = outcome(by(ways), case._replace(n=torch.zeros_like(case.n)).leaves(torch.float32))
    assert [float(x.abs().max()) for x in found] == [0.0] * 5


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
@pytest.mark.parametrize("shape", [(0, 5, 32, 80, 16), (2, 0, 32, 80, 16)])
def test_no_tokens_give_no_values_and_gradients_of_zero(
    shape: Shape, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, kernels in (
        (square_mlp, ("_square", "_slope")),
        (square_mlp_gemm, ("_square_product", "_slope_product")),
    ):
        for kernel in kernels:
            monkeypatch.setattr(place, kernel, None)  # is not launched
    found = outcome(by(ways), given(shape).leaves(torch.float32))
    assert [x.numel() for x in found[:3]] == [0, 0, 0]
    assert [float(x.abs().sum()) for x in found[3:]] == [0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 20 GB")
@pytest.mark.parametrize("ways", [BOTH_MATMUL, FASTEST, Ways("pair", "pair")], ids="-".join)
def test_hidden_units_beyond_two_to_the_31_are_right(ways: Ways) -> None:
    case = given((1, 2**20 + 3, 64, 2048, 64)).leaves(torch.bfloat16)
    found = outcome(by(ways), case)
    tail = Given(case.n[:, -3:], case.fc, case.proj, case.weight[:, -3:]).leaves(torch.float64)
    expected = outcome(exact(), tail)
    assert_near([x[:, -3:] for x in found[:3]], expected[:3], rtol=2**-6)


@needs_triton
@pytest.mark.parametrize("ways", [BOTH_MATMUL, BOTH_FLOAT32], ids="-".join)
def test_the_operators_pass_torchs_checks(ways: Ways) -> None:
    case = given((1, 5, 16, 48, 16)).leaves(torch.float32)
    n, fc, proj, weight = (x.detach() for x in case)
    n, dy = n[0], weight[0]
    torch.library.opcheck(square_mlp._hidden_op, (n, fc, 0.5, ways.forward))
    hidden, signs = square_mlp._hidden_op(n, fc, 0.5, ways.forward)
    saved = (dy, n, fc, proj, hidden, signs, 0.5, ways.backward)
    torch.library.opcheck(square_mlp._backward_op, (*saved, [True, False, True]))


@needs_triton
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_second_derivative_is_refused(index: int) -> None:
    case = given((1, 3, 13, 42, 11)).leaves(torch.float32)
    y, _ = fused()(*case[:3])
    (first,) = torch.autograd.grad(y.square().sum(), case[index], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("dtype", "sizes", "ways"),
    [
        (torch.bfloat16, (2048, 512, 512, 2048), FASTEST),
        (torch.float16, (16, 16, 16, 16), FASTEST),
        (torch.float32, (2048, 512, 512, 2048), BOTH_MATMUL),
        (torch.bfloat16, (2040, 512, 512, 2040), BOTH_MATMUL),
        (torch.bfloat16, (2048, 500, 500, 2048), BOTH_MATMUL),
        (torch.bfloat16, (2048, 0, 0, 2048), BOTH_MATMUL),
    ],
)
def test_the_fastest_way_is_taken_where_it_can_be(dtype: torch.dtype, sizes: Sequence[int], ways: Ways) -> None:
    assert ways_for(dtype, sizes) == ways


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fused_form_takes_the_way_of_its_inputs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Ways] = []
    monkeypatch.setattr(square_mlp, "square_mlp_by", lambda ways, *_, **__: taken.append(ways))
    fused()(*(x.to(dtype) for x in given(TILED)[:3]))
    assert taken == [FASTEST if dtype == torch.bfloat16 else BOTH_MATMUL]


@pytest.mark.parametrize(
    ("ways", "dtype", "shape", "message"),
    [
        (Ways("narrow", MATMUL), torch.bfloat16, SMALL, "no way 'narrow'; there are matmul, whole"),
        (Ways(MATMUL, "whole"), torch.bfloat16, SMALL, "no way 'whole'; there are matmul, wide"),
        (Ways("wide", MATMUL), torch.float32, SMALL, "'wide' does not do torch.float32"),
        (Ways(MATMUL, "float32"), torch.bfloat16, SMALL, "'float32' does not do torch.bfloat16"),
        (Ways("wide", MATMUL), torch.bfloat16, (1, 5, 24, 80, 16), "multiples of 16"),
        (Ways(MATMUL, "wide"), torch.bfloat16, (1, 5, 16, 88, 16), "multiples of 16"),
        (Ways(MATMUL, "wide"), torch.bfloat16, (1, 5, 16, 80, 8), "multiples of 16"),
    ],
)
def test_a_way_that_does_not_fit_is_refused(ways: Ways, dtype: torch.dtype, shape: Shape, message: str) -> None:
    case = given(shape).leaves(dtype)
    with pytest.raises(ValueError, match=message):
        by(ways)(*case[:3])


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"are torch\.float64, torch\.float64"):
        fused()(*(x.double() for x in given(SHAPES[0])[:3]))


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("n", torch.zeros(3, 7, 13, dtype=torch.float64), "float64"),
        ("fc", torch.zeros(423, 13, dtype=torch.bfloat16), "float32, torch.bfloat16"),
        ("proj", torch.zeros(11, 423, dtype=torch.float16), "float32, torch.float16"),
        ("n", torch.zeros(3, 7, 14), r"\(3, 7, 14\)"),
        ("n", torch.zeros(()), r"are \(\)"),
        ("fc", torch.zeros(423), r"\(423,\)"),
        ("fc", torch.zeros(422, 13), r"\(422, 13\)"),
        ("proj", torch.zeros(11, 424), r"\(11, 424\)"),
        ("proj", torch.zeros(423), r"\(423,\)"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, replacement: Tensor, message: str) -> None:
    case = given(SHAPES[0])._replace(**{name: replacement})
    with pytest.raises(ValueError, match=message):
        fused()(*case[:3])
