"""Small tokenizers and shards for the data tests."""

import io
import json
import random
from collections.abc import Callable
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
