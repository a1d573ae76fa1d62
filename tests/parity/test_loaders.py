"""The loaders against recorded batches of the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.data.loader import Loader
from golf.data.packed import PackedStream
from golf.data.shards import read_shard
from golf.data.windows import calibration_windows, read_windows
from tests.parity.fixture_set import read_fixture, recorded_path

BOS_ID = 1


@pytest.fixture
def recorded(fixtures: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[Path]]:
    description, tensors = read_fixture(fixtures, "loaders")
    return description, tensors, [recorded_path(fixtures, name) for name in description["files"]]


def batches_of(tensors: dict[str, Tensor], kind: str) -> dict[tuple[int, int], int]:
    """How many batches were recorded for each (world size, rank)."""
    counts: dict[tuple[int, int], int] = {}
    for name in tensors:
        if name.startswith(kind) and name.endswith(".inputs"):
            world, rank = name.split(".")[1:3]
            key = int(world.removeprefix("ws")), int(rank.removeprefix("rank"))
            counts[key] = counts.get(key, 0) + 1
    return counts


def packed(shards: list[Path], packing: dict[str, Any], *, rank: int, world: int, rows: int, group: int) -> Loader:
    stream = PackedStream.open(shards, batch_tokens=packing["train_batch_tokens"], bos_id=BOS_ID, group_ranks=group)
    return Loader(
        stream,
        max_doc_len=packing["max_doc_len"],
        bos_id=BOS_ID,
        rank=rank,
        world_size=world,
        rows_per_micro_batch=rows,
    )


def test_shards_have_the_recorded_sizes(recorded: tuple[dict[str, Any], dict[str, Tensor], list[Path]]) -> None:
    description, _, shards = recorded
    assert [read_shard(path).size for path in shards] == description["shard_tokens"]


def test_packed_batches_are_those_of_the_reference(
    recorded: tuple[dict[str, Any], dict[str, Tensor], list[Path]],
) -> None:
    description, tensors, shards = recorded
    packing = description["packing"]
    counts = batches_of(tensors, "pack.")
    assert len({world for world, _ in counts}) >= 3
    for (world, rank), count in counts.items():
        loader = packed(shards, packing, rank=rank, world=world, rows=1, group=world)
        micro_batches = [batch for _ in range(count) for batch in loader.next_step()][:count]
        loader.close()
        for number, batch in enumerate(micro_batches):
            name = f"pack.ws{world}.rank{rank}.batch{number}"
            assert torch.equal(batch.tokens[0], tensors[f"{name}.inputs"].long())
            assert torch.equal(batch.targets[0], tensors[f"{name}.targets"].long())
            assert torch.equal(batch.cu_seqlens, tensors[f"{name}.cu_seqlens"])
            assert len(batch.cu_seqlens) % packing["cu_bucket_size"] == 0
            assert batch.tokens.numel() == packing["tokens_per_rank_and_micro_batch"]
            assert int(batch.cu_seqlens.diff().max()) == packing["max_seqlen"][name]


def test_eight_way_groups_read_the_same_stream_on_any_world_size(
    recorded: tuple[dict[str, Any], dict[str, Tensor], list[Path]],
) -> None:
    """With groups of eight, rank 0 of one reads what the reference's ranks 0 to 7 of eight read."""
    description, tensors, shards = recorded
    packing = description["packing"]
    counts = batches_of(tensors, "pack.ws8")
    for (_, rank), count in counts.items():
        loader = packed(shards, packing, rank=0, world=1, rows=0, group=8)
        for number in range(count):
            expected = tensors[f"pack.ws8.rank{rank}.batch{number}.inputs"].long()
            assert torch.equal(loader.next_step()[0].tokens[rank], expected)
        loader.close()


def test_calibration_windows_are_those_of_the_reference(
    recorded: tuple[dict[str, Any], dict[str, Tensor], list[Path]],
) -> None:
    description, tensors, shards = recorded
    calibration = description["calibration"]
    assert calibration["rows_per_batch"] * calibration["seq_len"] * 8 == calibration["train_batch_tokens"]
    for (world, rank), count in batches_of(tensors, "calib.").items():
        windows = calibration_windows(
            description["shard_tokens"],
            window_len=calibration["seq_len"],
            windows_per_batch=calibration["rows_per_batch"],
            num_batches=count,
            virtual_rank=rank,
            virtual_world=world,
        )
        for number, own in enumerate(windows):
            batch = read_windows(shards, own, calibration["seq_len"])
            name = f"calib.ws{world}.rank{rank}.batch{number}"
            assert torch.equal(batch.tokens, tensors[f"{name}.inputs"].long())
            assert torch.equal(batch.targets, tensors[f"{name}.targets"].long())
