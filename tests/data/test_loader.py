import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from golf.data.documents import Batch
from golf.data.loader import Loader
from golf.data.packed import PackedStream
from golf.data.shards import write_shard
from golf.errors import BadFileError, UsageError

BATCH_TOKENS, SPAN = 56, 8  # 8 segments of 7 inputs and a last target
SIZES = [211, 193, 75]  # 3, 2 and 1 groups of 64 tokens; the second would hold 3, but begins mid-document
READING: dict[str, Any] = {"max_doc_len": 4, "bos_id": 1, "rows_per_micro_batch": 0}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Shards of unlike sizes; ids tell shard and place, and shard 1 begins inside a document."""
    paths = []
    for shard, size in enumerate(SIZES):
        tokens = 1000 * (shard + 1) + np.arange(size)
        tokens[2 if shard == 1 else 0 :: 5] = 1
        paths.append(tmp_path / f"x_train_{shard:06d}.bin")
        write_shard(paths[-1], tokens)
    return paths


def packed(
    paths: list[Path],
    *,
    batch_tokens: int = BATCH_TOKENS,
    group_ranks: int = 8,
    rank: int = 0,
    world_size: int = 1,
    **changes: Any,
) -> Loader:
    stream = PackedStream.open(paths, batch_tokens=batch_tokens, bos_id=1, group_ranks=group_ranks)
    return Loader(stream, rank=rank, world_size=world_size, **READING | changes)


def read_all(paths: list[Path], steps: int, *, world_size: int = 1, **changes: Any) -> list[list[list[int]]]:
    """Each step's (tokens + last target) rows in segment order, put together from all ranks."""
    by_rank = []
    for rank in range(world_size):
        loader = packed(paths, rank=rank, world_size=world_size, **changes)
        by_rank.append([rows_of(loader.next_step()) for _ in range(steps)])
        loader.close()
    rows_each = len(by_rank[0][0])
    return [
        [by_rank[rank][step][row] for row in range(rows_each) for rank in range(world_size)] for step in range(steps)
    ]


def rows_of(batches: list[Batch]) -> list[list[int]]:
    rows = []
    for batch in batches:
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        rows += torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1).tolist()
    return rows


def test_steps_follow_the_rules_word_for_word(shards: list[Path]) -> None:
    """The oracle walks a cursor: skip to the first start, leave the shard when a group does not fit, cycle."""
    contents = [np.fromfile(path, dtype="<u2")[512:].tolist() for path in shards]
    shard, cursor, expected = 0, 0, []
    for _ in range(14):
        while cursor + 8 * SPAN > len(contents[shard]):
            shard = (shard + 1) % len(contents)
            cursor = contents[shard].index(1)
        expected.append([contents[shard][cursor + r * SPAN : cursor + (r + 1) * SPAN] for r in range(8)])
        cursor += 8 * SPAN
    assert read_all(shards, 14) == expected


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_step_does_not_depend_on_the_world_size(shards: list[Path], world_size: int) -> None:
    assert read_all(shards, 8, world_size=world_size) == read_all(shards, 8)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_micro_batches_cut_the_same_rows(shards: list[Path], rows: int) -> None:
    loader = packed(shards, rows_per_micro_batch=rows)
    batches = loader.next_step()
    loader.close()
    assert [tuple(batch.tokens.shape) for batch in batches] == [(rows, 7)] * (8 // rows)
    assert [rows_of(batches)] == read_all(shards, 1)


def test_a_full_shard_of_the_challenge_gives_127_steps() -> None:
    span = 786432 // 8 + 1
    groups = (10**8 - 0) // (8 * span)
    shards = (np.zeros(0, np.uint16),) * 3
    stream = PackedStream(shards, np.zeros(3, np.int64), np.cumsum([groups] * 3), span, 8, {})
    assert [stream.locate(8 * step)[1] for step in (0, 126, 127, 253, 254)] == [0, 0, 1, 1, 2]


def test_seeking_equals_reading_up_to_there(shards: list[Path]) -> None:
    sequential = read_all(shards, 14)
    loader = packed(shards)
    for step in (13, 0, 5, 6, 3):
        loader.seek(step)
        assert rows_of(loader.next_step()) == sequential[step]
    loader.close()


def test_the_position_is_of_what_was_consumed(shards: list[Path]) -> None:
    loader = packed(shards, prefetch=3)
    for _ in range(4):
        loader.next_step()
    position = loader.position()
    loader.close()
    place = {key: position[key] for key in ("step", "epoch", "shard", "cursor")}
    assert place == {"step": 4, "epoch": 0, "shard": 1, "cursor": 2 + 64}
    assert json.loads(json.dumps(position)) == position


def test_the_position_counts_epochs(shards: list[Path]) -> None:
    loader = packed(shards)
    loader.seek(6 * 5 + 3)
    position = loader.position()
    assert (position["epoch"], position["shard"], position["cursor"]) == (5, 1, 2)


def test_a_restored_loader_goes_on_where_it_stood(shards: list[Path]) -> None:
    loader = packed(shards)
    loader.next_step()
    position = loader.position()
    following = rows_of(loader.next_step())
    loader.close()
    other = packed(shards)
    other.restore(position)
    assert rows_of(other.next_step()) == following
    other.close()


def test_a_position_of_other_shards_is_refused(shards: list[Path]) -> None:
    position = packed(shards).position()
    fewer = packed(shards[:2], batch_tokens=48)
    with pytest.raises(UsageError, match="batch_tokens, files differ"):
        fewer.restore(position)


def test_segments_end_at_rows_documents_and_the_bound(shards: list[Path]) -> None:
    loader = packed(shards)
    batch = loader.next_step()[0]
    loader.close()
    assert batch.cu_seqlens[:6].tolist() == [0, 4, 5, 7, 9, 13]  # starts at 0, 5 in row 0; at 2 in row 1
    assert len(batch.cu_seqlens) == 64
    assert batch.max_seqlen == 4


def test_rows_that_cross_documents_are_cut_by_the_bound_alone(shards: list[Path]) -> None:
    loader = packed(shards, cross_documents=True)
    batch = loader.next_step()[0]
    loader.close()
    assert batch.cu_seqlens[:6].tolist() == [0, 4, 7, 11, 14, 18]
    assert [rows_of([batch])] == read_all(shards, 1)


def test_reading_ahead_changes_nothing(shards: list[Path]) -> None:
    assert read_all(shards, 7, prefetch=0) == read_all(shards, 7, prefetch=5)


def test_a_group_of_the_real_ranks_fills_a_shard_further(shards: list[Path]) -> None:
    """211 tokens hold 26 segments one by one, but only 24 in groups of eight."""
    alone, grouped = read_all(shards, 4, group_ranks=1), read_all(shards, 4)
    assert alone[:3] == grouped[:3]
    assert alone[3][1][1] == 1000 + 26 * 8 - 7
    assert grouped[3][1][1] >= 2000


def test_too_short_a_shard_is_named_with_the_least_size(tmp_path: Path, shards: list[Path]) -> None:
    short = tmp_path / "x_train_000003.bin"
    write_shard(short, np.array([5, 1] + [7] * 63))
    with pytest.raises(
        BadFileError, match=r"x_train_000003\.bin: its 65 tokens are too few: one step needs 73 of this"
    ) as told:
        packed([*shards, short], batch_tokens=64)
    assert told.value.path == short


def test_a_shard_without_document_start_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_train_000000.bin", np.full(500, 7))
    with pytest.raises(BadFileError, match=r"no document start \(id 1\); run `golf data prepare` again"):
        packed([tmp_path / "x_train_000000.bin"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"world_size": 3}, "rank 0 of 3 cannot share"),
        ({"world_size": 16}, "rank 0 of 16 cannot share"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_tokens": 60}, "must be a multiple of 8"),
        ({"rows_per_micro_batch": 3}, "must divide this rank's 8 rows"),
        ({"rows_per_micro_batch": 8, "world_size": 2}, "must divide this rank's 4 rows"),
        ({"group_ranks": 3}, "must divide 8"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(shards: list[Path], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        packed(shards, **changes)


def test_no_shards_are_refused() -> None:
    with pytest.raises(UsageError, match="no training shards"):
        packed([])


def test_a_fault_while_reading_ahead_is_raised_in_next_step(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = packed(shards)

    read = PackedStream.read

    def fail_in_step_0(self: PackedStream, segment: int) -> npt.NDArray[np.int64]:
        if segment < 8:
            raise OSError("the disk is gone")
        return read(self, segment)

    monkeypatch.setattr(PackedStream, "read", fail_in_step_0)
    for _ in range(2):  # and again, instead of going on with step 1
        with pytest.raises(OSError, match="the disk is gone"):
            loader.next_step()
    loader.close()


def test_an_interpreter_ends_without_closing_the_loader(shards: list[Path]) -> None:
    code = f"""
from pathlib import Path
from golf.data.loader import Loader
from golf.data.packed import PackedStream
stream = PackedStream.open([Path({str(shards[0])!r})], batch_tokens={BATCH_TOKENS}, bos_id=1)
loader = Loader(stream, rank=0, world_size=1, **{READING!r})
loader.next_step()
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_are_pinned_where_there_is_cuda(shards: list[Path]) -> None:
    loader = packed(shards)
    batch = loader.next_step()[0]
    loader.close()
    assert batch.tokens.is_pinned()
    assert batch.to("cuda", non_blocking=True).tokens.cpu().tolist() == batch.tokens.tolist()
