"""Words between the ranks' processes, apart from their GPUs; a rank that does not come is found out by name.

Everything goes through the store at which the ranks met. It lives in the launcher (golf's or torchrun's), so it
outlasts any rank. Of a round, rank 0 says its word once every other rank has come: so it knows who is missing.
"""

import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from golf.errors import WorkerDiedError
from golf.peers import await_end, has_ended, is_stopped

_PIECE = 4 * 2**20  # bytes of one value; the store refuses more than 8 MiB
_MARGIN = 10.0  # seconds that rank 0 is waited for in addition: first it finds out who is missing
_SHORTEST, _LONGEST = 0.0002, 0.1  # seconds between two looks into the store
_LOOK_ROUND = 1.0  # and between two looks whether those who are waited for still live
_ENDING = 5.0  # seconds from the loss of a process's connections to its end: Python may still have to leave
_REMEDY = "resume the run from its last boundary"


class SideChannel:
    """One rank's end of it. Every rank takes part in every round, in the same order."""

    def __init__(self, store: Store, rank: int, size: int, processes: Mapping[int, str]) -> None:
        """Be rank `rank` of `size`; `processes` identifies the other ranks' processes, as far as they can be seen."""
        self.store, self.rank, self.size, self.processes = store, rank, size, processes
        self.round = 0
        self.said: list[str] = []  # keys of rank 0's last word

    def share(self, data: bytes, *, limit_seconds: float) -> bytes:
        """Return rank 0's `data` on every rank, once all ranks have come.

        Raises WorkerDiedError, on all that wait, naming the ranks that have ended or have not come after
        `limit_seconds`; also if the store is gone.
        """
        self.round += 1
        try:
            if self.rank:
                return self._hear(limit_seconds)
            self._await_all(limit_seconds)
            self._say(data)
            return data
        except dist.DistNetworkError as error:
            raise WorkerDiedError("the process that started this rank no longer answers; resume the run") from error

    def loss(self, cause: str) -> WorkerDiedError:
        """Return what to raise when a connection to a rank broke: it names the ranks that have ended, or soon do.

        One that is stopped is named instead: those that missed it have ended. If none is seen to end, the error tells
        the `cause`.
        """
        stopped = [rank for rank, process in self.processes.items() if is_stopped(process)]
        if stopped:
            return WorkerDiedError(f"rank {stopped[0]} is stopped; {_REMEDY}")
        ended = await_end(self.processes, seconds=_ENDING)
        return WorkerDiedError(_sentence(ended, "ended") if ended else f"{cause}; {_REMEDY}")

    def _await_all(self, limit_seconds: float) -> None:
        trouble = self._await({rank: f"{self.round}/{rank}" for rank in range(1, self.size)}, limit_seconds)
        if trouble:
            self._put(f"{self.round}/0", b"0 " + trouble.encode())
            raise WorkerDiedError(trouble)

    def _say(self, data: bytes) -> None:
        """Put `data` in place of the last word, which all have heard, in pieces whose number comes with the first."""
        for key in self.said:
            self.store.delete_key(key)
        pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)] or [b""]
        self.said = [f"{self.round}/0", *(f"{self.round}/0/{number}" for number in range(1, len(pieces)))]
        pieces[0] = b"%d " % len(pieces) + pieces[0]
        for key, piece in reversed([*zip(self.said, pieces, strict=True)]):  # the first last: it is waited for
            self._put(key, piece)

    def _hear(self, limit_seconds: float) -> bytes:
        arrival, answer = f"{self.round}/{self.rank}", f"{self.round}/0"
        self._put(arrival, b"here")
        trouble = self._await({0: answer}, limit_seconds + _MARGIN)
        if trouble:
            raise WorkerDiedError(trouble)
        count, _, first = self.store.get(answer).partition(b" ")
        if int(count) == 0:
            raise WorkerDiedError(first.decode())
        self.store.delete_key(arrival)
        return first + b"".join(self.store.get(f"{answer}/{number}") for number in range(1, int(count)))

    def _put(self, key: str, value: bytes) -> None:
        self.store.set(key, value)  # type: ignore[arg-type]  # it takes bytes, its stub says str

    def _await(self, keys: Mapping[int, str], limit_seconds: float) -> str:
        """Wait until the store has the key of every rank; return "", or what became of those whose key it has not.

        It is asked again and again, ever less often: a signal is heeded between two looks, not in a wait within it.
        """
        started = looked = time.monotonic()
        while not self.store.check([*keys.values()]):
            now = time.monotonic()
            if now - looked > _LOOK_ROUND:
                looked = now
                ended = [rank for rank in keys if has_ended(self.processes.get(rank, ""))]
                if lost := self._without_key(keys, ended):
                    return _sentence(lost, "ended")
            if now - started > limit_seconds and (late := self._without_key(keys, [*keys])):
                return _sentence(late, f"not come for {limit_seconds:.0f} s")
            time.sleep(min(max(_SHORTEST, (now - started) / 50), _LONGEST))
        return ""

    def _without_key(self, keys: Mapping[int, str], ranks: Sequence[int]) -> list[int]:
        return [rank for rank in ranks if not self.store.check([keys[rank]])]


def _sentence(ranks: Sequence[int], what: str) -> str:
    names = ", ".join(map(str, ranks))
    who = f"rank {names} has" if len(ranks) == 1 else f"ranks {names} have"
    return f"{who} {what}; {_REMEDY}"
