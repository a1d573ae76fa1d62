"""The finished run that all tests of a session share."""

from pathlib import Path

import pytest

from tests.session_tools import Place, copy_place, finished_place


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with the finished run "done"; read only."""
    return finished_place(tmp_path_factory.getbasetemp())


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of it that a test may change."""
    return copy_place(finished, tmp_path / "place")
