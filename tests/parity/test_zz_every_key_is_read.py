"""The account of a whole run of the parity tests; its file's name makes it the last."""

from pathlib import Path

import pytest

from tests.parity.coverage import stale_excuses, unlisted_files, unread_keys
from tests.parity.fixture_set import fixture_set


@pytest.mark.usefixtures("whole_suite")
def test_every_recorded_key_is_read_by_a_test(fixtures: Path) -> None:
    unread = unread_keys(fixture_set(fixtures))
    assert not unread, "\n".join(["no test reads", *unread])


@pytest.mark.usefixtures("whole_suite")
def test_nothing_that_is_read_is_excused(fixtures: Path) -> None:
    stale = stale_excuses(fixture_set(fixtures))
    assert not stale, "\n".join(["tests/parity/coverage.py excuses what a test reads", *stale])


def test_every_recorded_file_is_named_by_a_list(fixtures: Path) -> None:
    unlisted = unlisted_files(fixture_set(fixtures))
    assert not unlisted, "\n".join(["tests/parity/coverage.py does not name", *unlisted])
