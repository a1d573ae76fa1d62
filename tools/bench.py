"""Time kernels, steps, the start, checkpoints and evaluation beside the machine's ceilings; compare two results."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golf.cli import (
    check_finite,
    echo_json,
    force_option,
    gpus_option,
    is_launched,
    json_option,
    out_option,
    set_option,
)

if TYPE_CHECKING:
    from golf.bench.report import Report
    from golf.bench.suite import Bench


_PATH = click.Path(path_type=Path)
_DATA = click.option("--data", type=_PATH, help="Folder of shards.  [default: made-up tokens]")
_ROOT = click.option("--root", type=_PATH, default=Path("checkpoints"), show_default=True, help="Whose disk to time.")
_STEPS = click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Of each kind.")
_SECONDS = click.option(
    "--seconds",
    type=click.FloatRange(min=0.001),
    default=0.1,
    show_default=True,
    callback=check_finite,
    help="Spent on each form and way.",
)


def _measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every measurement takes: RECIPE, --set, --out, --force, --json."""
    for add in (json_option, force_option, out_option("Write the result to FILE.json, for `compare`."), set_option):
        function = add(function)
    return click.argument("recipe", default="pr1787")(function)


class _Benchmarks(click.Group):
    """Commands that clear up when a signal ends them."""

    def invoke(self, ctx: click.Context) -> Any:
        from golf.bench.interruption import ended_in_order

        with ended_in_order():
            return super().invoke(ctx)


@click.group(cls=_Benchmarks, epilog="Example: golf bench step pr1787 --out step.json")
def command() -> None:
    """Measure speed: RECIPE is a shipped name (see `golf recipe list`) or a TOML file, by default pr1787.

    Times are medians with quartiles; noise is how far the first half of the samples is from the second. Made-up tokens
    do, so no data set is needed. Exit code 1: something that was measured is not as it should be, and stderr says what.
    """


@command.command(epilog="Examples: golf bench kernels --out k.json · golf bench kernels --only attention --only norm")
@_measuring
@click.option("--tokens", type=click.IntRange(min=1), help="[default: a row of the recipe's; 256 without a GPU]")
@click.option("--only", multiple=True, metavar="OPERATION", help="Time this one; repeat it.  [default: all]")
@_SECONDS
def kernels(tokens: int | None, only: tuple[str, ...], seconds: float, **common: Any) -> None:
    """Time every form of every operation of RECIPE's model.

    Attention, projections, norms, sums, the MLP and the loss: plain, fused, and by what else is installed. A form that
    breaks, or whose results are far from plain PyTorch's, makes the exit code 1.
    """
    from golf.bench.suite import bench_kernels

    _report(lambda bench: bench_kernels(bench, tokens=tokens, seconds=seconds, only=only), **common)


@command.command(epilog="Example: golf bench layout pr1787")
@_measuring
@_SECONDS
def layout(seconds: float, **common: Any) -> None:
    """Time one parameter a layer, as golf has them, against one for all matrices of a shape.

    What differs alone: casts of the weights, additions of their gradients, and Muon's step.
    """
    from golf.bench.suite import bench_layouts

    _report(lambda bench: bench_layouts(bench, seconds=seconds), **common)


@command.command(epilog="Examples: golf bench step --out s.json · golf bench step pr1787 --gpus 8 --profile k.csv")
@_measuring
@_DATA
@gpus_option
@_STEPS
@click.option("--profile", type=_PATH, help="Write every kernel of a step to .csv, .json or .md.")
def step(steps: int, profile: Path | None, **common: Any) -> None:
    """Time whole training steps and their parts.

    The loop is off, then on. Tokens a second, memory and the share of the GPU's arithmetic are told too, with --profile
    groups of kernels.
    Anything that is compiled while steps are timed makes the exit code 1, and so does a batch for which there is no
    more room among the recorded CUDA graphs.
    """
    from golf.bench.suite import bench_steps
    from golf.files import check_free
    from golf.sweep.table import check_form

    if profile is not None:
        check_form(profile)
        check_free(profile, force=common["force"])
        if common["out"] is not None and profile.resolve() == common["out"].resolve():
            raise click.UsageError(f"--profile and --out are both {profile}; name two files")
    _report(lambda bench: bench_steps(bench, steps=steps, profile=profile), **common)


@command.command(epilog="Example: golf bench preflight pr1787 --gpus 8")
@_measuring
@_DATA
@gpus_option
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Half of them with the loop.")
def preflight(steps: int, **common: Any) -> None:
    """Take 30 steps before a run is paid for, and say how many RECIPE's time will hold here."""
    from golf.bench.suite import bench_preflight

    _report(lambda bench: bench_preflight(bench, steps=steps), **common)


@command.command(epilog="Example: golf bench start pr1787 --out start.json")
@_measuring
@_DATA
@gpus_option
def start(recipe: str, overrides: tuple[str, ...], processes: int, **common: Any) -> None:
    """Time the start of a training, cold and warm.

    From a process's start to the end of its first step: with nothing compiled before, and once more.
    """
    from golf.bench.suite import bench_starts

    words = _words(recipe, overrides)
    _report(lambda bench: bench_starts(bench, words, gpus=processes), recipe=recipe, overrides=overrides, **common)


@command.command("first-step", hidden=True, epilog="Example: golf bench first-step pr1787 --data data/mine")
@click.argument("recipe")
@click.option("--data", type=_PATH, required=True, help="Folder of shards.")
@gpus_option
@set_option
@json_option
def first_step(recipe: str, data: Path, processes: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Take one step and say when each part of it ended, in seconds of the monotonic clock; `start` runs it."""
    from golf.bench.start import take_first_step  # little beyond what a training imports
    from golf.distributed import open_world
    from golf.log import Log
    from golf.recipe import load_recipe
    from golf.session import open_dataset

    chosen = load_recipe(recipe, overrides)
    with _silent_if_interrupted(True):
        if is_launched(processes):
            return
        with open_world() as world, Log(rank=world.rank) as log:
            stamps = take_first_step(chosen, open_dataset(chosen, data), world, log)
            if not world.is_main:
                return
    if as_json:
        echo_json(stamps)
    else:
        click.echo("\n".join(f"{name:<12}{moment:.3f}" for name, moment in stamps.items()))


@command.command(epilog="Example: golf bench checkpoint pr1787 --root runs")
@_measuring
@_DATA
@gpus_option
@_STEPS
@_ROOT
def checkpoint(steps: int, root: Path, **common: Any) -> None:
    """Time checkpoints and averages.

    Steps are timed before, so that the share of RECIPE's whole run can be told.
    """
    from golf.bench.suite import bench_checkpoints

    _report(lambda bench: bench_checkpoints(bench, steps=steps, root=root), **common)


@command.command("eval", epilog="Example: golf bench eval pr1787 --gpus 8")
@_measuring
@_DATA
@gpus_option
def eval_(**common: Any) -> None:
    """Time plain evaluation of all validation tokens.

    The first time, which compiles, and later ones.
    """
    from golf.bench.suite import bench_evaluation

    _report(bench_evaluation, **common)


@command.command("all", epilog="Example: golf bench all pr1787 --out all.json")
@_measuring
@_DATA
@_SECONDS
@_STEPS
@_ROOT
def all_(recipe: str, overrides: tuple[str, ...], seconds: float, steps: int, root: Path, **common: Any) -> None:
    """Run every benchmark, one after the other on one GPU."""
    from golf.bench.suite import bench_all

    words = _words(recipe, overrides)
    settings: Any = {"recipe": recipe, "overrides": overrides, **common}
    _report(lambda bench: bench_all(bench, words, seconds=seconds, steps=steps, root=root), **settings)


@command.command(epilog="Example: golf bench compare before.json after.json --fail-above 3")
@click.argument("first", metavar="A.json", type=_PATH)
@click.argument("second", metavar="B.json", type=_PATH)
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    callback=check_finite,
    help="Exit with 1 if one is that slower.",
)
@json_option
def compare(first: Path, second: Path, fail_above: float | None, as_json: bool) -> None:
    """Compare two results.

    What B takes more or less time for than A, and whether by more than the noise.
    """
    from golf.bench.compare import compare_reports, format_comparison
    from golf.bench.report import read_report

    comparison = compare_reports(read_report(first), read_report(second))
    if as_json:
        echo_json(comparison.to_dict())
    else:
        click.echo(format_comparison(comparison))
    slower = [] if fail_above is None else comparison.slower_than(fail_above)
    unmeasured = ["nothing was timed in both"] if fail_above is not None and not comparison.changes else []
    _exit_if([*unmeasured, *(f"{change.name} takes {change.percent:.1f} % more time" for change in slower)])


def _report(
    work: "Callable[[Bench], Report]",
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    force: bool,
    as_json: bool,
    data: Path | None = None,
    processes: int = 1,
) -> None:
    """Do `work` in so many processes; write and print its report. Exits with 1 if something in it failed."""
    from golf.bench.report import format_report, write_report
    from golf.bench.suite import Bench
    from golf.distributed import open_world
    from golf.files import check_free
    from golf.log import Log
    from golf.recipe import load_recipe

    chosen = load_recipe(recipe, overrides)  # a bad recipe is refused before any process starts
    if out is not None:
        check_free(out, force=force)
    if is_launched(processes):
        return
    with open_world() as world, Log(rank=world.rank) as log, _silent_if_interrupted(not world.is_main):
        report = work(Bench(chosen, data, world, log))
        if not world.is_main:
            return
    if as_json:
        echo_json(report.to_dict())
    else:
        click.echo(format_report(report))
    if out is not None:  # after it was printed: what was measured must not be lost with a full disk
        write_report(report, out)
    _exit_if(report.failures)


def _exit_if(failures: "tuple[str, ...] | list[str]") -> None:
    """Tell what failed and exit with 1, if anything did."""
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    if failures:
        click.get_current_context().exit(1)


@contextlib.contextmanager
def _silent_if_interrupted(is_silent: bool) -> Iterator[None]:
    """End an interrupted block with the exit code alone if another process says the sentence."""
    from golf.errors import InterruptedRunError

    try:
        yield
    except (KeyboardInterrupt, InterruptedRunError) as error:
        if not is_silent:
            raise
        raise click.exceptions.Exit(InterruptedRunError.exit_code) from error


def _words(recipe: str, overrides: tuple[str, ...]) -> list[str]:
    return [recipe, *(word for override in overrides for word in ("--set", override))]
