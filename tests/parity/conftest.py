"""Knows whether all parity tests ran in this session, which the account of what was read needs, and says what waits."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.parity.coverage import NOT_YET_COVERED

HERE = Path(__file__).parent
_DESELECTED = pytest.StashKey[bool]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if any(item.path.parent == HERE for item in items):
        items[0].config.stash[_DESELECTED] = True


@pytest.fixture(scope="module")
def whole_suite(request: pytest.FixtureRequest) -> None:
    """Skip the module's tests unless every parity test ran before it, in this process, and passed."""
    config, session = request.config, request.session
    own = [item.path.name for item in session.items if item.path.parent == HERE]
    is_narrowed = config.stash.get(_DESELECTED, False) or any("::" in argument for argument in config.args)
    if is_narrowed or config.getoption("lf", False) or hasattr(config, "workerinput"):
        pytest.skip("only a part of the parity tests was selected for this process")
    if {path.name for path in HERE.glob("test_*.py")} != set(own) or own[-1] != request.path.name:
        pytest.skip("not all files of parity tests ran before this one")
    if session.testsfailed:
        pytest.skip("a test failed, and may not have read all it reads")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("recorded data not yet covered")
    for name, reason in NOT_YET_COVERED.items():
        terminalreporter.line(f"{name}: {reason}")
