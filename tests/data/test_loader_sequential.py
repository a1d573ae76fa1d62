"""The sequential stream against its rules, walked word for word."""

from pathlib import Path

import numpy as np
import pytest

from golf.data.sequential import SequentialStream
from golf.data.shards import write_shard

SIZES = [30, 7, 53]  # a span of 22 tokens crosses two borders at once
STREAM = {"batch_tokens": 8 * 21, "seq_len": 7}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"x_train_{shard:06d}.bin" for shard in range(3)]
    for shard, path in enumerate(paths):
        write_shard(path, 100 * (shard + 1) + np.arange(SIZES[shard]))
    return paths


def test_spans_follow_one_another_over_shards_for_ever(shards: list[Path]) -> None:
    stream = SequentialStream.open(shards, **STREAM)
    tokens = [100 * (shard + 1) + at for shard, size in enumerate(SIZES) for at in range(size)] * 20
    for segment in range(80):
        span, rest = tokens[:22], tokens[22:]
        inputs, targets = span[:-1], span[1:]
        rows = stream.read(segment)
        assert rows[:, :-1].tolist() == [inputs[at : at + 7] for at in (0, 7, 14)]
        assert rows[:, 1:].tolist() == [targets[at : at + 7] for at in (0, 7, 14)]
        tokens = rest


def test_the_place_of_a_segment_is_where_its_first_token_lies(shards: list[Path]) -> None:
    stream = SequentialStream.open(shards, **STREAM)
    for segment in range(40):
        place = stream.place(segment)
        assert stream.read(segment)[0, 0] == 100 * (place["shard"] + 1) + place["cursor"]
        assert place["epoch"] == segment * 22 // sum(SIZES)


def test_a_stream_shorter_than_a_span_repeats_within_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_train_000000.bin", np.arange(5))
    stream = SequentialStream.open([tmp_path / "x_train_000000.bin"], batch_tokens=8 * 12, seq_len=12)
    assert stream.read(0).tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]]
    assert stream.read(1)[0, 0] == 3
