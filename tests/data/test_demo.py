from pathlib import Path

import numpy as np
import pytest

from golf.data import demo
from golf.data.audit import stream_documents
from golf.data.bytes import TableByteCounter, byte_counter
from golf.data.demo import make_demo_corpus
from golf.data.shards import Dataset
from golf.errors import EnvironmentUnfitError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    make_demo_corpus(out)
    return out


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return Dataset.open(folder)


def test_the_same_seed_gives_the_same_shards(tmp_path: Path, dataset: Dataset) -> None:
    assert dataset.manifest is not None
    assert make_demo_corpus(tmp_path / "again")["content_sha256"] == dataset.manifest["content_sha256"]


def test_there_is_enough_text_and_a_tenth_is_held_out(dataset: Dataset) -> None:
    assert dataset.manifest is not None
    train, val = dataset.manifest["train"], dataset.manifest["val"]
    assert train["utf8_bytes"] + val["utf8_bytes"] > 1_500_000
    assert 0.07 < val["documents"] / (train["documents"] + val["documents"]) < 0.13


def test_no_held_out_document_is_in_the_training_part(dataset: Dataset) -> None:
    assert dataset.manifest is not None
    assert dataset.manifest["audit"]["leaked_documents"] == 0


def test_no_two_documents_are_equal(dataset: Dataset) -> None:
    documents = [tokens.tobytes() for tokens in stream_documents((*dataset.val, *dataset.train), dataset.bos_id)]
    assert len(set(documents)) == len(documents)


def test_the_tokenizer_has_512_pieces(dataset: Dataset) -> None:
    assert (dataset.vocab_size, dataset.bos_id) == (512, 1)


def test_the_table_counts_every_token_as_the_sidecar_does(dataset: Dataset) -> None:
    assert dataset.tokenizer is not None
    tokens = dataset.val_tokens()
    last = len(tokens) - 1
    table = TableByteCounter.from_tokenizer(dataset.tokenizer, 512).bytes_of(tokens, 0, last)
    sidecar = byte_counter(dataset, 512).bytes_of(tokens, 0, last)
    by_character = [(int(a), int(b)) for a, b in zip(table, sidecar, strict=True) if a != b]
    assert np.sum(table) == np.sum(sidecar)
    assert len(by_character) < 0.01 * last  # bytes of a rare character: one each, or all on its last


def test_the_seed_picks_other_documents() -> None:
    assert demo._rank("one text", 1) != demo._rank("one text", 2)


def test_a_python_without_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_library_sources", list)
    monkeypatch.setattr(demo, "topics", {})
    with pytest.raises(EnvironmentUnfitError, match="came without the sources"):
        make_demo_corpus(tmp_path / "demo")
