from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from golf.data import words as module
from golf.data.caseops import encode
from golf.data.encoder import Encoder
from golf.data.texts import Document
from golf.data.tokenizer import load_tokenizer
from golf.data.words import Words
from tests.data.conftest import random_text, train_tokenizer, wild_texts

Calls = list[str]


@pytest.fixture
def letters() -> tuple[Words, Calls]:
    """A tokenizer of one id a character, and the texts that it was given."""
    calls: Calls = []

    def tokenize(text: str) -> npt.NDArray[np.uint16]:
        calls.append(text)
        return np.array([ord(letter) for letter in text], dtype=np.uint16)

    return Words(tokenize), calls


def text_of(ids: npt.NDArray[np.uint16]) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    "text", ["", "a", " ", "a b", " a b ", "a  b c", "a\nb c d", "\u00e9 b c", "a \u0301 b. c", "~ ! ~"]
)
def test_words_come_back_side_by_side(letters: tuple[Words, Calls], text: str) -> None:
    assert text_of(letters[0].encode(text)) == text


def test_a_word_is_tokenized_once(letters: tuple[Words, Calls]) -> None:
    words, calls = letters
    words.encode("first one two one")
    del calls[:]
    words.encode("First two one two")
    assert calls == ["First"]


def test_work_grows_with_the_words_and_not_with_their_square(letters: tuple[Words, Calls]) -> None:
    """What reaches the tokenizer are words alone, however long the text."""
    words, calls = letters
    words.encode(" ".join(f"w{number}" for number in range(3000)))
    assert len(calls) <= 3001
    assert max(map(len, calls)) <= len(". w2999")


def test_long_words_and_words_beyond_the_limit_are_not_remembered(
    letters: tuple[Words, Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WORDS", 2)
    words, _ = letters
    text = f"a {'x' * 65} b {'y' * 64} c"
    assert text_of(words.encode(text)) == text
    assert list(words) == ["b", "y" * 64]


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": True}, {"remove_extra_whitespaces": False}])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity", "nfkc_cf"])
def test_the_ids_of_any_text_are_those_of_tokenizing_it_whole(
    tmp_path: Path, options: dict[str, Any], rule: str
) -> None:
    tokenizer = load_tokenizer(train_tokenizer(tmp_path / "t.model", normalization_rule_name=rule, **options))
    assert tokenizer.keeps_words_apart()
    words = Words(tokenizer.encode)
    for text in [*wild_texts(1, 700), *(random_text(seed, 40) for seed in range(5))]:
        assert words.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_an_encoder_transforms_before_it_tokenizes(caseops_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(caseops_tokenizer)
    encoder = Encoder.choose(tokenizer, "auto")
    for text in wild_texts(2, 700):
        ids = tokenizer.encode(encode(text)).tolist()
        assert encoder.encode(document(text)).tolist() == ([1, *ids] if ids else [])


def test_counted_tokens_are_the_tokens(caseops_tokenizer: Path) -> None:
    encoder = Encoder.choose(load_tokenizer(caseops_tokenizer), "auto")
    for text in wild_texts(3, 300):
        tokens, charged = encoder.encode_counted(document(text))
        assert tokens.tolist() == encoder.encode(document(text)).tolist()
        assert charged.sum() == (len(text.encode()) if tokens.size else 0)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"split_by_whitespace": False, "user_defined_symbols": ["e g"]},
        {"user_defined_symbols": ["a\u2581b"]},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=str,
)
def test_tokenizers_that_join_words_are_asked_for_whole_texts(tmp_path: Path, options: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(train_tokenizer(tmp_path / "t.model", **options))
    assert not tokenizer.keeps_words_apart()
    encoder = Encoder.choose(tokenizer, "none")
    for text in wild_texts(4, 100):
        assert encoder.encode(document(text))[1:].tolist() == tokenizer.encode(text).tolist()


def test_a_normalization_of_ones_own_is_not_trusted(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("62 20 63\t64\n")  # "b c" becomes "d"
    tokenizer = load_tokenizer(train_tokenizer(tmp_path / "t.model", normalization_rule_tsv=str(rules)))
    assert not tokenizer.keeps_words_apart()


def document(text: str) -> Document:
    return Document(text, len(text.encode()), Path("x.jsonl"), 1)
