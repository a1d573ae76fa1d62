from pathlib import Path

import pytest

from golf.data.caseops import OPERATORS
from golf.data.tokenizer import load_tokenizer
from golf.errors import BadFileError
from tests.data.conftest import random_text, train_tokenizer


def test_pieces_agree_with_plain_encoding(caseops_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(caseops_tokenizer)
    for text in (random_text(seed, 30) for seed in range(5)):
        assert tokenizer.encode_pieces(text).ids.tolist() == tokenizer.encode(text).tolist()


def test_surfaces_are_utf8_ranges(plain_tokenizer: Path) -> None:
    """A byte-fallback character belongs to its last byte piece."""
    pieces = load_tokenizer(plain_tokenizer).encode_pieces("ж€")
    assert pieces.begins.tolist() == [0, 0, 2, 2, 2]
    assert pieces.ends.tolist() == [0, 2, 2, 2, 5]


def test_the_model_says_its_size_start_and_operators(caseops_tokenizer: Path, plain_tokenizer: Path) -> None:
    with_operators, without = load_tokenizer(caseops_tokenizer), load_tokenizer(plain_tokenizer)
    assert with_operators.bos_id == 1
    assert with_operators.has_pieces(OPERATORS)
    assert not without.has_pieces(OPERATORS)
    assert with_operators.vocab_size >= 4 + 4 + 256


def test_a_model_without_document_start_has_id_minus_one(tmp_path: Path) -> None:
    assert load_tokenizer(train_tokenizer(tmp_path / "t.model", bos_id=-1)).bos_id == -1


@pytest.mark.parametrize("data", [b"", b"not a model", bytes(1000)])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.model").write_bytes(data)
    with pytest.raises(BadFileError, match=r"t\.model"):
        load_tokenizer(tmp_path / "t.model")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path / "t.model")
