"""Every check of a machine, one after another; what breaks one is its result, and the others go on.

Packages are imported where they are needed: one that is missing fails the checks that need it, and these alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from golf.doctor.check import Check, attempt, guarded
from golf.doctor.host import examine_host
from golf.doctor.mounts import Mount, read_mounts
from golf.doctor.nvidia import Reading, read_gpus

_RECIPE = "pr1787"  # the record-size run that the machine is measured against
_CODECS = ("brotli", "zstd", "lzma")


def examine(*, root: Path, data: Path | None, describe_attention: Callable[[], tuple[str, str]]) -> list[Check]:
    """Check this machine for training into `root` on the data set `data` (None: on those in the folder "data").

    `describe_attention` names the attention that would run here, and how to come by a faster one, if one can. Takes a
    few seconds; writes and removes one nameless file of 256 MiB on the disk of `root`, and changes no setting.
    """
    readings, mute = attempt("nvidia-smi", read_gpus)  # before this process has memory of a GPU
    mounts, untold = attempt("mounts", read_mounts)
    checks = guarded("packages", _examine_packages) + mute + untold
    seen, blind = attempt("gpus", partial(_examine_gpus, readings))
    gpus, found = seen or (0, blind)
    checks += found + guarded("attention", lambda: _check_attention(*describe_attention()))
    checks += guarded("compiler", partial(_examine_compiler, mounts or [], gpus))
    for codec in _CODECS:
        checks += guarded(f"codec {codec}", partial(_check_codec, codec))
    measured, unmeasured = attempt("disk", partial(_examine_disk, root, mounts or []))
    checkpoint_bytes, found = measured or (0, unmeasured)
    checks += found
    checks += guarded("host", partial(examine_host, gpus=gpus, checkpoint_bytes=checkpoint_bytes))
    return checks + guarded("data", partial(_examine_data, data))


def _check_attention(description: str, remedy: str) -> Check:
    return Check("attention", "warn" if remedy else "ok", description, remedy)


def _examine_packages() -> list[Check]:
    from golf.doctor.packages import examine_packages

    return examine_packages()


def _examine_gpus(readings: Sequence[Reading] | None) -> tuple[int, list[Check]]:
    """Return the number of GPUs that torch sees, and what was found of them."""
    from golf.doctor.cuda import read_cuda
    from golf.doctor.gpus import examine_gpus

    cuda = read_cuda()
    return len(cuda.gpus), examine_gpus(cuda, readings)


def _examine_compiler(mounts: Sequence[Mount], gpus: int) -> list[Check]:
    from golf.doctor.compiler import examine_compiler

    return examine_compiler(mounts, gpus=gpus)


def _check_codec(codec: str) -> Check:
    from golf.doctor.codecs import check_codec

    return check_codec(codec)


def _examine_disk(root: Path, mounts: Sequence[Mount]) -> tuple[int, list[Check]]:
    """Return the bytes of a record run's checkpoint, and what was found of the disk."""
    from golf.doctor.disk import examine_disk
    from golf.doctor.footprint import footprint
    from golf.recipe import load_recipe

    needed = footprint(load_recipe(_RECIPE))
    return needed.full_bytes, examine_disk(root, mounts, needed)


def _examine_data(data: Path | None) -> list[Check]:
    from golf.doctor.data import examine_data

    return examine_data(data)
