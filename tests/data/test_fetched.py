from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.data import fetched as module
from golf.data.fetched import describe_fetched
from golf.data.published import KnownTotals, Variant
from golf.data.shards import Dataset, write_shard
from golf.data.tokenizer import load_tokenizer


def described(folder: Path, tokenizer: Path, counts: list[int]) -> dict[str, Any]:
    """A data set whose validation tokens stand for so many bytes each."""
    write_shard(folder / "x_train_000000.bin", np.array([7, 1, 5, 1]))
    write_shard(folder / "x_val_000000.bin", np.full(len(counts), 1))
    write_shard(folder / "x_val_bytes_000000.bin", np.array(counts))
    dataset = Dataset.open(folder)
    digests = {path: path.name for path in (*dataset.train, *dataset.val, *dataset.val_sidecars)}
    variant = Variant(repository="a/b", dataset="x", totals=KnownTotals())
    return describe_fetched(dataset, load_tokenizer(tokenizer), variant, digests)


@pytest.mark.parametrize(("tokens", "scored"), [(1, 0), (2048, 0), (2049, 2048), (4096, 2048), (4097, 4096)])
def test_whole_sequences_of_targets_are_scored(tmp_path: Path, plain_tokenizer: Path, tokens: int, scored: int) -> None:
    val = described(tmp_path, plain_tokenizer, [1] * tokens)["val"]
    assert (val["tokens"], val["scored_tokens"], val["scored_bytes"]) == (tokens, scored, scored)


@pytest.mark.parametrize("block", [1 << 22, 1000, 2048])
def test_the_bytes_are_those_of_the_scored_targets(
    tmp_path: Path, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_COUNTED_TOKENS", block)
    counts = np.random.default_rng(0).integers(0, 9, 4500).tolist()
    assert described(tmp_path, plain_tokenizer, counts)["val"]["scored_bytes"] == sum(counts[1:4097])


def test_training_shards_are_counted(tmp_path: Path, plain_tokenizer: Path) -> None:
    assert described(tmp_path, plain_tokenizer, [1])["train"] == {"documents": 2, "tokens": 4, "max_token_id": 7}
