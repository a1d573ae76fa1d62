"""Train a recipe to its artifact, or resume a run from a checkpoint."""

from pathlib import Path
from typing import Any

import click

from golf.cli import echo_json, force_option, gpus_option, is_launched, json_option, set_option


@click.command(epilog="Examples: golf train demo · golf train demo --gpus 2 · golf train --resume demo-1")
@click.argument("recipe", required=False)
@click.option("--resume", metavar="RUN[@BOUNDARY]", help="Continue a run from its latest or the named boundary.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards.  [default: data/<recipe's dataset>]")
@click.option("--name", help="Name of the run.  [default: <recipe>-1, -2, …]")
@click.option("--root", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@gpus_option
@set_option
@force_option
@json_option
def command(
    recipe: str | None,
    resume: str | None,
    data: Path | None,
    name: str | None,
    root: Path,
    processes: int,
    overrides: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Train RECIPE: checkpoints at every phase boundary, then calibration, artifact, evaluation and final.json.

    RECIPE is a shipped name (see `golf recipe list`) or a TOML file. Ctrl-C saves the run before it stops.
    """
    from golf.errors import InterruptedRunError
    from golf.recipe import load_recipe

    if (recipe is None) == (resume is None):
        raise click.UsageError("give a RECIPE to start or --resume RUN to continue, for example: golf train demo")
    if resume is not None and (overrides or name is not None):
        raise click.UsageError("--resume continues the stored recipe; --set and --name start another run")
    # A bad recipe is refused before any process starts.
    chosen = None if recipe is None else load_recipe(recipe, overrides)
    if is_launched(processes):
        return
    from golf.distributed import open_world  # imports torch, as all that follows
    from golf.session import resume_run, start_run

    with open_world() as world:
        try:
            if chosen is not None:
                summary = start_run(chosen, world, root=root, name=name, data=data, force=force)
            else:
                summary = resume_run(str(resume), world, root=root, data=data, force=force)
        except (InterruptedRunError, KeyboardInterrupt) as error:
            if world.is_main:
                raise
            raise click.exceptions.Exit(InterruptedRunError.exit_code) from error  # rank 0 alone says how to go on
        if world.is_main:
            _show(summary, as_json)


def _show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(summary)
        return
    artifact = summary["artifact"]
    click.echo(f"run             {summary['run']}")
    click.echo(f"unquantized     {summary['unquantized']['val_bpb']:.5f} bpb")
    click.echo(
        f"quantized       {summary['quantized']['val_bpb']:.5f} bpb  (gap {summary['quantization_gap_bpb']:+.5f})"
    )
    click.echo(f"artifact        {artifact['model_bytes']:,} model + {artifact['code_bytes']:,} code bytes")
    click.echo(f"headroom        {artifact['headroom_bytes']:,} bytes to 16,000,000")
