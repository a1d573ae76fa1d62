"""Evaluation is timed over every validation token, in the graph that training ends in."""

from pathlib import Path

import pytest
import torch

from golf.bench import evaluation
from golf.bench.evaluation import time_evaluation
from golf.bench.synthetic import VAL_BATCHES, make_dataset
from golf.distributed import single_world
from golf.evaluate import Score
from golf.log import Log
from golf.workbench import Workbench
from tests.pico import pico_recipe


def test_the_first_time_and_the_later_ones_give_tokens_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, scores = pico_recipe(), []
    score = Workbench.score

    def watched(bench: Workbench, log: Log, label: str) -> Score:
        scores.append(len(bench.plan.visits))
        return score(bench, log, label, limit_batches=1)

    monkeypatch.setattr(Workbench, "score", watched)
    world = single_world(torch.device("cpu"))
    found = time_evaluation(recipe, make_dataset(tmp_path, recipe), world, Log(rank=1))
    assert scores == [6, 6, 6, 6]  # 4 layers, 2 of them twice
    assert [(one.name, one.count) for one in found.measurements] == [("eval/cold", 1), ("eval/warm", 3)]
    tokens = VAL_BATCHES * 64
    cold, warm = (one.seconds for one in found.measurements)
    assert [one.value for one in found.figures] == [tokens, tokens / cold, tokens / warm]
    assert evaluation._REPEATS == 3
