"""Every FlashAttention that is installed, on a GPU, against one softmax a segment in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.errors import EnvironmentUnfitError
from golf.kernels.attention import attention
from golf.kernels.flash import AttentionChoice, choose_attention
from tests.kernels.test_attention import segment_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # a package that warns when it is imported would count as broken
]
BOUNDS = [0, 1, 4, 427, 554, 682, 811, 2859, 3072]  # around the tiles' 128 rows, one as long as a document may be
MANY = [*range(0, 3072, 11), 3072]  # more than 256 segments: FlashAttention-4 then finds them by another kernel
Attention = Callable[..., Tensor]


@pytest.fixture(params=["fa4", "fa3", "varlen"])
def flash(request: pytest.FixtureRequest) -> Attention:
    wanted: AttentionChoice = request.param
    try:
        return choose_attention(torch.device("cuda"), torch.bfloat16, wanted=wanted).function
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))


def leaves(device: str = "cuda", *, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """3072 tokens of 8 query and 4 key/value heads of 64, which are slices of one row, with gradients."""
    heads = torch.randn(1, 3072, 16, 64, generator=torch.Generator().manual_seed(0)).bfloat16().to(device, dtype)
    q, k, v = (x.requires_grad_() for x in heads.split([8, 4, 4], dim=2))
    return q, k, v


def run(form: Attention, bounds: list[int], *, padding: int = 7) -> tuple[Tensor, ...]:
    """Return the output and the gradients of q, k and v, for bounds right-padded with the number of tokens."""
    q, k, v = given = leaves()
    cu_seqlens = torch.tensor(bounds + [bounds[-1]] * padding, dtype=torch.int32, device="cuda")
    out = form(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048)
    return out, *torch.autograd.grad(out, given, incoming(out))


def incoming(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like.device, like.dtype)


def exact(bounds: list[int]) -> tuple[Tensor, ...]:
    q, k, v = given = leaves("cpu", dtype=torch.float64)
    out = segment_attention(q, k, v, bounds)
    gradients = torch.autograd.grad(out, given, incoming(out.bfloat16()).double())
    return out.detach(), *gradients


def distances(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    pairs = zip(found, expected, strict=True)
    return [float((one.detach().cpu().double() - other).norm() / other.norm()) for one, other in pairs]


@pytest.mark.parametrize("bounds", [BOUNDS, MANY], ids=["documents", "many"])
def test_values_and_gradients_are_as_near_to_the_formula_as_the_padded_form(
    flash: Attention, bounds: list[int]
) -> None:
    expected = exact(bounds)
    allowed = [2 * distance for distance in distances(run(attention, bounds), expected)]
    found = distances(run(flash, bounds), expected)
    assert all(one < most for one, most in zip(found, allowed, strict=True)), (found, allowed)


def test_padding_changes_no_bit_of_the_output(flash: Attention) -> None:
    assert torch.equal(run(flash, BOUNDS, padding=0)[0], run(flash, BOUNDS, padding=55)[0])


def test_rows_of_a_batch_are_as_one_long_row(flash: Attention) -> None:
    cu_seqlens = torch.tensor([0, 1024, 2048, 3072], dtype=torch.int32, device="cuda")
    long = flash(*leaves(), cu_seqlens=cu_seqlens, max_seqlen=2048)
    out = flash(*(x.unflatten(1, (3, 1024))[0] for x in leaves()), cu_seqlens=cu_seqlens, max_seqlen=2048)
    assert torch.equal(out.view_as(long), long)


def test_an_expanded_incoming_gradient_is_as_its_copy(flash: Attention) -> None:
    q, k, v = given = leaves()
    cu_seqlens = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    out = flash(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048)
    row = incoming(out)[:, :1, :1]
    found = torch.autograd.grad(out, given, row.expand_as(out), retain_graph=True)
    expected = torch.autograd.grad(out, given, row.expand_as(out).contiguous())
    for one, other in zip(found, expected, strict=True):  # atomic additions: not the same bits
        assert float((one - other).float().norm() / other.float().norm()) < 1e-2


def test_the_host_does_not_wait_for_the_gpu(flash: Attention) -> None:
    q, k, v = given = leaves()
    cu_seqlens = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    torch.autograd.grad(flash(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048).sum(), given)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(flash(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048).sum(), given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_is_part_of_one_compiled_graph(flash: Attention) -> None:
    q, k, v = given = leaves()
    cu_seqlens = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    compiled = torch.compile(lambda q, k, v: flash(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048), fullgraph=True)
    out, expected = compiled(q, k, v), flash(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=2048)
    assert torch.equal(out, expected)
    pairs = zip(torch.autograd.grad(out.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True)
    for one, other in pairs:  # atomic additions: not the same bits
        assert float((one - other).float().norm() / other.float().norm()) < 1e-2
