"""What a fetched data set holds, counted in its files and compared with what is known of it."""

from pathlib import Path
from typing import Any

import numpy as np

from golf.data.bytes import byte_counter
from golf.data.manifest import MANIFEST_FORMAT, MANIFEST_VERSION
from golf.data.published import Variant
from golf.data.shards import Dataset, read_shard
from golf.data.tokenizer import Tokenizer
from golf.errors import BadFileError
from golf.files import canonical_json, sha256_bytes

_SCORED_SEQ_LEN = 2048  # the known totals count whole sequences of so many targets
_BYTES_TOLERANCE = 2000  # of the known bytes, which were derived and not counted; a wrong count is off by far more
_COUNTED_TOKENS = 1 << 22
_REMEDY = "fetch from another endpoint, for scores on this one compare with nobody's"


def describe_fetched(
    dataset: Dataset, tokenizer: Tokenizer, variant: Variant, digests: dict[Path, str]
) -> dict[str, Any]:
    """Return the data set's manifest; BadFileError unless validation adds up to what is known of the variant.

    `digests` are the SHA-256 of the shards by their paths.
    """
    val = _describe_split(dataset.val, tokenizer) | _count_scored(dataset, tokenizer)
    _check_totals(variant, val)
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": digests[path], "tokens": read_shard(path).size}
        for path in (*dataset.train, *dataset.val, *dataset.val_sidecars)
    ]
    contents = [[entry["name"], entry["sha256"]] for entry in files]
    return {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "transform": "caseops" if variant.is_caseops else "none",
        "tokenizer": tokenizer.describe(),
        "train": _describe_split(dataset.train, tokenizer),
        "val": val,
        "files": files,
        "content_sha256": sha256_bytes(canonical_json(contents).encode()),
    }


def _describe_split(paths: tuple[Path, ...], tokenizer: Tokenizer) -> dict[str, int]:
    """Count document starts and tokens, and find the largest id; BadFileError if it is outside of the vocabulary."""
    documents = tokens = largest = 0
    for path in paths:
        shard = read_shard(path)
        documents += int(np.count_nonzero(shard == tokenizer.bos_id))
        tokens += shard.size
        largest = max(largest, int(shard.max(initial=0)))
        if largest >= tokenizer.vocab_size:
            reason = f"it holds token id {largest}, but its tokenizer has {tokenizer.vocab_size} ids"
            raise BadFileError(path, reason, _REMEDY)
    return {"documents": documents, "tokens": tokens, "max_token_id": largest}


def _count_scored(dataset: Dataset, tokenizer: Tokenizer) -> dict[str, int]:
    """Count the targets that evaluation scores in whole sequences of 2,048, and the bytes of text behind them."""
    tokens, counts = dataset.val_tokens(), dataset.val_bytes()
    if counts is not None and counts.size != tokens.size:
        reason = f"the byte sidecar has {counts.size:,} entries for {tokens.size:,} tokens"
        raise BadFileError(dataset.val_sidecars[0], reason, _REMEDY)
    scored = max(tokens.size - 1, 0) // _SCORED_SEQ_LEN * _SCORED_SEQ_LEN
    counter = byte_counter(dataset, tokenizer.vocab_size)
    blocks = ((start, min(start + _COUNTED_TOKENS, scored)) for start in range(0, scored, _COUNTED_TOKENS))
    scored_bytes = sum(int(counter.bytes_of(tokens, start, stop).sum()) for start, stop in blocks)
    return {"scored_tokens": scored, "scored_bytes": scored_bytes}


def _check_totals(variant: Variant, val: dict[str, int]) -> None:
    known = variant.totals
    for name, expected, tolerance in (
        ("documents", known.documents, 0),
        ("scored_tokens", known.scored_tokens, 0),
        ("scored_bytes", known.scored_bytes, _BYTES_TOLERANCE),
    ):
        if expected is not None and abs(val[name] - expected) > tolerance:
            reason = f"its validation set has {val[name]:,} {name.replace('_', ' ')}, but {expected:,} are known of it"
            raise BadFileError(variant.dataset, reason, _REMEDY)
