"""The benchmarks of `golf bench`, each from a recipe to a report, and all of them in one."""

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from golf.bench.case import Sizes
from golf.bench.ceilings import Ceilings, measure_ceilings
from golf.bench.evaluation import time_evaluation
from golf.bench.findings import Findings
from golf.bench.forms import find_forms
from golf.bench.kernels import build_cases, time_kernels
from golf.bench.layout import time_layouts
from golf.bench.machine import memory_bytes
from golf.bench.measurement import Figure
from golf.bench.preflight import foresee_run
from golf.bench.profile import Kernel, group_figures, kernel_table, profile_steps
from golf.bench.report import Report, make_report
from golf.bench.saving import time_saving
from golf.bench.start import time_starts
from golf.bench.synthetic import make_dataset
from golf.bench.training import LOOPS, time_steps
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import EnvironmentUnfitError, ResourceError, UsageError
from golf.log import Log
from golf.model.plan import LayerPlan, plan_layers
from golf.priming import prime
from golf.ranks import VIRTUAL_RANKS
from golf.session import open_dataset
from golf.sweep.table import write_table
from golf.train_state import TrainState

_CEILING_SECONDS = 0.2  # of timing each
_CPU_TOKENS = 256  # of a kernel's inputs where there is no GPU, unless more are asked for
_PROFILED_STEPS = 2


class Bench(NamedTuple):
    """What all benchmarks of one command have in common."""

    recipe: Recipe
    data: Path | None  # a folder of shards; None: tokens are made up
    world: World
    log: Log

    def report(self, command: str, found: Findings, **more: Any) -> Report:
        """Put what was found into a report; `more` are settings that must agree for a comparison."""
        run = self.recipe.run
        chosen = {
            "kernels": run.kernels,
            "attention": run.attention,
            "compile": run.compile,
            "cuda_graphs": run.cuda_graphs,
        }
        told = {"recipe": self.recipe.name, "recipe_digest": self.recipe.digest[:16], "gpus": self.world.size}
        return make_report(command, found, self.world.device, settings=told | chosen | more)

    @contextlib.contextmanager
    def dataset(self) -> Iterator[Dataset]:
        """Open the data, or make some up for as long as the block lasts."""
        if self.data is not None:
            yield open_dataset(self.recipe, self.data)
            return
        with tempfile.TemporaryDirectory(prefix="golf-bench-") as folder:
            yield make_dataset(Path(folder), self.recipe)

    @contextlib.contextmanager
    def primed(self, dataset: Dataset, plans: Mapping[bool, LayerPlan]) -> Iterator[TrainState]:
        """Build a training's state and prime it."""
        state = TrainState.build(self.recipe, dataset, self.world)
        with contextlib.closing(state.loader):
            prime(state, plans, self.log, keep_muon_momentum=False)
            yield state

    def ceilings(self, rows: int) -> Ceilings:
        """Measure what the machine can do at most."""
        dtype = getattr(torch, self.recipe.run.dtype)
        return measure_ceilings(self.recipe.model, self.world.device, dtype, rows=rows, seconds=_CEILING_SECONDS)

    def row_tokens(self, wanted: int | None = None) -> int:
        """Return how many tokens to give to a kernel: those of a virtual rank's row, fewer where there is no GPU."""
        row = self.recipe.data.batch_tokens // VIRTUAL_RANKS
        return wanted or (row if self.world.device.type == "cuda" else min(row, _CPU_TOKENS))


def bench_kernels(bench: Bench, *, tokens: int | None, seconds: float, only: Sequence[str] = ()) -> Report:
    """Time every form of every operation, or of those named `only`, on `tokens` tokens (a row of the recipe's).

    Raises ResourceError before anything is allocated for more tokens than memory can hold.
    """
    rows = bench.row_tokens(tokens)
    _check_memory(bench, rows)
    ceilings = bench.ceilings(rows)
    found = Findings(list(ceilings.measurements))
    found.add(_kernel_findings(bench, ceilings, rows, seconds=seconds, only=only))
    return bench.report("kernels", found, tokens=rows)


def bench_layouts(bench: Bench, *, seconds: float) -> Report:
    """Time the matrices' use and their optimizer, one parameter a layer against one a shape."""
    return bench.report("layout", time_layouts(bench.recipe, bench.world, seconds=seconds))


def bench_steps(bench: Bench, *, steps: int, profile: Path | None = None) -> Report:
    """Time whole steps with the loop off and on; write every kernel of one to the file `profile`. A collective."""
    ceilings = bench.ceilings(bench.row_tokens())
    found, plans = Findings(list(ceilings.measurements)), _plans(bench.recipe)
    with bench.dataset() as dataset, bench.primed(dataset, plans) as state:
        found.add(time_steps(state, plans, bench.world, ceilings, steps=steps))
        if profile is not None:
            found.figures.extend(_profile(bench, state, plans, profile))
    return bench.report("step", found)


def bench_preflight(bench: Bench, *, steps: int) -> Report:
    """Take `steps` steps, and say how many the recipe's time would hold. A collective."""
    plans = _plans(bench.recipe)
    with bench.dataset() as dataset, bench.primed(dataset, plans) as state:
        return bench.report("preflight", foresee_run(state, plans, bench.world, steps=steps))


def bench_checkpoints(bench: Bench, *, steps: int, root: Path) -> Report:
    """Time steps, then checkpoints on the disk of `root` and averages, as shares of the recipe's run. A collective."""
    ceilings = bench.ceilings(bench.row_tokens())
    found = Findings(list(ceilings.measurements))
    with bench.dataset() as dataset:
        found.add(_training_findings(bench, dataset, ceilings, steps=steps, root=root))
    return bench.report("checkpoint", found)


def bench_evaluation(bench: Bench) -> Report:
    """Time plain evaluation of the whole validation stream. A collective."""
    with bench.dataset() as dataset:
        return bench.report("eval", time_evaluation(bench.recipe, dataset, bench.world, bench.log))


def bench_starts(bench: Bench, words: Sequence[str], *, gpus: int) -> Report:
    """Time the first step of processes on `gpus` GPUs, called with `words`: the recipe and its settings."""
    with bench.dataset() as dataset:
        return bench.report("start", _start_findings(dataset, words, gpus=gpus), gpus=gpus)


def bench_all(bench: Bench, words: Sequence[str], *, seconds: float, steps: int, root: Path) -> Report:
    """Run every benchmark on one GPU; one that breaks is a failure of the report, and the others still run."""
    rows = bench.row_tokens()
    with bench.dataset() as dataset:
        found = Findings()
        # Other processes first: this one has taken no memory of the GPU yet.
        _attempt(bench, found, lambda: _start_findings(dataset, words, gpus=1))
        ceilings = bench.ceilings(rows)
        found.measurements.extend(ceilings.measurements)
        _attempt(bench, found, lambda: _kernel_findings(bench, ceilings, rows, seconds=seconds))
        _attempt(bench, found, lambda: time_layouts(bench.recipe, bench.world, seconds=seconds))
        _attempt(bench, found, lambda: _training_findings(bench, dataset, ceilings, steps=steps, root=root))
        _attempt(bench, found, lambda: time_evaluation(bench.recipe, dataset, bench.world, bench.log))
    return bench.report("all", found, tokens=rows)


def _check_memory(bench: Bench, rows: int) -> None:
    """Refuse more tokens than have room for their logits, which the ceilings make: an overflow there tells nothing."""
    needed = rows * bench.recipe.model.vocab_size * getattr(torch, bench.recipe.run.dtype).itemsize
    there = memory_bytes(bench.world.device)
    if needed > there:
        sizes = f"{needed // 2**20:,} MiB for their logits alone, there are {there // 2**20:,} MiB of memory"
        raise ResourceError(f"{rows:,} tokens take {sizes}; give fewer with --tokens")


def _attempt(bench: Bench, found: Findings, work: Callable[[], Findings]) -> None:
    """Add what `work` finds, or that it broke; the traceback goes to stderr. A run on a GPU is too dear to be lost."""
    try:
        found.add(work())
    except Exception as error:
        bench.log.note(traceback.format_exc())
        found.failures.append(f"{type(error).__name__}: {error}")


def _kernel_findings(
    bench: Bench, ceilings: Ceilings, rows: int, *, seconds: float, only: Sequence[str] = ()
) -> Findings:
    device, dtype = bench.world.device, getattr(torch, bench.recipe.run.dtype)
    sizes = Sizes(bench.recipe.model, rows, min(bench.recipe.data.seq_len, rows), dtype, device)
    cases = build_cases(sizes)
    names = [case.name for case in cases]
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"no operation is called {unknown[0]!r}; there are: {', '.join(names)}")
    forms = find_forms(device, dtype)
    for reason in forms.missing:
        bench.log.note(f"not timed: {reason}")
    chosen = [case for case in cases if not only or case.name in only]
    return time_kernels(chosen, forms.tables, sizes, ceilings, seconds=seconds)


def _training_findings(bench: Bench, dataset: Dataset, ceilings: Ceilings, *, steps: int, root: Path) -> Findings:
    """Time steps, then checkpoints in a folder of their own in `root`, which is removed."""
    plans, world = _plans(bench.recipe), bench.world
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{root}: no folder can be made here ({error.strerror}); name another --root"
        ) from None
    with bench.primed(dataset, plans) as state:
        found = time_steps(state, plans, world, ceilings, steps=steps)
        times = {one.name: one.seconds for one in found.measurements}
        off = times[f"step/{LOOPS[False]}"]
        step_seconds = {False: off, True: times.get(f"step/{LOOPS[True]}", off)}
        with tempfile.TemporaryDirectory(prefix=".golf-bench-", dir=root) as folder:
            found.add(time_saving(state, world, bench.log, Path(folder), step_seconds=step_seconds))
    return found


def _profile(bench: Bench, state: TrainState, plans: Mapping[bool, LayerPlan], path: Path) -> list[Figure]:
    loops = (False, True) if bench.recipe.model.loop else (False,)
    kernels: dict[str, list[Kernel]] = {
        LOOPS[looping]: profile_steps(state, plans[looping], bench.world, steps=_PROFILED_STEPS) for looping in loops
    }
    if bench.world.is_main:
        write_table(kernel_table(kernels), path)
    return [figure for label, found in kernels.items() for figure in group_figures(label, found)]


def _start_findings(dataset: Dataset, words: Sequence[str], *, gpus: int) -> Findings:
    return time_starts([*words, "--data", str(dataset.folder), "--gpus", str(gpus)])


def _plans(recipe: Recipe) -> dict[bool, LayerPlan]:
    return {looping: plan_layers(recipe.model, looping=looping) for looping in (False, True)}
