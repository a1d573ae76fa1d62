"""Say whether this machine will do, before it is paid for: versions, GPUs, disk, memory, data; a few seconds."""

from pathlib import Path

import click

from golf.cli import echo_json, json_option


@click.command(epilog="Example: golf doctor --root /workspace/checkpoints --data data/mine")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where runs will be written; need not exist yet.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards.  [default: each one in data]")
@json_option
def command(root: Path, data: Path | None, as_json: bool) -> None:
    """Check what a training needs of this machine, and say the remedy of what is not as it should be.

    ok, warn (it costs speed or comfort) or fail (a run would stop); the exit code is 4 if anything failed, else 0.
    Nothing is changed: 256 MiB are written to the disk of --root and removed, GPUs are only asked. How many steps a
    run would have here, `golf bench preflight` says.
    """
    from golf.doctor.check import format_checks, report
    from golf.doctor.examination import examine
    from golf.errors import EnvironmentUnfitError

    checks = examine(root=root, data=data, describe_attention=_describe_attention)
    result = report(checks)
    if as_json:
        echo_json(result)
    else:
        click.echo(format_checks(checks))
    if result["verdict"] == "fail":
        click.get_current_context().exit(EnvironmentUnfitError.exit_code)


def _describe_attention() -> tuple[str, str]:
    import torch

    from golf.distributed import single_world
    from golf.kernels.flash import choose_attention

    backend = choose_attention(single_world().device, torch.bfloat16)
    return backend.description, backend.remedy
