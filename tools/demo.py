"""See everything in two minutes: corpus, training, checkpoints, evaluation, requantization, tables and pictures."""

import time
from pathlib import Path
from typing import Any

import click

from golf.cli import echo_json, json_option, set_option


@click.command(epilog="Example: golf demo --name first --set run.seed=2")
@click.option("--name", help="Name of the run.  [default: demo-1, -2, …]")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/demo"), show_default=True)
@click.option("--root", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@set_option
@json_option
def command(name: str | None, data: Path, root: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train a small model on this Python's own documentation and take it through every phase of a record run.

    Two CPU cores, no GPU, no download. What the tools do here they do on a record-size run.
    """
    from golf.data.demo import make_demo_corpus
    from golf.distributed import open_world
    from golf.log import Log
    from golf.recipe import load_recipe
    from golf.session import open_run, start_run
    from golf.sweep.run import default_tries, parse_settings, requant
    from golf.sweep.table import format_table, table_records

    started = time.perf_counter()
    recipe, log = load_recipe("demo", overrides), Log()
    if not (data / "manifest.json").exists():
        log.note("corpus: the documentation inside this Python")
        make_demo_corpus(data, force=data.exists())
    with open_world() as world:
        summary = start_run(recipe, world, root=root, name=name, data=data)
        run = open_run(summary["run"], root=root)
        table, failure = requant(run, parse_settings(recipe, default_tries(recipe)), world, log)
    pictures = _write_results(run.folder, table, log)
    if failure is not None:
        raise failure
    seconds = time.perf_counter() - started
    if as_json:
        echo_json({**summary, "requant": table_records(table), "seconds": round(seconds, 1)})
        return
    click.echo(format_table(table))
    click.echo(_farewell(summary, run.folder.path, pictures, seconds))


def _write_results(folder: Any, table: Any, log: Any) -> list[Path]:
    """Store the table in every form and draw it and the loss; say so where there is nothing to draw with."""
    from golf.errors import EnvironmentUnfitError
    from golf.log import read_events
    from golf.sweep.plots import plot_loss, plot_results
    from golf.sweep.run import CONTROL
    from golf.sweep.table import write_table

    for suffix in ("csv", "json", "md"):
        write_table(table, folder.results / f"requant.{suffix}")
    loss, results = folder.path / "loss.png", folder.path / "results.png"
    try:
        plot_loss(read_events(folder.events), loss)
        plot_results(table, results, control=CONTROL)
    except EnvironmentUnfitError as error:
        log.note(f"no pictures: {error}")
        return []
    return [loss, results]


def _farewell(summary: dict[str, Any], folder: Path, pictures: list[Path], seconds: float) -> str:
    run, artifact = summary["run"], summary["artifact"]
    lines = [
        "",
        f"{run}: {summary['steps']} steps in {summary['train_seconds']:.0f} s, everything in {seconds:.0f} s, "
        f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB at most",
        f"  {summary['unquantized']['val_bpb']:.4f} bpb before quantization, "
        f"{summary['quantized']['val_bpb']:.4f} after; {artifact['total_bytes']:,} of 16,000,000 bytes "
        f"({artifact['model_bytes']:,} model, {artifact['code_bytes']:,} code)",
        f"  checkpoints, artifact, events and tables are in {folder}",
        *[f"  picture: {picture}" for picture in pictures],
        "",
        "What to try next, none of it trains from the start again:",
        f"  golf inspect {run}                                  what was kept, and where the run stood",
        f"  golf requant {run} --try embed_bits=7 --try attn_clip_sigmas=9,mlp_clip_sigmas=9",
        f"  golf train --resume {run}@pre_loop --force          go on from the moment the loop was switched on",
        "  golf recipe show demo                                every setting, and what the schedule will do",
    ]
    return "\n".join(lines)
