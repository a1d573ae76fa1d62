"""Tensor files: the bytes that safetensors itself would write, and refusal of what it would let pass."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from golf.errors import BadFileError
from golf.files import sha256_file
from golf.tensorfile import HEADER_CAP, parts_digest, read_tensors, tensor_names, tensor_parts, write_parts

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    write_parts(path, tensor_parts(tensors))
    return path


def file_of(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


@pytest.mark.parametrize("shape", [(3, 423), (1,), (), (0, 5), (2, 3, 1)])
def test_the_bytes_are_those_that_safetensors_writes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"model/{name}.{number}": (torch.rand(shape, generator=generator) * 9).to(dtype)
        for number, dtype in enumerate(DTYPES)
        for name in ("b", "a", "b.z-_")
    }
    assert b"".join(tensor_parts(tensors)) == safetensors.torch.save(tensors)


def test_the_order_of_the_tensors_does_not_change_the_bytes() -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int8), "c": torch.ones(1)}
    backwards = dict(reversed(tensors.items()))
    assert b"".join(tensor_parts(tensors)) == b"".join(tensor_parts(backwards))


def test_views_and_tied_tensors_are_read_back(tmp_path: Path) -> None:
    whole = torch.arange(30.0).reshape(5, 6)
    tensors = {"whole": whole, "tied": whole, "rows": whole[1:3], "columns": whole[:, 2], "turned": whole.T}
    read = read_tensors(write(tmp_path / "a.safetensors", tensors), "")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_parameters_and_their_gradients_stay_as_they_were(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
    read = read_tensors(write(tmp_path / "a.safetensors", {"weight": weight}), "")
    assert (read["weight"].requires_grad, weight.requires_grad) == (False, True)


def test_reading_by_prefix_drops_the_prefix_and_all_others(tmp_path: Path) -> None:
    tensors = {"model/a.b": torch.ones(1), "model2/a.b": torch.zeros(1), "ema/a.b": torch.full((1,), 2.0)}
    assert list(read_tensors(write(tmp_path / "a.safetensors", tensors), "ema/")) == ["a.b"]


def test_the_digest_of_the_parts_is_that_of_the_file(tmp_path: Path) -> None:
    parts = tensor_parts({"a": torch.arange(1000), "b": torch.ones(7, dtype=torch.int8)})
    write_parts(tmp_path / "a.safetensors", parts)
    assert parts_digest(parts) == sha256_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/x", "a b", "", "a\0b", "ü", "a\\b", ".hidden"])
def test_a_forbidden_name_is_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="tensor name"):
        tensor_parts({name: torch.ones(1)})
    path = file_of(tmp_path / "a.safetensors", json.dumps({name: entry(0, 1)}).encode(), b"x")
    with pytest.raises(BadFileError, match="forbidden name"):
        tensor_names(path)


GOOD = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
HEADERS = {
    "not JSON": b"{not json}",
    "duplicate key": b"{" + GOOD + b"," + GOOD + b"}",
    "blank in front": b" {" + GOOD + b"}",
    "a list": b"[]",
    "no offsets": b'{"a":{"dtype":"U8","shape":[1]}}',
    "unknown dtype": b"{" + GOOD.replace(b"U8", b"U7") + b"}",
    "nan": b"{" + GOOD.replace(b"[1]", b"[NaN]") + b"}",
    "negative shape": b"{" + GOOD.replace(b"[1]", b"[-1]") + b"}",
    "more than there is": b"{" + GOOD.replace(b"[1]", b"[9]").replace(b"[0,1]", b"[0,9]") + b"}",
    "hole": b"{" + GOOD.replace(b"[1]", b"[0]").replace(b"[0,1]", b"[1,1]") + b"}",
    "not UTF-8": b"{" + GOOD.replace(b"a", b"\xff", 1) + b"}",
    "bottomless": b'{"a":' + b"[" * 100_000,
    "metadata that is no text": b'{"__metadata__":3,' + GOOD + b"}",
}


def test_the_header_that_the_unsound_ones_are_made_of_is_sound(tmp_path: Path) -> None:
    assert tensor_names(file_of(tmp_path / "a.safetensors", b"{" + GOOD + b"}", b"x")) == ["a"]


@pytest.mark.parametrize("case", HEADERS)
def test_an_unsound_header_is_a_bad_file(tmp_path: Path, case: str) -> None:
    path = file_of(tmp_path / "a.safetensors", HEADERS[case], b"x")
    with pytest.raises(BadFileError, match=r"a\.safetensors"):
        tensor_names(path)


@pytest.mark.parametrize("size", [HEADER_CAP + 1, 99_000_000, 2**63, 2**64 - 1])
def test_a_header_over_the_cap_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{" + b" " * HEADER_CAP)
    with pytest.raises(BadFileError, match="over 8,388,608 bytes"):
        tensor_names(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.safetensors", {"a": torch.ones(3), "b": torch.ones(2)}).read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(BadFileError):
            tensor_names(tmp_path / "cut.safetensors")


def test_a_mutated_file_is_refused_or_names_its_tensors(tmp_path: Path) -> None:
    data = write(tmp_path / "a.safetensors", {"model/a": torch.ones(3), "model/b": torch.ones(2)}).read_bytes()
    chance = random.Random(1)
    path = tmp_path / "mutated.safetensors"
    refused = 0
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            mutated[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(mutated)
        try:
            assert len(tensor_names(path)) <= 2
        except BadFileError:
            refused += 1
    assert refused > 250


def test_a_missing_file_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="No such file"):
        tensor_names(tmp_path / "a.safetensors")
