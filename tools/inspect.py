"""Show what is in a run, a checkpoint or an artifact."""

from pathlib import Path
from typing import Any

import click

from golf.cli import echo_json, json_option


@click.command(
    epilog="Examples: golf inspect demo-1 · golf inspect demo-1@init · golf inspect checkpoints/demo-1/artifact.golf"
)
@click.argument("what", metavar="RUN[@BOUNDARY]|FILE")
@click.option("--root", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@json_option
def command(what: str, root: Path, as_json: bool) -> None:
    """List a run's boundaries, or what one checkpoint or artifact holds; every digest is verified on the way."""
    from golf.inspection import inspect_artifact, inspect_checkpoint, inspect_run

    if Path(what).suffix == ".golf":
        report = inspect_artifact(Path(what))
    elif "@" in what or Path(what).is_file():
        report = inspect_checkpoint(what, root=root)
    else:
        report = inspect_run(what, root=root)
    if as_json:
        echo_json(report)
        return
    _show(report)


def _show(report: dict[str, Any]) -> None:
    from golf.sweep.table import format_table, make_table

    for key, value in report.items():
        if isinstance(value, list):
            click.echo()
            click.echo(format_table(make_table(value)))
        else:
            click.echo(f"{key:<16}{value:.6g}" if isinstance(value, float) else f"{key:<16}{value}")
