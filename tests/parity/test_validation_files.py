"""The recorded validation stream as files, and the documents in it."""

from pathlib import Path

import numpy as np

from golf.data.documents import document_ranges
from golf.data.shards import read_shard
from tests.parity.fixture_set import read_fixture, recorded_path
from tests.pico import pico_recipe


def test_the_files_hold_the_recorded_tokens_and_bytes(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    for name in values["bins"]:
        stream = read_shard(recorded_path(fixtures, name))
        assert np.array_equal(stream, tensors[f"in::{Path(name).stem}"].numpy().astype(np.uint16)), name
        assert len(stream) == values["raw_tokens"]


def test_the_stream_is_cut_into_the_recorded_documents(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    ranges = document_ranges(tensors["in::val_tokens"].numpy().astype(np.uint16), pico_recipe().model.bos_id)
    assert [[start, stop - start] for start, stop in ranges.tolist()] == values["find_docs"]
    lengths = np.diff([*ranges[:, 0], ranges[-1, 1]]).tolist()  # without the next document's first token
    whole = -1 if values["last_document_truncated"] else None
    assert lengths[:whole] == values["documents"][:whole]
