"""Quantize a finished checkpoint again under other settings; a table with bits per byte and bytes a row."""

from pathlib import Path

import click

from golf.cli import echo_json, force_option, gpus_option, is_launched, json_option


@click.command(
    epilog="Example: golf requant demo-1 --try matrix_bits=5 --try mlp_clip_sigmas=11,embed_bits=7 --out r.csv"
)
@click.argument("run", metavar="RUN[@BOUNDARY]")
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="KEY=VALUE[,…]",
    help="A row with these keys of [quant] changed; repeat it.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards.  [default: the run's]")
@click.option("--root", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option(
    "--out", "outs", type=click.Path(path_type=Path), multiple=True, help="Write .csv, .json or .md; repeat it."
)
@gpus_option
@force_option
@json_option
def command(
    run: str,
    tries: tuple[str, ...],
    data: Path | None,
    root: Path,
    outs: tuple[Path, ...],
    processes: int,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize, pack and score RUN's weights under each setting, the recipe's own (control) first.

    Nothing is trained. Without --try, tighter clips and one bit less show what clips and bits cost. A setting that
    fails has the reason in its row; the others are still tried, and the exit code is that of the first failure.
    """
    from golf.files import check_free
    from golf.ranks import own_rank
    from golf.sweep.table import check_form, format_table, table_records

    for out in outs if own_rank() == 0 else ():  # which alone writes them, and may already have begun
        check_form(out)
        check_free(out, force=force)
    if is_launched(processes):
        return
    from golf.distributed import open_world
    from golf.log import Log
    from golf.session import open_run
    from golf.sweep.run import default_tries, parse_settings, requant

    opened = open_run(run, root=root, data=data)
    settings = parse_settings(opened.recipe, tries or default_tries(opened.recipe))
    with open_world() as world, Log(rank=world.rank) as log:
        table, failure = requant(opened, settings, world, log, outs=outs)
        if not world.is_main:
            return
    if as_json:
        echo_json(table_records(table))
    else:
        click.echo(format_table(table))
    if failure is not None:  # its row has the reason, and stderr too
        click.get_current_context().exit(failure.exit_code)
