"""Training and validation tokens made up for a benchmark: no data set is needed, and every machine times the same.

Tokens are uniform over the vocabulary, in documents of log-normal length like those of web text: half of them shorter
than 545 tokens, 950 on average. Each begins with BOS, which occurs nowhere else. Longer pieces than the recipe's
seq_len are cut by the loader, as in training.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golf.config import Recipe
from golf.data.documents import Batch, segment_rows
from golf.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION
from golf.data.shards import Dataset, write_shard
from golf.files import sha256_file, write_json
from golf.ranks import VIRTUAL_RANKS

TRAIN_SHARDS = VIRTUAL_RANKS  # of one step each, read again and again
VAL_BATCHES = 64

_MEDIAN, _MEAN = 545, 950  # tokens of a document
_PREFIX = "synthetic"
_TOKEN_BYTES = 3  # of text that a token stands for


def draw_tokens(count: int, *, vocab_size: int, bos_id: int, seed: int) -> npt.NDArray[np.uint16]:
    """Return `count` tokens of documents end to end; the last one is cut."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, vocab_size - 1, count, dtype=np.uint16)
    tokens += tokens >= bos_id
    starts = np.cumsum(draw_lengths(2 + count // 16, generator))
    tokens[0] = tokens[starts[starts < count]] = bos_id
    return tokens


def draw_lengths(count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the lengths of `count` documents, BOS included."""
    spread = math.sqrt(2 * math.log(_MEAN / _MEDIAN))  # of the logarithm: the mean is median * exp(spread^2 / 2)
    lengths = generator.lognormal(math.log(_MEDIAN), spread, count)
    return np.maximum(np.rint(lengths), 1).astype(np.int64)


def draw_batch(tokens: int, *, vocab_size: int, bos_id: int, max_doc_len: int, seed: int) -> Batch:
    """Return one row of `tokens` tokens, segmented as in training, on the CPU."""
    stretch = torch.from_numpy(
        draw_tokens(tokens + 1, vocab_size=vocab_size, bos_id=bos_id, seed=seed).astype(np.int64)
    )
    row = stretch[None, :-1].clone()
    cu_seqlens = segment_rows(row, bos_id=bos_id, max_doc_len=max_doc_len)
    return Batch(row, stretch[None, 1:].clone(), cu_seqlens, max_doc_len)


def make_dataset(folder: Path, recipe: Recipe) -> Dataset:
    """Write shards for `recipe` into `folder`: some steps of training, some batches of validation with its bytes."""
    data, model = recipe.data, recipe.model
    draw = partial(draw_tokens, vocab_size=model.vocab_size, bos_id=model.bos_id)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TRAIN_SHARDS):
        tokens = draw(data.batch_tokens + VIRTUAL_RANKS + data.seq_len, seed=1 + number)
        write_shard(folder / f"{_PREFIX}_train_{number:06d}.bin", tokens)
    tokens = draw(VAL_BATCHES * recipe.eval.batch_tokens + 1, seed=0)
    write_shard(folder / f"{_PREFIX}_val_000000.bin", tokens)
    write_shard(folder / f"{_PREFIX}_val_bytes_000000.bin", np.where(tokens == model.bos_id, 0, _TOKEN_BYTES))
    write_json(folder / MANIFEST_NAME, _manifest(folder, recipe))
    return Dataset.open(folder)


def _manifest(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Say what training asks of a data set's manifest. There is no tokenizer: the bytes are in the sidecar."""
    largest = {"max_token_id": recipe.model.vocab_size - 1}
    shards = sorted(folder.glob("*.bin"))
    return {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "tokenizer": {"file": "none", "vocab_size": recipe.model.vocab_size, "bos_id": recipe.model.bos_id},
        "train": largest,
        "val": largest,
        "files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in shards],
    }
