"""From the start of a process to the end of its first optimizer step: with nothing compiled before, and again after.

A process of its own is started, because whatever this one has imported and compiled would not count. It leaves out the
rehearsal of what follows a training; a `golf train` starts that much later.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from golf.bench.findings import Findings
from golf.bench.measurement import Measurement
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import WorkerDiedError
from golf.log import Log
from golf.model.plan import plan_layers
from golf.priming import prime
from golf.train_state import TrainState

# Where PyTorch, Triton, CUDA and the CuTe DSL of FlashAttention-4 keep what they compiled.
_CACHES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
)

_END_SECONDS = 330.0  # from SIGTERM to SIGKILL: a launcher gives its ranks 300 and some itself


def time_starts(words: Sequence[str]) -> Findings:
    """Run `golf bench first-step WORDS` twice, with caches that are empty and then filled; return what each part took.

    Raises WorkerDiedError if a process fails; it has then told why on stderr.
    """
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="golf-bench-") as folder:
        for temperature in ("cold", "warm"):
            began = time.monotonic()  # one clock for all processes of a machine
            stamps = _run(words, Path(folder))
            parts = zip(stamps, [began, *stamps.values()], stamps.values(), strict=False)
            times = {f"start/{temperature}": list(stamps.values())[-1] - began}
            times |= {f"start/{temperature}/{name}": after - before for name, before, after in parts}
            findings.measurements.extend(Measurement.of(name, [seconds]) for name, seconds in times.items())
    return findings


def take_first_step(recipe: Recipe, dataset: Dataset, world: World, log: Log) -> dict[str, float]:
    """Begin a training and take one step; return when each part of it ended, on the monotonic clock. A collective."""
    stamps = {"import": time.monotonic()}
    plans = {looping: plan_layers(recipe.model, looping=looping) for looping in (False, True)}
    state = TrainState.build(recipe, dataset, world)
    world.synchronize()
    stamps["build"] = time.monotonic()
    prime(state, plans, log, keep_muon_momentum=False)
    world.synchronize()
    stamps["prime"] = time.monotonic()
    state.forward_backward(plans[False], late_qat=False)
    state.optimizer.step(lr_multiplier=1.0, momentum=recipe.optim.momentum_start)
    state.averages.update(step=1, lr_multiplier=1.0)
    world.synchronize()
    stamps["first step"] = time.monotonic()
    state.loader.close()
    return stamps


def _run(words: Sequence[str], caches: Path) -> dict[str, float]:
    """Run a first step in a process that keeps what it compiles in `caches`; return its stamps."""
    places = [f"{name}={caches / name.lower()}" for name in _CACHES]
    command = ["env", *places, sys.executable, "-m", "golf", "bench", "first-step", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        raise WorkerDiedError(f"the first step ended with exit code {process.returncode}; its message is above")
    stamps: dict[str, float] = json.loads(said)
    return stamps


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask a process to end and wait for it; a further Ctrl-C ends it at once, and leaves ranks that it started."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    finally:
        process.kill()
        process.wait()
