"""The built-in corpus: what Python ships about itself, so that a first run needs no download.

Documents are the docstrings of the standard library (a module with its functions, and each class with its methods) and
the language topics of `pydoc`. A tenth of them, picked by content hash, is for validation.
"""

import ast
import hashlib
import io
import json
import re
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from sentencepiece import SentencePieceTrainer

from golf.data.prepare import prepare
from golf.errors import EnvironmentUnfitError
from golf.files import write_bytes, write_text

VOCAB_SIZE = 512

_VAL_SHARE = 0.1
_LEAST_BYTES = 500_000  # a Python without its sources would train a demo on nothing
# What some builds of the same Python lack, or make on the machine.
_LEFT_OUT = re.compile(
    r"tests?|idlelib|lib2to3|ensurepip|turtledemo|tkinter|(site|dist)-packages|config-.*|_sysconfigdata.*"
)


def make_demo_corpus(out: Path, *, seed: int = 1, force: bool = False) -> dict[str, Any]:
    """Write the demo data set, with its own 512-piece tokenizer, to the folder `out` and return its manifest.

    The same Python and seed give the same shards. No two documents are equal. The tokenizer neither normalizes nor
    drops anything, so its byte table agrees with the sidecar. Raises EnvironmentUnfitError if this Python came
    without its standard library's sources.
    """
    ordered = sorted((_rank(text, seed), text) for text in set(_texts()))
    if sum(len(text) for _, text in ordered) < _LEAST_BYTES:
        raise EnvironmentUnfitError(
            "this Python came without the sources of its standard library, which the demo reads; "
            "prepare your own text with `golf data prepare` instead"
        )
    texts = [text for _, text in ordered]
    val_docs = sum(rank < _VAL_SHARE for rank, _ in ordered)
    with tempfile.TemporaryDirectory() as scratch:
        corpus, tokenizer = Path(scratch, "python-documentation.jsonl"), Path(scratch, "demo-512.model")
        write_text(corpus, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        write_bytes(tokenizer, _train_tokenizer(texts[val_docs:]))
        return prepare([corpus], tokenizer=tokenizer, out=out, val_docs=val_docs, force=force)


def _texts() -> Iterator[str]:
    for path in _library_sources():
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef) and (text := "\n\n".join(_docstrings(node)).strip()):
                yield text
    yield from (text.strip() for text in topics.values())


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the docstrings of `node` and of the functions in it, but not of its classes: they are documents too."""
    if docstring := ast.get_docstring(node):
        yield docstring
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def _library_sources() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(library) for path in library.rglob("*.py"))
    return [library / path for path in sorted(paths) if not any(_LEFT_OUT.fullmatch(part) for part in path.parts)]


def _train_tokenizer(texts: list[str]) -> bytes:
    """Train on `texts` alone: byte-pair pieces, bytes for rare characters, and no change to the text."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _rank(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the content and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") / 2**64
