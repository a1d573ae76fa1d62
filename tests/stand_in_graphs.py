"""CUDA graphs without CUDA: a recording that computes again what it was recorded from, into the same places."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.data.documents import Batch
from golf.recording import Recorder, _Recording


class StandIn:
    """A recorded call. As on a GPU, recording it does nothing, and replaying it writes where it was recorded."""

    def __init__(self, function: Callable[[Batch, Any], Tensor], batch: Batch, key: Any) -> None:
        self.function, self.batch, self.key = function, batch, key
        self.result = torch.empty(0)
        self.replays = 0

    def replay(self) -> None:
        found = self.function(self.batch, self.key).detach()
        self.result.resize_(found.shape).copy_(found)
        self.replays += 1


def record_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """Let every run record its batches; return the recordings as they are made."""
    made: list[StandIn] = []

    def record(recorder: Recorder[Any], batch: Batch, key: Any) -> _Recording:
        made.append(graph := StandIn(recorder.function, batch, key))
        return _Recording(graph, batch, graph.result)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Recorder, "_record", record)
    for user in ("golf.gradient", "golf.workbench"):
        monkeypatch.setattr(f"{user}.can_record", lambda *_: True)
    return made
