from pathlib import Path

import numpy as np
import pytest

from golf.data.shards import write_shard
from golf.data.windows import calibration_windows, read_windows
from golf.errors import UsageError

SIZES = [1003, 400, 700]


def test_no_window_comes_twice_before_all_have_come() -> None:
    windows = [
        w
        for batch in calibration_windows(SIZES, window_len=16, windows_per_batch=13, num_batches=9, virtual_world=1)
        for w in batch
    ]
    assert len(set(windows)) == len(windows) == 117


def test_windows_of_a_shard_share_a_phase_and_do_not_overlap() -> None:
    windows = calibration_windows(SIZES, window_len=16, windows_per_batch=40, num_batches=3, virtual_world=1)
    for shard, size in enumerate(SIZES):
        starts = [start for batch in windows for s, start in batch if s == shard]
        assert len({start % 16 for start in starts}) == 1
        assert max(starts) + 17 <= size


def test_a_virtual_rank_owns_every_eighth_shard() -> None:
    windows = calibration_windows([500] * 18, window_len=16, windows_per_batch=30, num_batches=2, virtual_rank=1)
    assert {shard for batch in windows for shard, _ in batch} == {1, 9, 17}


def test_windows_are_drawn_anew_when_none_is_left() -> None:
    windows = calibration_windows([100], window_len=16, windows_per_batch=5, num_batches=10)
    assert [len(batch) for batch in windows] == [5] * 10


def test_the_draw_is_a_function_of_its_arguments() -> None:
    draws = [calibration_windows(SIZES, window_len=16, windows_per_batch=6, num_batches=2) for _ in range(2)]
    assert draws[0] == draws[1]


def test_a_virtual_rank_without_shards_is_refused() -> None:
    with pytest.raises(UsageError, match="virtual rank 3 of 8 owns none of the 3 training shards"):
        calibration_windows(SIZES, window_len=16, windows_per_batch=1, num_batches=1, virtual_rank=3)


def test_shards_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(UsageError, match="holds the 17 tokens of a window"):
        calibration_windows([16], window_len=16, windows_per_batch=1, num_batches=1)


def test_a_shard_of_one_window_is_used() -> None:
    assert calibration_windows([17], window_len=16, windows_per_batch=2, num_batches=1) == [[(0, 0), (0, 0)]]


def test_a_batch_of_windows_has_one_segment_a_row(tmp_path: Path) -> None:
    for shard, size in enumerate(SIZES):
        write_shard(tmp_path / f"{shard}.bin", 1000 * shard + np.arange(size))
    batch = read_windows([tmp_path / f"{shard}.bin" for shard in range(3)], [(2, 5), (0, 900), (1, 7)], 3)
    assert batch.tokens.tolist() == [[2005, 2006, 2007], [900, 901, 902], [1007, 1008, 1009]]
    assert batch.targets.tolist() == [[2006, 2007, 2008], [901, 902, 903], [1008, 1009, 1010]]
    assert batch.cu_seqlens.tolist() == [0, 3, 6] + [9] * 61
    assert batch.max_seqlen == 3
