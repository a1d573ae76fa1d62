"""The byte table against the reference's tables of the real tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from golf.data.bytes import TableByteCounter
from golf.data.caseops import encode
from golf.data.tokenizer import load_tokenizer

BOS_ID = 1


@pytest.fixture
def description(fixtures: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((fixtures / "bpb_lut.json").read_text())
    return loaded


@pytest.fixture
def tokenizer(fixtures: Path, description: dict[str, Any]) -> Path:
    return fixtures.parent / "tokenizers" / str(description["tokenizer"])


def test_tables_are_those_of_the_reference(fixtures: Path, description: dict[str, Any], tokenizer: Path) -> None:
    tables: dict[str, npt.NDArray[Any]] = load_file(fixtures / "bpb_lut.safetensors")
    counter = TableByteCounter.from_tokenizer(tokenizer, description["tensors"]["base_bytes"]["shape"][0])
    assert np.array_equal(counter.base, tables["base_bytes"])
    assert np.array_equal(counter.lead, tables["has_leading_space"])
    assert np.array_equal(counter.bound, tables["is_boundary_token"])


def test_samples_are_charged_as_by_the_reference(description: dict[str, Any], tokenizer: Path) -> None:
    counter = TableByteCounter.from_tokenizer(tokenizer, 0)
    for sample in description["samples"]:
        tokens = np.array([BOS_ID, *sample["ids"]], dtype=np.uint16)
        charged = counter.bytes_of(tokens, 0, len(tokens) - 1)
        assert charged.tolist() == sample["bytes_per_token_after_bos"]
        assert charged.sum() == sample["lut_sum"]


def test_samples_are_tokenized_as_by_the_reference(description: dict[str, Any], tokenizer: Path) -> None:
    samples = description["samples"]
    encoded = load_tokenizer(tokenizer).encode([encode(sample["text"]) for sample in samples])
    assert [ids.tolist() for ids in encoded] == [sample["ids"] for sample in samples]
