"""Collectives of several processes against sums and slices made here, and the words between hosts."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from golf.distributed import Pending, World, open_world
from golf.errors import UsageError
from golf.ranks import check_size, inside_launcher, rank_environment
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
EXACT = [math.pi, -0.0, math.inf, -math.inf, 1e-310, 2.0**60 + 1, 3.0]


def own(rank: int, rows: int) -> Tensor:
    """A rank's tensor (rows, 3), of halves: sums and means of four are exact."""
    return torch.randint(-8, 8, (rows, 3), generator=torch.Generator().manual_seed(rank)) / 2


def collected(world: World) -> dict[str, Any]:
    """What each collective gives, started together and awaited in another order."""
    size = world.size
    total, mean = own(world.rank, 5), own(world.rank, 5)
    stacked, shard = own(world.rank, 3 * size), torch.full((3, 3), math.nan)
    whole = torch.full((3 * size, 3), math.nan)
    summing, averaging = world.start_sum_(total), world.start_mean_(mean)
    scattering = world.start_scatter_mean(stacked, shard)
    gathering = world.start_gather(own(world.rank, 3).T.contiguous().T, whole)
    found = {"gather": gathering.wait(), "scatter": scattering.wait(), "mean": averaging.wait(), "sum": summing.wait()}
    in_place = [found["sum"] is total, found["mean"] is mean]
    plain_sum, plain_mean = own(world.rank, 5), own(world.rank, 5)
    world.sum_(plain_sum)
    world.mean_(plain_mean)
    found |= {"plain_sum": plain_sum, "plain_mean": plain_mean, "plain_gather": world.gather(own(world.rank, 3))}
    return {name: tensor.numpy().copy() for name, tensor in found.items()} | {"in_place": in_place}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_collectives_are_sums_means_and_slices_of_all_ranks(size: int, tmp_path: Path) -> None:
    total = sum((own(rank, 5) for rank in range(size)), torch.zeros(5, 3)).numpy()
    stacked = sum((own(rank, 3 * size) for rank in range(size)), torch.zeros(3 * size, 3)).numpy() / size
    whole = torch.cat([own(rank, 3) for rank in range(size)]).numpy()
    for rank, found in enumerate(run_ranks(size, tmp_path, collected)):
        assert found.pop("in_place") == [True, True]
        expected = {"gather": whole, "scatter": stacked[3 * rank : 3 * rank + 3], "mean": total / size, "sum": total}
        expected |= {"plain_sum": total, "plain_mean": total / size, "plain_gather": whole}
        assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


def test_alone_a_tensor_is_handed_through_uncopied() -> None:
    tensor = own(0, 3)
    started = ALONE.start_scatter_mean(tensor, torch.empty(0)), ALONE.start_gather(tensor, torch.empty(0))
    assert [pending.wait() is tensor for pending in started] == [True, True]


def test_only_what_lies_in_one_piece_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes nothing else."""
    given: list[Tensor] = []
    monkeypatch.setattr("golf.distributed._all_gather", lambda whole, shard, **_: given.append(shard))
    World(0, 2, 0, CPU).start_gather(own(0, 5).T, torch.empty(6, 5))
    assert given[0].is_contiguous()
    assert torch.equal(given[0], own(0, 5).T)


def test_what_is_pending_is_divided_once_it_is_there() -> None:
    tensor = torch.tensor([3.0])

    class Work:
        def wait(self) -> None:
            tensor.mul_(4.0)

    pending = Pending(tensor, Work(), 8)  # type: ignore[arg-type]  # a stand-in for PyTorch's
    assert float(tensor) == 3.0
    assert float(pending.wait()) == 1.5


def agreed(world: World) -> tuple[list[float], str, list[float]]:
    mine = [value + world.rank for value in EXACT]
    world.barrier()
    return world.agree(mine), world.agree_text(f"naïve {world.rank}"), world.agree([])


@pytest.mark.parametrize("size", [1, 4])
def test_ranks_agree_on_rank_0s_values_to_the_last_bit(size: int, tmp_path: Path) -> None:
    for values, text, nothing in run_ranks(size, tmp_path, agreed):
        assert [value.hex() for value in values] == [(value + 0).hex() for value in EXACT]
        assert (text, nothing) == ("naïve 0", [])


def shared(world: World) -> bool:
    data = bytes(range(256)) * 40_000  # more than the store takes at once
    return world.share_bytes(data if world.is_main else b"other") == data


def test_ranks_share_bytes(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, shared) == [True, True]


def limits(world: World) -> list[float]:
    """The limit that each kind of round was given."""
    seen: list[float] = []
    assert world.channel is not None
    share = world.channel.share

    def noted(data: bytes, *, limit_seconds: float) -> bytes:
        seen.append(limit_seconds)
        return share(data, limit_seconds=limit_seconds)

    world.channel.share = noted  # type: ignore[method-assign]  # in this child alone
    world.agree([1.0], limit_seconds=31.0)
    world.share_bytes(b"", limit_seconds=32.0)
    world.barrier(limit_seconds=33.0)
    world.agree([1.0])
    return seen


def test_the_limit_is_that_of_the_call(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, limits) == 2 * [[31.0, 32.0, 33.0, 3600.0]]


@pytest.mark.parametrize(("kind", "expected"), [("cpu", []), ("cuda", [torch.device("cuda", 3)])])
def test_the_device_is_waited_for_where_it_works_by_itself(
    monkeypatch: pytest.MonkeyPatch, kind: str, expected: list[torch.device]
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    World(3, 4, 3, torch.device(kind, 3) if kind == "cuda" else CPU).synchronize()
    assert waited == expected


@pytest.mark.parametrize("size", [3, 5, 6, 7, 16])
def test_sizes_that_do_not_divide_the_virtual_ranks_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"{size} processes: use 1, 2, 4 or 8"):
        check_size(size)


def test_without_a_launcher_a_world_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not inside_launcher()
    with open_world() as world:
        assert (world.rank, world.size, world.channel) == (0, 1, None)
    assert not dist.is_initialized()


def test_a_rank_inherits_the_environment_and_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOLF_TEST", "kept")
    found = rank_environment(3, 4, 4321)
    names = ("GOLF_TEST", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    assert [found[name] for name in names] == ["kept", "3", "3", "4", "4", "4321"]


@pytest.mark.parametrize(("cores", "size", "threads"), [(128, 8, "16"), (2, 8, "1"), (16, 1, "16")])
def test_ranks_share_the_cores(cores: int, size: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.ranks._cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert rank_environment(0, size, 1)["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rank_environment(0, size, 1)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("before", "after"), [(None, "ERROR"), ("INFO", "INFO")])
def test_ranks_leave_torchs_warnings_out_unless_they_are_wanted(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", before)
    assert rank_environment(0, 2, 1)["TORCH_CPP_LOG_LEVEL"] == after


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_flash_attention_keeps_its_compiled_kernels_unless_the_user_says_otherwise(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
    monkeypatch.setenv(name, before or "")  # so that it is put back
    if before is None:
        monkeypatch.delenv(name)
    with open_world():
        assert os.environ[name] == after
