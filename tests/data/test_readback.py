from pathlib import Path

import numpy as np
import pytest

from golf.data.readback import Totals, read_back_sidecar, read_back_split
from golf.data.shards import write_shard
from golf.data.tokenizer import load_tokenizer
from golf.errors import BadFileError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.bin", np.array([1, 9, 8, 1, 7]))
    return tmp_path / "a.bin"


def test_a_sound_split_is_described(shard: Path, plain_tokenizer: Path) -> None:
    entry = read_back_split((shard, shard), Totals(4, 30, 2), load_tokenizer(plain_tokenizer))
    assert entry == {"documents": 4, "utf8_bytes": 30, "tokens": 10, "max_token_id": 9, "skipped_documents": 2}


def test_a_lost_document_start_is_noticed(shard: Path, plain_tokenizer: Path) -> None:
    with pytest.raises(BadFileError, match="2 document starts from here on for 3 documents"):
        read_back_split((shard,), Totals(3, 30, 0), load_tokenizer(plain_tokenizer))


def test_an_id_outside_the_vocabulary_is_noticed(tmp_path: Path, plain_tokenizer: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 5000]))
    with pytest.raises(BadFileError, match="token id 5000 is outside the vocabulary"):
        read_back_split((tmp_path / "a.bin",), Totals(1, 5, 0), load_tokenizer(plain_tokenizer))


def test_a_wrong_byte_sum_is_noticed(shard: Path) -> None:
    assert read_back_sidecar((shard,), Totals(2, 26, 0)) == 26
    with pytest.raises(BadFileError, match="it sums to 26 bytes for 27 bytes of text"):
        read_back_sidecar((shard,), Totals(2, 27, 0))
