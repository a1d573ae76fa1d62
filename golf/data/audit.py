"""The leak audit: validation documents that are also training documents."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from golf.data.shards import Dataset, Tokens, read_shard

_LISTED = 10  # leaked documents named in the result


def audit(dataset: Dataset) -> dict[str, Any]:
    """Count the validation documents whose tokens are, exactly, those of a training document.

    Keys: val_documents, train_documents, leaked_documents, leaked_fraction, and the indices of the first_leaked. The
    document start and empty documents do not count as content. Holds 16 bytes a validation document; training
    documents are streamed.
    """
    indices: defaultdict[bytes, list[int]] = defaultdict(list)
    val_documents = 0
    for index, content in enumerate(stream_documents(dataset.val, dataset.bos_id)):
        val_documents += 1
        if content.size:
            indices[_fingerprint(content)].append(index)
    leaked: list[int] = []
    train_documents = 0
    for content in stream_documents(dataset.train, dataset.bos_id):
        train_documents += 1
        leaked += indices.pop(_fingerprint(content), [])
    return {
        "val_documents": val_documents,
        "train_documents": train_documents,
        "leaked_documents": len(leaked),
        "leaked_fraction": len(leaked) / val_documents if val_documents else 0.0,
        "first_leaked": sorted(leaked)[:_LISTED],
    }


def stream_documents(shards: Sequence[Path], bos_id: int) -> Iterator[Tokens]:
    """Yield the tokens of each document without its start; a document may go on in the next shards.

    Tokens before the very first start belong to no document and are left out.
    """
    parts: list[Tokens] | None = None  # of the document that is still open
    for path in shards:
        tokens = np.asarray(read_shard(path))
        starts = np.flatnonzero(tokens == bos_id).tolist()
        if parts is not None:
            parts.append(tokens[: starts[0] if starts else None])
        if not starts:
            continue
        if parts is not None:
            yield np.concatenate(parts)
        for start, stop in pairwise(starts):
            yield tokens[start + 1 : stop]
        parts = [tokens[starts[-1] + 1 :]]
    if parts is not None:
        yield np.concatenate(parts)


def _fingerprint(content: Tokens) -> bytes:
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest()
