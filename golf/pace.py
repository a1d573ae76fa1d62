"""How far the host runs ahead of the GPU.

Work is queued faster than it is done. A host that waited for every step would leave the GPU idle while the next one is
queued; one that never waited would read a clock that has nothing to do with the work. So it may be one step ahead.
"""

import time
from collections import deque

import torch

_LOOK_SECONDS = 0.0002
AHEAD = 1  # steps that may be queued and unfinished when the next one is decided


class Pace:
    """Waits, before a step is decided, until all but the last `AHEAD` are done; without a GPU nothing is queued."""

    def __init__(self, device: torch.device) -> None:
        self.is_queued = device.type == "cuda"
        self.ends: deque[torch.cuda.Event] = deque()

    def mark(self) -> None:
        """Note that a whole step was queued."""
        if self.is_queued:
            end = torch.cuda.Event()
            end.record()
            self.ends.append(end)

    def wait(self) -> None:
        """Wait until at most `AHEAD` noted steps are unfinished."""
        while len(self.ends) > AHEAD:
            end = self.ends.popleft()
            while not end.query():  # a wait within CUDA would heed no signal, and keep a core busy
                time.sleep(_LOOK_SECONDS)
