"""Small tokenizers and shards for the data tests."""

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer

from golf.data.caseops import OPERATORS, encode

WORDS = ["golf", "NASA", "iPhone", "The", "the", "café", "tee…", "ﬁne", "x\u00a0y", "😀", "1999", "Ünder", "McDonald"]


def random_text(seed: int, words: int) -> str:
    """Words of all cases and scripts with blanks, newlines and tabs between them."""
    choose = random.Random(seed)
    return "".join(choose.choice(WORDS) + choose.choice([" ", "  ", "\n", "\t", ", "]) for _ in range(words))


FRAGMENTS: list[str] = [
    *OPERATORS,  # literally, which the transform must escape
    *["\u4e2d\u6587", "\u65e5", "\uac00", "\u0e01", "\u05d0", "\U00020000"],  # beyond the alphabet
    *["\u0301", "\u0308", "e\u0301", "\u1112\u1161\u11ab"],  # combining marks, decomposed Hangul
    *[
        "\u00c9",
        "\u0130",
        "\ufb01",
        "\u2126",
        "\u2167",
        "\uff21",
        "\u00bd",
        "\u1e9e",
        "\u01c5",
    ],  # folded to other letters
    *["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f"],  # emoji
    *["\x00", "\x07", "\x1b", "\x7f", "\x85", "\u200b", "\u200e", "\u2028", "\ufeff", "\ufffd"],  # dropped controls
    *[" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2003", "\u2581"],  # all of them spaces
    *["\u0378", "\u2fe0", "\U0003fffe", "\uffff", "\ue000", "\ue005", "\uf8ff", "\U0010fffd"],  # unassigned, private
    *["a b", "x y Z", ". ", " .", ", and ", "<s>", "<unk>", "<0x41>"],
]


def wild_texts(seed: int, count: int) -> Iterator[str]:
    """Short strings of words of random case and everything that a tokenizer folds, drops or breaks into bytes."""
    choose = random.Random(seed)
    for _ in range(count):
        yield "".join(_wild_part(choose) for _ in range(choose.randint(0, 12)))


def _wild_part(choose: random.Random) -> str:
    kind = choose.random()
    if kind < 0.5:
        return choose.choice(FRAGMENTS)
    if kind < 0.6:
        return chr(choose.choice([choose.randrange(0xD800), choose.randrange(0xE000, 0x110000)]))
    return "".join(choose.choice(letters) for letters in ["aA", "nN", "dD", "sS'1"][: choose.randint(1, 4)])


def train_tokenizer(path: Path, lines: list[str] | None = None, **options: Any) -> Path:
    """Train a tokenizer on random text; by default one like the published CaseOps tokenizer, but tiny."""
    settings: dict[str, Any] = {
        "vocab_size": 330,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "character_coverage": 0.999,
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": False,
        "user_defined_symbols": list(OPERATORS),
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    lines = lines or [encode(random_text(seed, 20)).replace("\n", " ") for seed in range(50)]
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings | options)
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def caseops_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normalizes, drops blanks at the ends, has the case operators."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "caseops.model")


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Changes nothing, has no operators."""
    path = tmp_path_factory.mktemp("tokenizer") / "plain.model"
    return train_tokenizer(
        path, user_defined_symbols=[], normalization_rule_name="identity", remove_extra_whitespaces=False
    )


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as JSON lines."""

    def write(texts: list[str], name: str = "texts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
