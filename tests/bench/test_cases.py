"""Every case moves the bytes and does the arithmetic that it says, and its outputs have gradients for all inputs."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from golf.bench.case import Case, Draw, Inputs, Sizes
from golf.bench.kernels import build_cases
from golf.kernels.table import PLAIN
from tests.bench.test_flop import products
from tests.pico import RECORD_PARTS, pico_recipe

N = 423
CPU = torch.device("cpu")
SIZES = Sizes(pico_recipe(*RECORD_PARTS).model, N, 16, torch.float32, CPU)
CASES = {case.name: case for case in build_cases(SIZES)}
# What a backward reads again besides the outputs' gradients; "y" is the first output, as large as that.
KEPT = {
    "attention": ("q", "k", "v", "y"),
    "project": ("n", "0", "1", "2", "3"),
    "turn heads": ("q", "k"),
    "exclude": ("y", "v", "gates"),
    "scale rows": ("weight",),
    "square mlp": ("n", "fc", "proj"),
    "norm": ("y",),
    "stream norm": ("y",),
    "mix 2 to 1": ("stream 0", "stream 1"),
    "mix 4 to 2": ("stream 0", "stream 1", "stream 2", "stream 3"),
    "mix norm": ("stream 0", "stream 1"),
    "add product": ("y", "weight"),
    "cross-entropy": ("logits",),
    "head and cross-entropy": ("x", "weight"),
}
HIDDEN = 4 * N * 48  # bytes of the MLP's hidden layer, which is kept for observers and for the backward
TABLE = 4 * N * 4  # bytes of cosines and sines
EXTRA = {"square mlp": HIDDEN, "turn heads": TABLE}
PASSED = {"turn heads": {"v"}}  # what is handed on unread
TINY = {"weights", "gain"}  # parameters that do not grow with the tokens


def run(case: Case) -> tuple[Inputs, Sequence[Tensor]]:
    inputs = case.make(Draw(SIZES, torch.Generator().manual_seed(0)))
    return inputs, case.call(getattr(PLAIN, case.entry), inputs)


def size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_every_operation_of_the_table_has_a_case() -> None:
    tables = {name for name in PLAIN.__dataclass_fields__ if not name.endswith("description")}
    assert {case.entry for case in CASES.values()} == tables
    assert set(CASES) == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_a_forward_reads_its_inputs_and_writes_its_outputs(name: str) -> None:
    inputs, outputs = run(CASES[name])
    read = size([tensor for key, tensor in inputs.items() if key not in TINY | PASSED.get(name, set())])
    copied = 2 * size([inputs["x"]]) if name == "add product" else 0  # the stream that is spent
    handed_on = {id(x) for x in inputs.values()}  # is not written, and nothing is written twice
    new = {id(y): y for y in outputs if id(y) not in handed_on}
    written = 0 if "entropy" in name else size([*new.values()])  # losses, one a token, do not count
    assert CASES[name].forward.bytes == read + written + EXTRA.get(name, copied)


@pytest.mark.parametrize("name", KEPT)
def test_a_backward_reads_what_it_needs_and_writes_the_gradients(name: str) -> None:
    inputs, outputs = run(CASES[name])
    gradients = [tensor for key, tensor in inputs.items() if key not in TINY]
    if name == "add product":
        gradients = gradients[1:]  # the stream's is the sum's
    kept = [outputs[0] if key == "y" and key not in inputs else inputs[key] for key in KEPT[name]]
    upstream = 0 if "entropy" in name else size(outputs)
    assert CASES[name].backward.bytes == upstream + size(kept) + size(gradients) + EXTRA.get(name, 0)


@pytest.mark.parametrize("name", [name for name in KEPT if name != "attention"])
def test_the_arithmetic_is_what_pytorch_counts(name: str) -> None:
    with FlopCounterMode(display=False) as forward:
        inputs, outputs = run(CASES[name])
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(outputs, list(inputs.values()), [torch.ones_like(y) for y in outputs])
    assert (CASES[name].forward.flop, CASES[name].backward.flop) == (products(forward), products(backward))


def test_the_segments_of_attention_are_documents_cut_at_the_greatest_length() -> None:
    seen: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        assert max_seqlen == 16
        seen.append(cu_seqlens)
        return q

    case = CASES["attention"]
    case.call(attention, case.make(Draw(SIZES, torch.Generator())))
    lengths = seen[0].diff()
    assert int(lengths.sum()) == N
    assert int(lengths.max()) == 16
    pairs = int((lengths * (lengths + 1) // 2).sum())
    assert (case.forward.flop, case.backward.flop) == (pairs * 4 * 2 * 2 * 8, pairs * 4 * 5 * 2 * 8)


def test_a_model_without_gates_gain_or_squared_mlp_has_no_such_inputs() -> None:
    recipe = pico_recipe("model.q_gain_init=false", "model.activation='swiglu'")
    cases = {case.name: case for case in build_cases(SIZES._replace(config=recipe.model))}
    draw = Draw(SIZES._replace(config=recipe.model), torch.Generator())
    assert set(cases["exclude"].make(draw)) == {"y", "v"}
    assert set(cases["turn heads"].make(draw)) == {"q", "k", "v"}
    assert len(cases["project"].make(draw)) == 4
    assert "square mlp" not in cases
