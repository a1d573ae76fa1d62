"""Compare the losses of two runs step by step, and what they ended in."""

from pathlib import Path

import click

from golf.cli import check_finite, echo_json, force_option, json_option, out_option

_PATH = click.Path(path_type=Path)


@click.command(epilog="Examples: golf compare a-1 a-2 · golf compare fused plain --fail-above 0.003 --plot both.png")
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option("--root", type=_PATH, default=Path("checkpoints"), show_default=True)
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    metavar="NATS",
    callback=check_finite,
    help="Exit with 1 if a difference is larger.",
)
@click.option("--plot", type=_PATH, help="Draw both losses into FILE.png, .svg or .pdf.")
@out_option("Write the table to .csv, .json or .md.")
@force_option
@json_option
def command(
    first: str,
    second: str,
    root: Path,
    fail_above: float | None,
    plot: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare two runs, finished or not: names in --root, or folders that hold a run's events.jsonl.

    The table has the steps that both logged; the summary says how far the training losses are apart, and of finished
    runs whether checkpoint and artifact are the same to the byte.
    """
    from golf.comparison import compare_runs, open_log
    from golf.files import check_free
    from golf.sweep.plots import check_picture, plot_loss
    from golf.sweep.table import check_form, format_table, table_records, write_table

    if out is not None:
        check_form(out)
    if plot is not None:
        check_picture(plot)
    for path in filter(None, (out, plot)):
        check_free(path, force=force)
    one, other = (open_log(run, root=root) for run in (first, second))
    comparison = compare_runs(one, other)
    if out is not None:
        write_table(comparison.table, out)
    if plot is not None:
        plot_loss(one.events, plot, beside={other.name: other.of_steps("train_loss")})
    if as_json:
        echo_json({"summary": comparison.summary, "steps": table_records(comparison.table)})
    else:
        click.echo(format_table(comparison.table) + "\n")
        for key, value in comparison.summary.items():
            click.echo(f"{key:<20}{_told(value)}")
    largest = comparison.summary["largest_difference"]
    if fail_above is not None and largest > fail_above:
        click.echo(f"failed: the losses are {largest:.6f} apart at step {comparison.summary['at_step']}", err=True)
        click.get_current_context().exit(1)


def _told(value: object) -> str:
    if isinstance(value, list):
        return " · ".join(map(_told, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
