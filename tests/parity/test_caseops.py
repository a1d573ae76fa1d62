"""The case transform and its byte counts against recorded strings of the reference."""

from pathlib import Path
from typing import Any

import pytest

from golf.data.caseops import OPERATORS, bytes_before, decode, encode, exact_bytes, reference_bytes
from golf.data.encoder import Encoder
from golf.data.texts import Document
from golf.data.tokenizer import Tokenizer, load_tokenizer
from tests.data.conftest import wild_texts
from tests.parity.fixture_set import read_fixture


@pytest.fixture
def recorded(fixtures: Path) -> dict[str, Any]:
    return read_fixture(fixtures, "caseops")[0]


@pytest.fixture
def tokenizer(fixtures: Path, recorded: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(fixtures.parent / "tokenizers" / recorded["tokenizer"])


def test_the_operators_are_those_of_the_reference(recorded: dict[str, Any]) -> None:
    points = [recorded["operators"][name] for name in ("title", "allcaps", "capnext", "esc")]
    assert [f"U+{ord(operator):04X}" for operator in OPERATORS] == points


def test_strings_are_encoded_and_decoded_as_by_the_reference(recorded: dict[str, Any]) -> None:
    assert len(recorded["strings"]) >= 200
    for string in recorded["strings"]:
        assert encode(string["text"]) == string["encoded"]
        assert decode(string["encoded"]) == string["decoded"]
        assert (string["decoded"] == string["text"]) == string["decoded_equals_text"]


def test_what_the_reference_refuses_is_refused_and_nothing_else(recorded: dict[str, Any]) -> None:
    for string in recorded["malformed"]:
        if string["error"]:
            with pytest.raises(ValueError, match="malformed case operators"):
                decode(string["encoded"])
        else:
            assert decode(string["encoded"]) == string["decoded"]


def test_ids_and_the_reference_byte_count_are_those_of_the_reference(
    recorded: dict[str, Any], tokenizer: Tokenizer
) -> None:
    for string in recorded["strings"]:
        pieces = tokenizer.encode_pieces(string["encoded"])
        counts = reference_bytes(pieces, bytes_before(string["encoded"], is_encoded=True))
        assert pieces.ids.tolist() == string["ids"]
        assert counts.tolist() == [0, *string["sidecar_1855"]]


def test_all_strings_together_have_the_recorded_bytes(recorded: dict[str, Any], tokenizer: Tokenizer) -> None:
    totals, encoded = recorded["totals_where_both_exist"], [string["encoded"] for string in recorded["strings"]]
    pairs = [(tokenizer.encode_pieces(text), bytes_before(text, is_encoded=True)) for text in encoded]
    assert sum(int(reference_bytes(*pair).sum()) for pair in pairs) == totals["sidecar_1855"]
    assert sum(int(exact_bytes(*pair).sum()) for pair in pairs) == totals["utf8_bytes"]


def test_the_exact_byte_count_is_the_utf8_length_of_every_string(
    recorded: dict[str, Any], tokenizer: Tokenizer
) -> None:
    for string in recorded["strings"]:
        pieces = tokenizer.encode_pieces(string["encoded"])
        counts = exact_bytes(pieces, bytes_before(string["encoded"], is_encoded=True))
        assert counts.sum() == string["utf8_bytes"]
        if string["sidecar_1855_sum_equals_utf8_bytes"]:
            assert counts.tolist() == [0, *string["sidecar_1855"]]


def test_the_exact_byte_count_is_the_utf8_length_of_ten_thousand_wild_texts(tokenizer: Tokenizer) -> None:
    for text in wild_texts(7, 10_000):
        encoded = encode(text)
        counts = exact_bytes(tokenizer.encode_pieces(encoded), bytes_before(encoded, is_encoded=True))
        assert counts.sum() == len(text.encode()), text


def test_ids_word_by_word_are_those_of_whole_texts(
    fixtures: Path, recorded: dict[str, Any], tokenizer: Tokenizer
) -> None:
    assert tokenizer.keeps_words_apart()
    encoder = Encoder.choose(tokenizer, "auto")
    texts = [*wild_texts(8, 3000), " ".join(string["text"] for string in recorded["strings"])]
    for text in texts:
        ids = encoder.encode(Document(text, len(text.encode()), fixtures, 1))
        assert ids[1:].tolist() == tokenizer.encode(encode(text)).tolist(), text
