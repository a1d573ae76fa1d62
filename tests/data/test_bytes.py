from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from golf.data.bytes import SidecarByteCounter, TableByteCounter, byte_counter
from golf.data.shards import Dataset, write_shard
from golf.data.tokenizer import load_tokenizer
from golf.errors import BadFileError, UsageError
from tests.data.conftest import random_text, train_tokenizer


def folder_with(folder: Path, *, sidecar: bool, tokenizer: Path | None) -> Dataset:
    write_shard(folder / "x_val_000000.bin", np.array([1, 300, 301]))
    if sidecar:
        write_shard(folder / "x_val_bytes_000000.bin", np.array([0, 50, 60]))
    if tokenizer:
        (folder / "t.model").write_bytes(tokenizer.read_bytes())
    return Dataset.open(folder)


def test_the_table_counts_every_byte_of_plain_text(plain_tokenizer: Path) -> None:
    text = random_text(3, 200)
    tokens = np.insert(load_tokenizer(plain_tokenizer).encode(text), 0, 1)
    counted = TableByteCounter.from_tokenizer(plain_tokenizer, 512).bytes_of(tokens, 0, len(tokens) - 1)
    assert counted.sum() == len(text.encode())


def test_a_leading_space_is_free_after_a_boundary(plain_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(plain_tokenizer)
    space = int(tokenizer.encode("a b")[1])  # begins with a space
    counter = TableByteCounter.from_tokenizer(plain_tokenizer, 512)
    tokens = np.array([1, space, space, 2, space], dtype=np.uint16)
    paid = int(counter.base[space])
    assert counter.bytes_of(tokens, 0, 4).tolist() == [paid, paid + 1, 0, paid]


def test_ids_beyond_the_tokenizer_are_boundaries_of_no_bytes(plain_tokenizer: Path) -> None:
    counter = TableByteCounter.from_tokenizer(plain_tokenizer, 1000)
    assert counter.base.size == 1000
    assert counter.base[999] == 0
    assert counter.bound[999]


def test_the_table_covers_the_tokenizer_when_the_model_is_smaller(plain_tokenizer: Path) -> None:
    assert TableByteCounter.from_tokenizer(plain_tokenizer, 5).base.size == load_tokenizer(plain_tokenizer).vocab_size


def test_a_tokenizer_without_a_space_piece_is_refused(tmp_path: Path) -> None:
    path = train_tokenizer(tmp_path / "t.model", ["abcabcabc", "cbacba"] * 9, vocab_size=270)
    with pytest.raises(BadFileError, match="no piece for a space"):
        TableByteCounter.from_tokenizer(path, 270)


def test_a_range_takes_the_bytes_of_its_targets() -> None:
    counter = SidecarByteCounter(np.array([0, 3, 5, 0, 7, 2], dtype=np.uint16))
    assert counter.bytes_of(np.zeros(6, np.uint16), 1, 4).tolist() == [5, 0, 7]
    assert counter.bytes_of(np.zeros(6, np.uint16), 2, 2).tolist() == []


def test_ranges_add_up(plain_tokenizer: Path) -> None:
    tokens = np.insert(load_tokenizer(plain_tokenizer).encode(random_text(4, 50)), 0, 1)
    counter = TableByteCounter.from_tokenizer(plain_tokenizer, 512)
    cuts = [0, 1, 7, 30, len(tokens) - 1]
    parts = [counter.bytes_of(tokens, start, stop) for start, stop in pairwise(cuts)]
    assert np.concatenate(parts).tolist() == counter.bytes_of(tokens, 0, len(tokens) - 1).tolist()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_a_range_outside_the_stream_is_an_error(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="asked of a stream of 6 tokens"):
        SidecarByteCounter(np.zeros(6, np.uint16)).bytes_of(np.zeros(6, np.uint16), start, stop)


def test_the_sidecar_goes_before_the_table(tmp_path: Path, plain_tokenizer: Path) -> None:
    counter = byte_counter(folder_with(tmp_path, sidecar=True, tokenizer=plain_tokenizer), 512)
    assert counter.bytes_of(np.array([1, 300, 301], np.uint16), 0, 2).tolist() == [50, 60]


def test_without_sidecar_the_table_counts(tmp_path: Path, plain_tokenizer: Path) -> None:
    counter = byte_counter(folder_with(tmp_path, sidecar=False, tokenizer=plain_tokenizer), 512)
    assert isinstance(counter, TableByteCounter)


def test_without_either_there_is_no_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a byte sidecar"):
        byte_counter(folder_with(tmp_path, sidecar=False, tokenizer=None), 512)


def test_case_operators_without_sidecar_are_refused(tmp_path: Path, caseops_tokenizer: Path) -> None:
    with pytest.raises(UsageError, match="only a byte sidecar"):
        byte_counter(folder_with(tmp_path, sidecar=False, tokenizer=caseops_tokenizer), 512)
