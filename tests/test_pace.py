"""The host is at most one step ahead of the GPU."""

from typing import ClassVar

import pytest
import torch

from golf.pace import Pace


class End:
    """Stands for an event behind a step's work; counts who was waited for."""

    waited: ClassVar[list[int]] = []
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        self.number = End.made
        End.made += 1

    def record(self) -> None:
        pass

    def query(self) -> bool:
        """Be done at the second look."""
        End.waited.append(self.number)
        return End.waited.count(self.number) > 1


def test_the_step_before_the_last_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", End)
    monkeypatch.setattr(End, "waited", [])
    monkeypatch.setattr(End, "made", 0)
    pace = Pace(torch.device("cuda"))
    seen = []
    for _ in range(4):
        pace.wait()
        seen.append(list(End.waited))
        pace.mark()
    assert seen == [[], [], [0, 0], [0, 0, 1, 1]]


def test_nothing_is_noted_without_a_gpu() -> None:
    pace = Pace(torch.device("cpu"))
    for _ in range(3):
        pace.mark()
        pace.wait()
    assert not pace.ends
