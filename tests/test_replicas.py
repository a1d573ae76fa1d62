"""One wrong bit on one rank is found, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.replicas import check_replicas, fingerprint
from tests.ranks import CPU, run_ranks

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int16": torch.int16,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "float64": torch.float64,
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def values(dtype: torch.dtype) -> Tensor:
    random = torch.randn(3, 423, generator=torch.Generator().manual_seed(0))
    return random > 0 if dtype == torch.bool else random.mul(9).to(dtype)


def with_flipped_bit(tensor: Tensor, entry: int, bit: int) -> Tensor:
    flipped = tensor.clone()
    whole = flipped.view(INTEGERS[tensor.element_size()]).view(-1)
    size = 8 * tensor.element_size()
    whole[entry] ^= 1 << bit if bit < size - 1 else -(1 << bit)
    return flipped


def weighted_sum(tensor: Tensor) -> int:
    """The fingerprint by Python's integers, which do not overflow."""
    bits = tensor.contiguous().view(INTEGERS[tensor.element_size()]).flatten().tolist()
    whole = sum((2 * i + 1) * b for i, b in enumerate(bits)) % 2**64
    return int(whole - 2**64 if whole >= 2**63 else whole)


@dtypes
def test_a_fingerprint_is_the_weighted_sum_of_the_bits(dtype: torch.dtype) -> None:
    found = fingerprint(values(dtype))
    assert (found.dtype, found.shape, int(found)) == (torch.int64, (), weighted_sum(values(dtype)))


@dtypes
def test_every_single_bit_counts_wherever_it_is(dtype: torch.dtype) -> None:
    tensor = values(dtype)
    whole, entries = fingerprint(tensor), (0, 422, 3 * 423 - 1)
    bits = [0] if dtype == torch.bool else range(8 * tensor.element_size())
    same = [(e, b) for e in entries for b in bits if torch.equal(fingerprint(with_flipped_bit(tensor, e, b)), whole)]
    assert same == []


@dtypes
def test_exchanged_entries_count(dtype: torch.dtype) -> None:
    tensor = values(dtype).flatten()
    first, other = 7, int((tensor != tensor[7]).nonzero()[-1])
    swapped = tensor.clone()
    swapped[first], swapped[other] = tensor[other], tensor[first]
    assert not torch.equal(fingerprint(swapped), fingerprint(tensor))


def test_the_sign_of_zero_counts() -> None:
    assert int(fingerprint(torch.tensor([0.0]))) != int(fingerprint(torch.tensor([-0.0])))


def test_equal_bits_of_nan_are_equal() -> None:
    tensor = torch.tensor([float("nan"), 1.0])
    assert torch.equal(fingerprint(tensor), fingerprint(tensor.clone()))


def test_the_layout_in_memory_does_not_count() -> None:
    tensor = values(torch.float32)
    assert torch.equal(fingerprint(tensor.T.contiguous().T), fingerprint(tensor))


def test_a_number_alone_has_a_fingerprint_too() -> None:
    assert int(fingerprint(torch.tensor(3))) == 3


def model(world: World, wrong: str) -> dict[str, Tensor]:
    """Tensors that are alike but for what is `wrong` on the last rank."""
    tensors = {name: values(dtype) for name, dtype in DTYPES.items()} | {"step": torch.tensor(5.0)}
    last = world.rank == world.size - 1
    if last and wrong == "bit":
        tensors["bfloat16"] = with_flipped_bit(tensors["bfloat16"], 400, 3)
        tensors["uint8"] = with_flipped_bit(tensors["uint8"], 400, 3)
    if last and wrong == "step":
        tensors["step"] += 1
    if world.rank == 0 and wrong == "rank 0":
        tensors["float32"] *= -1
    return tensors


def verdicts(world: World) -> list[str]:
    found = []
    for wrong in ("nothing", "bit", "step", "rank 0"):
        try:
            check_replicas(model(world, wrong), world)
            found.append("alike")
        except NumericalFaultError as error:
            found.append(str(error).partition(";")[0])
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_name_the_first_tensor_that_differs_and_the_rank(size: int, tmp_path: Path) -> None:
    expected = [
        "alike",
        f"bfloat16 is not the same on rank {size - 1} as on rank 0",
        f"step is not the same on rank {size - 1} as on rank 0",
        "float32 is not the same on rank 1 as on rank 0",
    ]
    assert run_ranks(size, tmp_path, verdicts) == size * [expected]


def test_a_process_alone_has_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.replicas.fingerprint", None)
    check_replicas({"a": torch.ones(3)}, World(0, 1, 0, CPU))
