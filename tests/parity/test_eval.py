"""Plain evaluation of the dequantized record against the recorded losses and scores, rank by rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.config import EvalConfig
from golf.data.bytes import ByteCounter, SidecarByteCounter, TableByteCounter
from golf.distributed import single_world
from golf.evaluate import Score, TokenLosses, ValidationStream, evaluate
from tests.parity.fixture_set import read_fixture
from tests.parity.recorded import Recorded, plain, recorded_artifact, reference_name

BOS = 1


def dequantized_model(folder: Path) -> Recorded:
    recorded, stored = Recorded(folder, "model_1787"), recorded_artifact(folder)
    names = recorded.model.state_dict()
    recorded.model.load_state_dict({name: plain(stored[reference_name(name)]) for name in names})
    return recorded


def stream_of(values: dict[str, Any], tensors: dict[str, Tensor], row: dict[str, Any]) -> ValidationStream:
    """The part of the stream that one recorded rank scored, in its batches."""
    first, stop = row["target_positions"]
    part = slice(first - 1, stop)
    tokens = tensors["in::val_tokens"].numpy().astype(np.uint16)[part]
    base, lead, bound = (
        tensors[f"in::lut.{key}"].numpy() for key in ("base_bytes", "has_leading_space", "is_boundary_token")
    )
    counter: ByteCounter = TableByteCounter(base, lead.astype(bool), bound.astype(bool))
    if row["bytes_from"] == "sidecar":
        counter = SidecarByteCounter(tensors["in::val_bytes"].numpy().astype(np.uint16)[part])
    seq_len = values["hyperparameters"]["eval_seq_len"]
    return ValidationStream(
        tokens, counter, EvalConfig(seq_len=seq_len, batch_tokens=row["sequences_per_batch"] * seq_len), BOS
    )


def whole_stream(values: dict[str, Any], tensors: dict[str, Tensor], row: dict[str, Any]) -> ValidationStream:
    """The batches of all ranks of a recorded rank's world, over the whole recorded stream."""
    everything = stream_of(values, tensors, row | {"target_positions": [1, values["raw_tokens"]]})
    return replace(everything, whole_batches_of=row["world_size"])


def test_segments_are_those_of_the_reference(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    stream, expected = stream_of(values, tensors, values["results"][0]), values["batch_segments_world1"]
    assert len(stream) == len(expected)
    for index, (bounds, longest) in enumerate(expected):
        batch, _, _ = stream.batch(index)
        found = batch.cu_seqlens.unique().tolist()  # padding repeats the last one
        assert found == bounds
        assert batch.max_seqlen == longest


@pytest.mark.parametrize("source", ["sidecar", "lut"])
def test_recorded_losses_give_the_recorded_score(fixtures: Path, source: str) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    row = next(row for row in values["results"] if row["bytes_from"] == source and row["world_size"] == 1)
    stream = stream_of(values, tensors, row)
    charged = sum(count for _, _, count in (stream.batch(index) for index in range(len(stream))))
    score = Score(float(tensors["out::token_losses"].double().sum()), row["tokens"], charged)
    assert score.val_loss == pytest.approx(row["loss"], rel=values["tolerances"]["loss"]["rtol"])
    assert score.val_bpb == pytest.approx(row["bpb"], rel=values["tolerances"]["bpb"]["rtol"])
    assert row["bytes"] in (None, charged)


def test_the_batches_of_every_recorded_rank_are_those_of_its_range(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    seq_len = values["hyperparameters"]["eval_seq_len"]
    assert any(row["sequences"] != row["sequences_before_truncation"] for row in values["results"])
    for row in values["results"]:
        stream = whole_stream(values, tensors, row)
        starts = stream.rank_starts(row["rank"])
        stop = starts[-1] + stream.config.batch_tokens
        assert [starts[0] + 1, stop + 1] == row["target_positions"], row
        assert [starts[0] // seq_len, stop // seq_len] == row["sequences"], row
        assert 0 <= row["sequences_before_truncation"][1] * seq_len - stop < stream.config.batch_tokens, row


def test_all_ranks_of_a_recorded_world_together_score_what_they_score_apart(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    recorded, world = dequantized_model(fixtures), single_world(torch.device("cpu"))
    worlds = [row for row in values["results"] if row["rank"] > 0 and row["bytes_from"] == "sidecar"]
    compared = 0
    for row in worlds:
        same = ("world_size", "sequences_per_batch", "bytes_from")
        ranks = [other for other in values["results"] if all(other[key] == row[key] for key in same)]
        if len(ranks) < row["world_size"]:
            continue  # not all of its ranks were recorded
        compared += 1
        score = evaluate(
            TokenLosses(recorded.model, recorded.plan("on")), whole_stream(values, tensors, row), world=world
        )
        assert score.tokens == sum(other["tokens"] for other in ranks)
        assert score.bytes == sum(other["bytes"] for other in ranks)
        loss = sum(other["loss"] * other["tokens"] for other in ranks) / score.tokens
        assert score.val_loss == pytest.approx(loss, rel=values["tolerances"]["loss"]["rtol"])
    assert compared


def test_every_recorded_rank_is_scored_as_recorded(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    recorded, world = dequantized_model(fixtures), single_world(torch.device("cpu"))
    tolerances = values["tolerances"]
    for row in values["results"]:
        score = evaluate(TokenLosses(recorded.model, recorded.plan("on")), stream_of(values, tensors, row), world=world)
        assert score.tokens == row["tokens"], row
        assert row["bytes"] in (None, score.bytes), row
        assert score.val_loss == pytest.approx(row["loss"], rel=tolerances["loss"]["rtol"]), row
        assert score.val_bpb == pytest.approx(row["bpb"], rel=tolerances["bpb"]["rtol"]), row


@torch.no_grad()
def test_the_loss_of_every_token_is_the_recorded_one(fixtures: Path) -> None:
    values, tensors = read_fixture(fixtures, "eval")
    recorded, stream = dequantized_model(fixtures), stream_of(values, tensors, values["results"][0])
    batches = [stream.batch(index) for index in range(len(stream))]
    found = torch.cat([recorded.model(batch, plan=recorded.plan("on"))[mask] for batch, mask, _ in batches])
    torch.testing.assert_close(
        found, tensors["out::token_losses"], rtol=0, atol=values["tolerances"]["token_losses"]["atol"]
    )
