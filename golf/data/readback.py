"""What a prepared data set holds, read back from its files and compared with the text that went in."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from golf.data.shards import Dataset, read_shard
from golf.data.tokenizer import Tokenizer
from golf.errors import BadFileError
from golf.files import canonical_json, sha256_bytes, sha256_file

_SCAN_TOKENS = 1 << 24


class Totals(NamedTuple):
    """What became of one split's documents."""

    documents: int = 0
    utf8_bytes: int = 0
    skipped: int = 0  # documents of which no token was left

    def plus(self, utf8_bytes: int, tokens: int) -> "Totals":
        """Count one more document, of `tokens` tokens."""
        if tokens == 0:
            return self._replace(skipped=self.skipped + 1)
        return self._replace(documents=self.documents + 1, utf8_bytes=self.utf8_bytes + utf8_bytes)


def read_back_split(paths: tuple[Path, ...], totals: Totals, tokenizer: Tokenizer) -> dict[str, int]:
    """Return a split's manifest entry; BadFileError unless each document has one start and all ids are known."""
    starts = largest = tokens = 0
    for path in paths:
        shard = read_shard(path)
        tokens += shard.size
        for at in range(0, shard.size, _SCAN_TOKENS):
            block = shard[at : at + _SCAN_TOKENS]
            starts += int(np.count_nonzero(block == tokenizer.bos_id))
            largest = max(largest, int(block.max()))
    if starts != totals.documents:
        reason = f"{starts} document starts from here on for {totals.documents} documents"
        raise BadFileError(paths[0], reason, "check the disk and prepare again")
    if largest >= tokenizer.vocab_size:
        raise BadFileError(
            paths[0], f"token id {largest} is outside the vocabulary", "check the disk and prepare again"
        )
    return {
        "documents": totals.documents,
        "utf8_bytes": totals.utf8_bytes,
        "tokens": tokens,
        "max_token_id": largest,
        "skipped_documents": totals.skipped,
    }


def read_back_sidecar(paths: tuple[Path, ...], totals: Totals) -> int:
    """Return the sum of the byte sidecar; BadFileError unless it is the UTF-8 length of the text."""
    charged = sum(int(read_shard(path).sum(dtype=np.int64)) for path in paths)
    if charged != totals.utf8_bytes:
        reason = f"it sums to {charged} bytes for {totals.utf8_bytes} bytes of text"
        raise BadFileError(paths[0], reason, "check the disk and prepare again")
    return charged


def read_back_files(dataset: Dataset) -> dict[str, Any]:
    """Return the manifest's file entries and one digest over all their contents."""
    entries = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path), "tokens": read_shard(path).size}
        for path in (*dataset.train, *dataset.val, *dataset.val_sidecars)
    ]
    contents = [[entry["name"], entry["sha256"]] for entry in entries]
    return {"files": entries, "content_sha256": sha256_bytes(canonical_json(contents).encode())}
