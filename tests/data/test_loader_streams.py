"""What every stream promises behind the loader: any step by its number, the same for any number of ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf.data.loader import Loader, Stream
from golf.data.packed import PackedStream
from golf.data.sampled import SampledStream
from golf.data.sequential import SequentialStream
from golf.data.shards import write_shard
from golf.errors import UsageError

SIZES = [211, 193, 175, 160, 301, 158, 222, 187, 199]
SEQ_LEN, BATCH_TOKENS = 7, 8 * 2 * 7
ROWS: dict[str, int] = {"batch_tokens": BATCH_TOKENS, "seq_len": SEQ_LEN}
OPEN: dict[str, Callable[[list[Path]], Stream]] = {
    "packed": lambda paths: PackedStream.open(paths, batch_tokens=BATCH_TOKENS, bos_id=1),
    "sequential": lambda paths: SequentialStream.open(paths, **ROWS),
    "shuffled": lambda paths: SampledStream.shuffled(paths, **ROWS),
    "coprime": lambda paths: SampledStream.coprime(paths, **ROWS),
}
STEPS = 23  # 2,576 inputs of 1,806 tokens: every stream begins a second time

each_stream = pytest.mark.parametrize("name", OPEN)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Shards whose ids tell shard and place; a document starts every 5 tokens."""
    paths = []
    for shard, size in enumerate(SIZES):
        tokens = 1000 * (shard + 1) + np.arange(size)
        tokens[::5] = 1
        paths.append(tmp_path / f"x_train_{shard:06d}.bin")
        write_shard(paths[-1], tokens)
    return paths


def loader_of(name: str, paths: list[Path], *, rank: int = 0, world_size: int = 1, **changes: Any) -> Loader:
    settings = {"bos_id": 1, "max_doc_len": SEQ_LEN, "rows_per_micro_batch": 0} | changes
    return Loader(OPEN[name](paths), rank=rank, world_size=world_size, **settings)


def rows_of(loader: Loader) -> list[list[int]]:
    """The next step's rows, each with its last target."""
    batches = loader.next_step()
    assert all(torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1]) for batch in batches)
    return [row for b in batches for row in torch.cat([b.tokens, b.targets[:, -1:]], dim=1).tolist()]


def read_all(name: str, paths: list[Path], steps: int = STEPS, **changes: Any) -> list[list[list[int]]]:
    loader = loader_of(name, paths, **changes)
    found = [rows_of(loader) for _ in range(steps)]
    loader.close()
    return found


@each_stream
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_rows_of_one(shards: list[Path], name: str, world_size: int) -> None:
    alone = read_all(name, shards)
    by_rank = [read_all(name, shards, rank=rank, world_size=world_size) for rank in range(world_size)]
    each = 2 if name != "packed" else 1  # rows of a virtual rank
    for step, rows in enumerate(alone):
        segments = [
            by_rank[virtual % world_size][step][virtual // world_size * each : (virtual // world_size + 1) * each]
            for virtual in range(8)
        ]
        assert [row for segment in segments for row in segment] == rows


@each_stream
@pytest.mark.parametrize("together", [1, 2, 4])
def test_micro_batches_hold_whole_virtual_ranks(shards: list[Path], name: str, together: int) -> None:
    loader = loader_of(name, shards, rows_per_micro_batch=together)
    assert len(loader.next_step()) == 8 // together
    loader.seek(0)
    assert rows_of(loader) == read_all(name, shards, 1)[0]
    loader.close()


@each_stream
def test_seeking_equals_reading_up_to_there(shards: list[Path], name: str) -> None:
    sequential = read_all(name, shards)
    loader = loader_of(name, shards)
    for step in (22, 0, 5, 6, 3, 14):
        loader.seek(step)
        assert rows_of(loader) == sequential[step]
    loader.close()


@each_stream
def test_a_loader_restored_by_another_number_of_ranks_goes_on_where_it_stood(shards: list[Path], name: str) -> None:
    loader, other = loader_of(name, shards), loader_of(name, shards, rank=1, world_size=8)
    for _ in range(9):
        loader.next_step()
    other.restore(json.loads(json.dumps(loader.position())))
    following, own = rows_of(loader), rows_of(other)
    loader.close()
    other.close()
    assert own == following[len(own) : 2 * len(own)]


@each_stream
def test_a_position_of_another_stream_is_refused(shards: list[Path], name: str) -> None:
    for other in OPEN.keys() - {name}:
        with pytest.raises(UsageError, match="loader"):
            loader_of(name, shards).restore(loader_of(other, shards).position())


@pytest.mark.parametrize("name", ["sequential", "shuffled", "coprime"])
def test_a_position_of_other_rows_is_refused(shards: list[Path], name: str) -> None:
    loader = loader_of(name, shards)
    with pytest.raises(UsageError, match="seq_len differ"):
        loader.restore(loader.position() | {"seq_len": 8})


@each_stream
def test_reading_ahead_changes_nothing(shards: list[Path], name: str) -> None:
    assert read_all(name, shards, 6, prefetch=0) == read_all(name, shards, 6, prefetch=4)


@pytest.mark.parametrize("name", ["sequential", "shuffled", "coprime"])
def test_documents_are_apart_unless_rows_may_cross_them(shards: list[Path], name: str) -> None:
    apart, crossing = (loader_of(name, shards, cross_documents=crosses) for crosses in (False, True))
    isolated, whole = apart.next_step()[0], crossing.next_step()[0]
    apart.close()
    crossing.close()
    inputs = isolated.tokens.flatten().tolist()
    starts = [at for at, token in enumerate(inputs) if token == 1 or at % SEQ_LEN == 0]
    assert isolated.cu_seqlens.unique().tolist() == [*starts, len(inputs)]
    assert whole.cu_seqlens.unique().tolist() == list(range(0, len(inputs) + 1, SEQ_LEN))
    assert torch.equal(isolated.tokens, whole.tokens)
    assert isolated.max_seqlen == whole.max_seqlen == SEQ_LEN


@each_stream
def test_no_shards_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no training shards"):
        loader_of(name, [])
