"""Score a checkpoint or an artifact on the whole validation stream."""

from pathlib import Path

import click

from golf.cli import echo_json, gpus_option, is_launched, json_option, override_option


@click.command(
    epilog="Examples: golf evaluate demo-1@pre_loop · golf evaluate demo-1 --artifact · "
    "golf evaluate demo-1 --set run.kernels=plain"
)
@click.argument("run", metavar="RUN[@BOUNDARY]")
@click.option("--artifact", is_flag=True, help="Score the run's artifact file instead of the checkpoint.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards.  [default: the run's]")
@click.option("--root", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@override_option(
    "Compute otherwise than the run did, with other kernels say; may be given again.", metavar="run.KEY=VALUE"
)
@gpus_option
@json_option
def command(
    run: str,
    artifact: bool,
    data: Path | None,
    root: Path,
    overrides: tuple[str, ...],
    processes: int,
    as_json: bool,
) -> None:
    """Score RUN: every validation token once, bits (numerator) and bytes (denominator) shown.

    The score is the same to the last bit on any number of GPUs of a kind.
    """
    if is_launched(processes):
        return
    from golf.distributed import open_world
    from golf.log import Log
    from golf.recipe import compute_otherwise
    from golf.session import FinishedRun, open_finished_run, open_run
    from golf.workbench import Workbench, artifact_weights, checkpoint_weights

    opened = open_finished_run(run, root=root, data=data) if artifact else open_run(run, root=root, data=data)
    recipe = compute_otherwise(opened.recipe, overrides)
    with open_world() as world, Log(rank=world.rank) as log:
        bench = Workbench.build(recipe, opened.dataset, world, looping=opened.looping)
        log.note(bench.model.kernels.sentence())
        like = bench.model.state_dict()
        if isinstance(opened, FinishedRun):
            file, weights = opened.folder.artifact, artifact_weights(opened.folder.artifact, like)
        else:
            file, weights = opened.checkpoint.path, checkpoint_weights(opened.checkpoint, like)
        bench.load(weights)
        score = bench.score(log, f"evaluate {run}")
        if not world.is_main:
            return
    if as_json:
        echo_json(score.to_dict() | bench.model.kernels.names())
        return
    click.echo(f"scored    {file}")
    click.echo(f"val_loss  {score.val_loss:.6f} nats per token over {score.tokens:,} tokens")
    click.echo(f"val_bpb   {score.val_bpb:.6f} = {score.to_dict()['bits']:,.1f} bits / {score.bytes:,} bytes")
