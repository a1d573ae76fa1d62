"""CUDA graphs: what a batch needs is recorded once and then replayed, so that no host has to keep pace with a GPU.

A host takes about as long to start the thousands of kernels of a forward and backward as a GPU takes to run them; a
replay is one start. A recording has its own memory and fixed inputs: it serves one shape of batch, and weights that
change in place.
"""

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from golf.config import RunConfig
from golf.data.documents import Batch
from golf.errors import EnvironmentUnfitError
from golf.kernels.table import PLAIN, Kernels

MOST = 16  # recordings of one function; batches of other shapes are computed kernel by kernel

Key = TypeVar("Key", bound=Hashable)


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Batch  # what it reads
    result: Tensor  # what it writes


class Recorder(Generic[Key]):
    """A function of a batch and a key on one device, recorded if it `records`.

    The first batch of a key and shape is computed, then recorded; later ones are replayed. The function may add to
    tensors that stay where they are, and must not wait for the GPU: then it cannot be recorded (EnvironmentUnfitError).
    """

    def __init__(self, function: Callable[[Batch, Key], Tensor], device: torch.device, *, records: bool) -> None:
        self.function, self.device, self.records = function, device, records
        self.recordings: dict[Hashable, _Recording] = {}
        self.unrecorded = 0  # batches that came when there were MOST recordings
        self._pool: Any = torch.cuda.graph_pool_handle() if records else None  # shared: one recording runs at a time

    def __call__(self, batch: Batch, key: Key) -> Tensor:
        """Return the function's result for `batch`, which may lie anywhere; valid until the next call."""
        place = (key, batch.tokens.shape, batch.cu_seqlens.shape, batch.max_seqlen)
        recording = self.recordings.get(place)
        if recording is not None:
            _copy(batch, recording.batch)
            recording.graph.replay()
            return recording.result
        own = batch.to(self.device, non_blocking=True, copy=self.records)  # later batches are written into it
        result = self.function(own, key)
        if self.records and len(self.recordings) < MOST:
            self.recordings[place] = self._record(own, key)
        else:
            self.unrecorded += self.records
        return result

    def _record(self, batch: Batch, key: Key) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads read and save meanwhile: what they ask of CUDA is no part of it.
            with _no_collection(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self.function(batch, key)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            told = str(error).splitlines()[0]
            raise EnvironmentUnfitError(
                f"the work of a batch cannot be recorded as a CUDA graph ({told}); set run.cuda_graphs=false"
            ) from error
        return _Recording(graph, batch, result)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage alone: if it holds what is CUDA's, such as older recordings, freeing it breaks the recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def can_record(config: RunConfig, kernels: Kernels, device: torch.device) -> bool:
    """Say whether a run's batches are recorded: on a GPU, unless the recipe forbids it or the attention is padded.

    That one looks at the lengths of the segments on the way.
    """
    return config.cuda_graphs and device.type == "cuda" and kernels.attention is not PLAIN.attention


def _copy(batch: Batch, into: Batch) -> None:
    for source, target in zip(batch.tensors(), into.tensors(), strict=True):
        target.copy_(source, non_blocking=True)
