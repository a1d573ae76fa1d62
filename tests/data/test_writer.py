from pathlib import Path

import numpy as np
import pytest

from golf.data.shards import read_shard
from golf.data.writer import ShardWriter


def write(folder: Path, lengths: list[int], shard_tokens: int) -> list[list[int]]:
    """Document number n is n, repeated; returns the document numbers of each shard, one a token."""
    with ShardWriter(folder, "x_train", shard_tokens=shard_tokens) as writer:
        for number, length in enumerate(lengths):
            writer.append(np.full(length, number, dtype=np.uint16))
    assert writer.tokens == sum(lengths)
    assert [path.name for path in writer.paths] == [f"x_train_{n:06d}.bin" for n in range(len(writer.paths))]
    return [read_shard(path).tolist() for path in writer.paths]


def test_a_document_that_does_not_fit_begins_the_next_shard(tmp_path: Path) -> None:
    assert write(tmp_path, [4, 5, 3, 7, 4], 10) == [[0] * 4 + [1] * 5, [2] * 3 + [3] * 7, [4] * 4]


def test_a_document_longer_than_a_shard_stays_whole(tmp_path: Path) -> None:
    assert write(tmp_path, [25, 4], 10) == [[0] * 25, [1] * 4]


def test_a_rest_too_short_to_train_on_joins_the_last_shard(tmp_path: Path) -> None:
    assert [len(shard) for shard in write(tmp_path, [900, 99, 4, 4], 1000)] == [1007]


def test_a_rest_of_a_hundredth_is_a_shard(tmp_path: Path) -> None:
    shards = write(tmp_path, [900, 99, 4, 4, 2], 1000)
    assert [len(shard) for shard in shards] == [999, 10]
    assert shards[1] == [2] * 4 + [3] * 4 + [4] * 2


def test_a_short_document_does_not_overtake_one_that_waits(tmp_path: Path) -> None:
    assert write(tmp_path, [995, 6, 4], 1000) == [[0] * 995, [1] * 6 + [2] * 4]


def test_no_token_is_lost_or_moved(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
    shards = write(tmp_path, lengths, 500)
    assert len(shards) > 10
    assert [token for shard in shards for token in shard] == np.repeat(np.arange(300), lengths).tolist()


def test_nothing_written_makes_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, [], 10) == []


def test_an_error_leaves_no_half_shard(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with ShardWriter(tmp_path, "x_train", shard_tokens=5) as writer:
            for number in range(3):
                writer.append(np.full(4, number, dtype=np.uint16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x_train_000000.bin", "x_train_000001.bin"]
