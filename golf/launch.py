"""Start one command on several processes of this machine, as torchrun does, and report how they ended."""

import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from golf.distributed import check_size
from golf.errors import GolfError, InterruptedRunError, WorkerDiedError

_TOLD = {1, 2, 3, 4, 5, 6, 130}  # exit codes whose sentence the rank has already printed


class RankFailedError(GolfError):
    """A rank ended with a documented exit code of its own."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"rank {rank} failed with exit code {exit_code}; its message is above")
        self.exit_code = exit_code


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `golf ARGUMENTS` in `processes` processes that see each other; wait for them.

    Raises UsageError for a number that cannot share the virtual ranks, RankFailedError with the exit code of the first
    rank that failed, WorkerDiedError naming a rank that a signal ended, InterruptedRunError on Ctrl-C.
    """
    check_size(processes)
    with tempfile.TemporaryDirectory(prefix="golf-launch-") as scratch:  # else each launch would leave a folder behind
        _run(arguments, processes, scratch)


def _run(arguments: Sequence[str], processes: int, scratch: str) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "golf", *arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: (_suspicion(item[1]), item[1].timestamp))
        if failure.exitcode in _TOLD:
            raise RankFailedError(rank, failure.exitcode) from None
        cause = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerDiedError(f"rank {rank} died ({cause}); resume the run from its last boundary") from None
    except (SignalException, KeyboardInterrupt):
        raise InterruptedRunError("interrupted; rank 0 has said how to go on, on stderr") from None


def _suspicion(failure: ProcessFailure) -> int:
    """Rank failures by how surely they are the first, not a consequence; times are known to the second only."""
    if failure.exitcode == -signal.SIGTERM:
        return 2  # how the survivors are ended
    return 1 if failure.exitcode == 1 else 0  # a rank that lost its peer ends with a traceback
