"""The streams of random windows: shuffled by virtual rank, and coprime strides over mixed shards."""

import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from golf.data.coprime import coprime_windows
from golf.data.sampled import Replay, SampledStream
from golf.data.shards import write_shard
from golf.data.windows import Window, calibration_windows, shuffled_windows
from golf.errors import UsageError

SIZES = [211, 193, 175, 160, 301, 158, 222, 187, 199, 90]
ROWS = {"batch_tokens": 8 * 3 * 7, "seq_len": 7}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"x_train_{shard:06d}.bin" for shard in range(len(SIZES))]
    for shard, path in enumerate(paths):
        write_shard(path, 1000 * (shard + 1) + np.arange(SIZES[shard]))
    return paths


@pytest.mark.parametrize("virtual_rank", [0, 1, 7])
def test_a_virtual_rank_reads_the_windows_that_it_draws(shards: list[Path], virtual_rank: int) -> None:
    stream = SampledStream.shuffled(shards, **ROWS)
    steps = calibration_windows(SIZES, window_len=7, windows_per_batch=3, num_batches=30, virtual_rank=virtual_rank)
    for step, windows in enumerate(steps):
        first = [1000 * (shard + 1) + start for shard, start in windows]
        rows = stream.read(8 * step + virtual_rank)
        assert rows.tolist() == [list(range(token, token + 8)) for token in first]


@pytest.mark.parametrize("virtual_rank", [0, 2])
def test_the_draw_is_numpys_choice_in_proportion_to_what_is_left(virtual_rank: int) -> None:
    sizes, generator = [1003, 17, 400, 700, 900], np.random.Generator(np.random.PCG64(virtual_rank))
    owned = range(virtual_rank, len(sizes))
    starts = []
    for size in sizes[virtual_rank:]:
        phase = int(generator.integers(min(16, size - 16))) if size > 17 else 0
        starts.append((phase + 16 * generator.permutation((size - 1 - phase) // 16)).tolist())
    single = {"window_len": 16, "windows_per_draw": 1, "virtual_world": 1}
    drawn = shuffled_windows(sizes, virtual_rank=virtual_rank, **single)
    for _ in range(sum(map(len, starts))):
        left = np.array([len(own) for own in starts]) / sum(map(len, starts))
        chosen = int(generator.choice(len(starts), p=left))
        assert next(drawn) == [(owned[chosen], starts[chosen].pop())]


def test_the_virtual_ranks_share_the_windows_of_a_coprime_step_in_order(shards: list[Path]) -> None:
    stream = SampledStream.coprime(shards, **ROWS)
    for step, windows in enumerate(drawn_steps(SIZES, 30)):
        rows = np.concatenate([stream.read(8 * step + rank) for rank in range(8)])
        assert rows[:, 0].tolist() == [1000 * (shard + 1) + start for shard, start in windows]
        assert (np.diff(rows, axis=1) == 1).all()


def test_too_few_shards_for_the_virtual_ranks_are_refused(shards: list[Path]) -> None:
    with pytest.raises(UsageError, match="needs 8 training shards, one for each virtual rank, and there are 7; fetch"):
        SampledStream.shuffled(shards[:7], **ROWS)


def test_shards_shorter_than_a_row_are_refused_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"x_train_{shard:06d}.bin" for shard in range(8)]
    for path in paths:
        write_shard(path, np.arange(7))
    for open_stream in (SampledStream.shuffled, SampledStream.coprime):
        with pytest.raises(UsageError, match="the 8 tokens of a window; use longer shards"):
            open_stream(paths, **ROWS)


def drawn_steps(sizes: list[int], steps: int, *, window_len: int = 7, per_step: int = 24) -> list[list[Window]]:
    return list(islice(coprime_windows(sizes, window_len=window_len, windows_per_step=per_step), steps))


def cycles_of(sizes: list[int], window_len: int, per_step: int) -> list[list[Window]]:
    """The windows of two cycles: all shards begin a cycle together, when the last block of the one before is used."""
    drawn = [window for step in drawn_steps(sizes, 60, window_len=window_len, per_step=per_step) for window in step]
    cycles: list[list[Window]] = []
    for _ in range(2):
        seen: list[Window] = []
        blocks: dict[int, int] = {}
        while len(seen) < sum(blocks.values()) or len(blocks) < len(sizes):
            shard, start = drawn[len(seen)]
            blocks[shard] = (sizes[shard] - 1 - start % window_len) // window_len
            seen.append((shard, start))
        cycles.append(seen)
        drawn = drawn[len(seen) :]
    return cycles


@pytest.mark.parametrize(("window_len", "per_step"), [(7, 24), (16, 8), (5, 40)])
def test_every_block_of_every_shard_is_visited_once_in_a_cycle(window_len: int, per_step: int) -> None:
    phases = []
    for cycle in cycles_of(SIZES, window_len, per_step):
        assert len(set(cycle)) == len(cycle)
        for shard, size in enumerate(SIZES):
            starts = [start for owner, start in cycle if owner == shard]
            phase = min(starts)
            assert phase < window_len
            assert sorted(starts) == list(range(phase, size - window_len, window_len))
            phases.append((shard, phase))
    assert len(set(phases)) > len(SIZES)  # the second cycle has phases of its own


def test_the_blocks_of_a_shard_are_visited_by_one_stride_coprime_to_their_number() -> None:
    for shard, size in enumerate(SIZES):
        starts = [start for owner, start in cycles_of(SIZES, 7, 24)[0] if owner == shard]
        blocks = [(start - min(starts)) // 7 for start in starts]
        strides = {(after - before) % len(blocks) for before, after in pairwise(blocks)}
        assert len(strides) == 1
        assert math.gcd(strides.pop(), len(blocks)) == 1
        assert len(blocks) == (size - 1 - min(starts)) // 7


def test_the_cycles_of_shards_begin_at_blocks_of_their_own() -> None:
    cycle = cycles_of(SIZES, 7, 24)[0]
    firsts = {shard: next(start for owner, start in cycle if owner == shard) // 7 for shard in range(len(SIZES))}
    assert len(set(firsts.values())) > 4


def test_the_shards_mixed_in_a_step_grow_from_8_to_64_over_1800_steps() -> None:
    drawn = drawn_steps([40_000] * 80, 1900, per_step=384)
    mixed = [len({shard for shard, _ in step}) for step in drawn]
    assert [mixed[at] for at in (0, 900, 1800, 1899)] == [8, 36, 64, 64]
    assert all(len(step) == 384 for step in drawn)


def test_each_chosen_shard_gives_a_window_and_they_are_interleaved() -> None:
    first = [shard for shard, _ in drawn_steps([40_000] * 80, 1, per_step=384)[0]]
    assert len(set(first[:8])) == 8
    assert set(first[:8]) == set(first)


def test_fuller_shards_are_chosen_more_often_by_the_falling_power_of_what_they_have_left() -> None:
    """A shard 16 times as long has the odds 16^0.9 to 1 at first and 4 to 1 after the ramp."""
    sizes = [16 * 700_001] * 2 + [700_001] * 2
    steps = drawn_steps(sizes, 2400, per_step=40)
    for part, power in ((steps[:100], 0.9 - 0.4 * 50 / 1800), (steps[1800:], 0.5)):
        shards = [shard for step in part for shard, _ in step[4:]]  # beside the one that each of the four gives
        odds = sum(shard < 2 for shard in shards) / sum(shard >= 2 for shard in shards)
        assert odds == pytest.approx(16**power, rel=0.2)


def test_a_step_larger_than_all_shards_takes_several_cycles() -> None:
    (step,) = drawn_steps([30, 20], 1, per_step=40)
    assert len(step) == 40


def test_items_come_by_their_number_and_going_back_begins_again() -> None:
    begun: list[int] = []

    def begin() -> "islice[list[Window]]":
        begun.append(0)
        return islice(([(0, number)] for number in range(1000)), None)

    replay = Replay(begin)
    assert [replay.at(number)[0][1] for number in (3, 3, 7, 2, 2, 9, 0)] == [3, 3, 7, 2, 2, 9, 0]
    assert len(begun) == 3
