"""Bigram buckets, the stochastic average and plain evaluation of the PR #401 lineage; its quantizers have a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from golf.averaging import Averages
from golf.config import EvalConfig
from golf.data.bytes import TableByteCounter
from golf.distributed import single_world
from golf.evaluate import TokenLosses, ValidationStream, evaluate
from golf.model.parts.bigram import BigramHash
from golf.part_config import BigramConfig
from golf.training_config import AverageConfig
from tests.parity.fixture_set import read_fixture, under
from tests.parity.test_model_pr401 import Recorded
from tests.pico import pico_recipe


def buckets_of(tokens: Tensor, count: int) -> Tensor:
    """The buckets of rows of ids in 32 bits, in which the reference's products wrap."""
    part = BigramHash(pico_recipe().model, BigramConfig(buckets=count, dim=1))
    follows = torch.ones_like(tokens, dtype=torch.bool)
    follows[:, 0] = False
    return part.bucket(tokens.int(), follows)


def test_bigrams_fall_into_the_recorded_buckets(fixtures: Path) -> None:
    recorded = under(read_fixture(fixtures, "pr401_extras")[1], "bigram::")
    names = [name for name in recorded if "indices" in name]
    assert len(names) > 1
    for name in names:
        kind, _, count = name.partition("indices.vocab")
        assert torch.equal(buckets_of(recorded[f"{kind}tokens"], int(count)).int(), recorded[name]), name


class Weights(nn.Module):
    """Named parameters."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterDict(values)

    @torch.no_grad()
    def become(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.values[name].copy_(value)


def test_the_stochastic_average_of_bfloat16_weights_is_the_recorded_one(fixtures: Path) -> None:
    recorded = under(read_fixture(fixtures, "pr401_extras")[1], "swa::")
    atol = read_fixture(fixtures, "schedule")[0]["tolerances"]["ema"]["atol"]  # golf's is a running mean
    steps = sorted({name.split(".")[0] for name in recorded if name.startswith("checkpoint")})
    model = Weights(under(recorded, f"{steps[0]}."))
    averages = Averages(model, AverageConfig(swa_every=1, swa_below=1.0, use="swa", shadows=()))
    for step, name in enumerate(steps, start=1):
        model.become(under(recorded, f"{name}."))
        averages.update(step=step, lr_multiplier=0.0)
    for name, expected in under(recorded, "average_f32.").items():
        torch.testing.assert_close(averages.swa[f"values.{name}"], expected, rtol=0, atol=atol)
    for name, expected in under(recorded, "average.").items():
        assert torch.equal(averages.final()[f"values.{name}"], expected), name


def test_the_plain_evaluation_scores_as_recorded(fixtures: Path) -> None:
    (extras, _), (values, stream), recorded = (
        *(read_fixture(fixtures, n) for n in ("pr401_extras", "eval")),
        Recorded(fixtures),
    )
    settings, expected = extras["hyperparameters"], extras["plain_eval"]
    tables = under(stream, "in::lut.")
    counter = TableByteCounter(
        tables["base_bytes"].numpy(),
        tables["has_leading_space"].bool().numpy(),
        tables["is_boundary_token"].bool().numpy(),
    )
    score = evaluate(
        TokenLosses(recorded.model, recorded.plan),
        ValidationStream(
            stream["in::val_tokens"][: values["usable_tokens"]].numpy().astype(np.uint16),
            counter,
            EvalConfig(seq_len=settings["eval_seq_len"], batch_tokens=settings["eval_seq_len"]),
            recorded.model.config.bos_id,
            cross_documents=True,
        ),
        world=single_world(torch.device("cpu")),
    )
    assert score.tokens == expected["tokens"]
    for name, found in (("loss", score.val_loss), ("bpb", score.val_bpb)):
        assert found == pytest.approx(expected[name], rel=values["tolerances"][name]["rtol"]), name
