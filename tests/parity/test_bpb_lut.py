"""The byte table against the reference's tables of the real tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.data.bytes import TableByteCounter
from golf.data.caseops import encode
from golf.data.tokenizer import load_tokenizer
from tests.parity.fixture_set import read_fixture

BOS_ID = 1


@pytest.fixture
def description(fixtures: Path) -> dict[str, Any]:
    return read_fixture(fixtures, "bpb_lut")[0]


@pytest.fixture
def tokenizer(fixtures: Path, description: dict[str, Any]) -> Path:
    return fixtures.parent / "tokenizers" / str(description["tokenizer"])


def test_tables_are_those_of_the_reference(fixtures: Path, description: dict[str, Any], tokenizer: Path) -> None:
    _, tables = read_fixture(fixtures, "bpb_lut")
    counter = TableByteCounter.from_tokenizer(tokenizer, description["tensors"]["base_bytes"]["shape"][0])
    assert np.array_equal(counter.base, tables["base_bytes"].numpy())
    assert np.array_equal(counter.lead, tables["has_leading_space"].numpy())
    assert np.array_equal(counter.bound, tables["is_boundary_token"].numpy())


def test_samples_are_charged_as_by_the_reference(description: dict[str, Any], tokenizer: Path) -> None:
    counter = TableByteCounter.from_tokenizer(tokenizer, 0)
    for sample in description["samples"]:
        tokens = np.array([BOS_ID, *sample["ids"]], dtype=np.uint16)
        charged = counter.bytes_of(tokens, 0, len(tokens) - 1)
        assert charged.tolist() == sample["bytes_per_token_after_bos"]
        assert charged.sum() == sample["lut_sum"]


def test_samples_are_tokenized_as_by_the_reference(description: dict[str, Any], tokenizer: Path) -> None:
    samples = description["samples"]
    encoded = [load_tokenizer(tokenizer).encode(encode(sample["text"])).tolist() for sample in samples]
    assert encoded == [sample["ids"] for sample in samples]


def test_samples_are_transformed_as_by_the_reference(description: dict[str, Any]) -> None:
    for sample in description["samples"]:
        assert encode(sample["text"]) == sample["encoded"]
        assert len(sample["text"].encode()) == sample["text_utf8_bytes"]
        assert len(sample["encoded"].encode()) == sample["encoded_utf8_bytes"]
