"""Options and fixtures shared by all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if "--gpu" not in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA is first asked for: the suite is the same on every machine
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # is read when a kernel is declared: before any of golf's is imported

from tests.parity.subset import DATA, unpack_subset
from tests.session_tools import Place, copy_place, finished_place

_RECORDED = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=12, help="how often each kill test kills its writer")
    parser.addoption("--gpu", action="store_true", help="let tests see the GPUs; try `--gpu -m gpu`")
    parser.addoption("--recorded", type=Path, help="folder of recorded reference data; `--fixtures DIR` says the same")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Read `--fixtures DIR` as the recorded data: pytest's own --fixtures (a listing) takes no folder of tensors."""
    recorded: Path | None = config.option.recorded
    for argument in list(config.args):
        if config.option.showfixtures and any(Path(argument).glob("*.safetensors")):
            config.args.remove(argument)
            config.option.showfixtures = False
            recorded = Path(argument)
    if recorded is not None:
        if not any(recorded.glob("*.safetensors")):
            raise pytest.UsageError(f"{recorded}: no recorded data (*.safetensors) there")
        config.stash[_RECORDED] = recorded.resolve()


@pytest.fixture(scope="session")
def fixtures(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded data set: the folder of `--fixtures DIR`, or else the project's compact subset, unpacked."""
    if _RECORDED in pytestconfig.stash:
        return pytestconfig.stash[_RECORDED]
    return unpack_subset(DATA, tmp_path_factory.mktemp("recorded"))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers and the same sums in every run, also where it sees to neither.

    One thread, as the recorded data was made: the order of adding up a matrix product depends on their number.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often a kill test kills its writer."""
    count: int = request.config.getoption("--kills")
    return count


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with the finished run "done", shared by all tests of a session and its tools; read only."""
    return finished_place(tmp_path_factory.getbasetemp())


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of it that a test may change."""
    return copy_place(finished, tmp_path / "place")
