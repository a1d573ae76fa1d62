"""The score: one token at a time, any number of ranks, exact counts."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.config import EvalConfig
from golf.data.bytes import SidecarByteCounter
from golf.data.documents import Batch
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import NumericalFaultError, UsageError
from golf.evaluate import Score, TokenLosses, ValidationStream, evaluate
from golf.model.init import build_model
from golf.model.plan import plan_layers
from tests.pico import BOS, pico_dataset, pico_model, pico_recipe
from tests.ranks import CPU, run_ranks

ALONE = World(0, 1, 0, CPU)
RECIPE = pico_recipe()
PLAN = plan_layers(RECIPE.model, looping=True)


def stream_of(dataset: Dataset) -> ValidationStream:
    counts = dataset.val_bytes()
    assert counts is not None
    return ValidationStream(dataset.val_tokens(), SidecarByteCounter(counts), RECIPE.eval, BOS)


@pytest.fixture
def stream(tmp_path: Path) -> ValidationStream:
    """140 targets: two batches of 64 and a ragged one of 12."""
    return stream_of(pico_dataset(tmp_path / "data", val=141))


def segment_starts(tokens: list[int]) -> list[int]:
    """Every document, the row's start, and every 16 tokens after each."""
    starts, last = [], 0
    for position, token in enumerate(tokens):
        if position == 0 or token == BOS:
            last = position
        if (position - last) % 16 == 0:
            starts.append(position)
    return starts


@torch.no_grad()
def test_the_loss_is_that_of_single_tokens_in_their_contexts(stream: ValidationStream) -> None:
    model, tokens = pico_model(RECIPE), stream.tokens.astype(np.int64)
    total = 0.0
    for position in range(1, len(tokens)):
        first = (position - 1) // 64 * 64
        context = tokens[first:position]
        bounds = torch.tensor([*segment_starts(context.tolist()), len(context)], dtype=torch.int32)
        row, targets = torch.from_numpy(context)[None], torch.from_numpy(tokens[first + 1 : position + 1])[None]
        total += float(model(Batch(row, targets, bounds, 16), plan=PLAN)[0, -1])
    found = evaluate(TokenLosses(model, PLAN), stream, world=ALONE)
    assert found.loss_sum == pytest.approx(total, rel=1e-6)


@torch.no_grad()
def test_losses_are_summed_in_float64(stream: ValidationStream) -> None:
    model = pico_model(RECIPE)
    batches = [stream.batch(index) for index in range(len(stream))]
    losses = [loss for batch, mask, _ in batches for loss in model(batch, plan=PLAN)[mask].tolist()]
    assert evaluate(TokenLosses(model, PLAN), stream, world=ALONE).loss_sum == pytest.approx(
        math.fsum(losses), rel=1e-14
    )


def test_every_target_and_its_bytes_are_counted_once_the_ragged_tail_too(stream: ValidationStream) -> None:
    found = evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=ALONE)
    assert isinstance(stream.counter, SidecarByteCounter)
    assert (len(stream), found.tokens, found.bytes) == (3, 140, int(stream.counter.val_bytes[1:].sum()))


@pytest.mark.parametrize("count", [2, 63, 64, 65, 66, 129])
def test_no_length_of_the_stream_loses_a_target(tmp_path: Path, count: int) -> None:
    stream = stream_of(pico_dataset(tmp_path / "data", val=count))
    batches = [stream.batch(index) for index in range(len(stream))]
    scored = torch.cat([batch.targets[mask] for batch, mask, _ in batches])
    assert scored.tolist() == stream.tokens[1:].tolist()
    assert evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=ALONE).tokens == count - 1


def test_padding_of_the_last_batch_does_not_change_its_score(stream: ValidationStream) -> None:
    model = pico_model(RECIPE)
    short = dataclasses.replace(stream, tokens=stream.tokens[128:], config=EvalConfig(seq_len=16, batch_tokens=16))
    padded = dataclasses.replace(short, config=RECIPE.eval)
    found, expected = (evaluate(TokenLosses(model, PLAN), part, world=ALONE).loss_sum for part in (padded, short))
    assert found == pytest.approx(expected, rel=1e-6)


def test_all_batches_have_one_shape(stream: ValidationStream) -> None:
    shapes = {batch.tokens.shape for batch, _, _ in (stream.batch(index) for index in range(len(stream)))}
    assert shapes == {(1, 64)}


def test_a_limit_scores_the_first_batches_alone(stream: ValidationStream) -> None:
    model = pico_model(RECIPE)
    limited = evaluate(TokenLosses(model, PLAN), stream, world=ALONE, limit_batches=2)
    start = dataclasses.replace(stream, tokens=stream.tokens[:129])
    assert limited == evaluate(TokenLosses(model, PLAN), start, world=ALONE)
    assert evaluate(TokenLosses(model, PLAN), stream, world=ALONE, limit_batches=9).tokens == 140


def scored(world: World, folder: Path) -> tuple[float, int, int]:
    """The three sums as this rank has them."""
    score = evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream_of(Dataset.open(folder)), world=world)
    return score.loss_sum, score.tokens, score.bytes


def test_one_two_and_four_ranks_have_the_same_sums_bit_for_bit(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data", val=1941)  # 31 batches: no number of ranks above one divides them
    (alone,) = run_ranks(1, tmp_path, scored, tmp_path / "data")
    assert alone[1] == 1940
    for size in (2, 4):
        assert run_ranks(size, tmp_path, scored, tmp_path / "data") == size * [alone]


class Crafted(World):
    """Rank 0 of 2 that is told what both ranks summed, rank by rank: 1e16 and 1, then -1e16 and nothing."""

    def gather(self, shard: torch.Tensor) -> torch.Tensor:
        whole = torch.ones(2 * len(shard), 3, dtype=torch.float64)
        whole[:, 0] = torch.tensor([1e16, 1.0, -1e16, 0.0], dtype=torch.float64)
        return whole


def test_sums_are_added_in_the_order_of_the_batches(tmp_path: Path) -> None:
    stream = stream_of(pico_dataset(tmp_path / "data", val=193))
    found = evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=Crafted(0, 2, 0, CPU))
    assert found.loss_sum == 1.0  # 1e16 - 1e16 + 1; rank by rank the 1 is lost in 1e16


def test_more_ranks_than_batches_are_no_trouble(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data", val=65)
    (alone,) = run_ranks(1, tmp_path, scored, tmp_path / "data")
    assert run_ranks(2, tmp_path, scored, tmp_path / "data") == [alone, alone]


def reference_positions(targets: int, ranks: int, sequences: int) -> list[int]:
    """The inputs that the published script's ranks score: equal ranges of sequences of 16, in whole batches."""
    total, found = targets // 16, []
    for rank in range(ranks):
        first, stop = total * rank // ranks, total * (rank + 1) // ranks
        stop -= (stop - first) % sequences
        found += list(range(first * 16, stop * 16))
    return found


@pytest.mark.parametrize(("count", "ranks"), [(141, 1), (301, 1), (301, 2), (1941, 8), (1930, 4)])
def test_without_tails_each_rank_scores_the_whole_batches_of_its_range(tmp_path: Path, count: int, ranks: int) -> None:
    whole = stream_of(pico_dataset(tmp_path / "data", val=count))
    stream = dataclasses.replace(whole, whole_batches_of=ranks)
    expected = reference_positions(count - 1, ranks, 4)
    batches = [stream.batch(index) for index in range(len(stream))]
    assert torch.cat([batch.tokens[0] for batch, _, _ in batches]).tolist() == stream.tokens[expected].tolist()
    assert all(bool(mask.all()) for _, mask, _ in batches)
    score = evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=ALONE)
    assert isinstance(stream.counter, SidecarByteCounter)
    assert (score.tokens, score.bytes) == (len(expected), stream.counter.val_bytes[np.array(expected) + 1].sum())


def test_rows_that_cross_documents_are_one_segment_each(stream: ValidationStream) -> None:
    crossing = dataclasses.replace(stream, cross_documents=True)
    batch, mask, charged = crossing.batch(2)
    assert batch.tokens.shape == batch.targets.shape == mask.shape == (4, 16)
    assert batch.cu_seqlens.unique().tolist() == [0, 16, 32, 48, 64]
    assert batch.max_seqlen == 16
    assert batch.tokens.flatten()[:12].tolist() == stream.tokens[128:140].tolist()
    assert (int(mask.sum()), charged) == (12, stream.batch(2)[2])
    model = pico_model(RECIPE)
    apart, crossed = (evaluate(TokenLosses(model, PLAN), part, world=ALONE) for part in (stream, crossing))
    assert (apart.tokens, apart.bytes) == (crossed.tokens, crossed.bytes)
    assert apart.loss_sum != pytest.approx(crossed.loss_sum, rel=1e-4)


def test_rounding_logits_acts_in_bfloat16_alone(stream: ValidationStream) -> None:
    rounding = dataclasses.replace(stream, rounds_logits=True)
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model(RECIPE.model, seed=1, dtype=dtype, device=CPU)
        plain, rounded = (evaluate(TokenLosses(model, PLAN), part, world=ALONE).loss_sum for part in (stream, rounding))
        assert (plain == rounded) is (dtype == torch.float32)
        assert plain == pytest.approx(rounded, rel=1e-3)


def test_progress_is_told_batch_by_batch(stream: ValidationStream) -> None:
    told: list[int] = []
    evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=ALONE, advance=told.append)
    assert told == [1, 1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_a_numerical_fault(stream: ValidationStream, value: float) -> None:
    model = pico_model(RECIPE)
    with torch.no_grad():
        model.get_parameter("blocks.2.mlp.fc.weight")[0, 0] = value
    with pytest.raises(NumericalFaultError, match="not finite"):
        evaluate(TokenLosses(model, PLAN), stream, world=ALONE)


def test_a_stream_without_a_target_is_refused(tmp_path: Path) -> None:
    stream = stream_of(pico_dataset(tmp_path / "data", val=1))
    with pytest.raises(UsageError, match="no target to score"):
        evaluate(TokenLosses(pico_model(RECIPE), PLAN), stream, world=ALONE)


def test_the_figures_follow_from_the_sums() -> None:
    score = Score(loss_sum=200.0, tokens=80, bytes=250)
    assert score.val_loss == 2.5
    assert score.val_bpb == pytest.approx(200 / math.log(2) / 250)
    assert score.to_dict() == {
        "val_loss": 2.5,
        "val_bpb": score.val_bpb,
        "bits": pytest.approx(288.539008),
        "bytes": 250,
        "tokens": 80,
    }


def test_tokens_without_text_have_no_score(stream: ValidationStream) -> None:
    silent = dataclasses.replace(stream, counter=SidecarByteCounter(np.zeros(len(stream.tokens), np.uint16)))
    with pytest.raises(UsageError, match="the scored tokens stand for no text"):
        evaluate(TokenLosses(pico_model(RECIPE), PLAN), silent, world=ALONE)
