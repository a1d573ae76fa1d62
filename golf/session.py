"""A whole run from a recipe or a checkpoint: rehearse, train, finish; what `golf train` and `golf demo` both do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.checkpoint import Checkpoint, find_checkpoint, find_run, load_checkpoint
from golf.checkpoint_manifest import read_manifest
from golf.config import Recipe
from golf.data.published import VARIANTS
from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import BadFileError, UsageError
from golf.files import read_json
from golf.log import Log
from golf.posttrain import finish, rehearse
from golf.recipe import recipe_from_dict
from golf.recipe_report import unbuilt
from golf.run_folder import RunFolder, free_name
from golf.train import UNBEGUN, told_if_interrupted, train


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A checkpoint of a run with everything needed to go on from it."""

    folder: RunFolder
    recipe: Recipe
    checkpoint: Checkpoint
    dataset: Dataset

    @property
    def looping(self) -> bool:
        """Whether the weights were last trained with depth recurrence on."""
        return self.checkpoint.manifest.looping


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What scoring a run's artifact needs; of its checkpoints nothing."""

    folder: RunFolder
    recipe: Recipe
    looping: bool  # as of the weights that the artifact was made from
    dataset: Dataset


def open_run(spec: str, *, root: Path, data: Path | None = None) -> OpenedRun:
    """Open and verify the checkpoint that "RUN", "RUN@BOUNDARY" or a path stands for, with its recipe and data."""
    path = find_checkpoint(spec, root=root)
    if path.parent == RunFolder(path.parent.parent).shadows:
        raise UsageError(f"{path}: shadows alone cannot be scored or resumed; name a boundary of the run")
    checkpoint = load_checkpoint(path)
    folder = RunFolder(path.parent)
    try:
        recipe = recipe_from_dict(checkpoint.manifest.recipe)
    except UsageError as error:
        raise BadFileError(
            path, f"its recipe is not one of this golf ({error})", "use the golf that wrote it"
        ) from None
    return OpenedRun(folder, recipe, checkpoint, open_dataset(recipe, data or folder.data_folder()))


def open_finished_run(name: str, *, root: Path, data: Path | None = None) -> FinishedRun:
    """Open a run for its artifact.

    Raises UsageError if it is not finished, BadFileError if its recipe is not the one that final.json tells of.
    """
    if "@" in name:
        raise UsageError(f"{name}: an artifact is made of a run's finished weights; leave the boundary out")
    folder = RunFolder(find_run(name, root=root))
    if not folder.final.exists():
        raise UsageError(f"run {folder.name!r} is not finished, so it has no artifact; golf train --resume {name}")
    recipe, summary = folder.load_recipe(), read_json(folder.final)
    if recipe.digest != summary.get("recipe_digest"):
        raise BadFileError(folder.recipe, "it is not the recipe that final.json tells of", "restore it from a copy")
    dataset = open_dataset(recipe, data or folder.data_folder())
    return FinishedRun(folder, recipe, _looped_at_end(folder, summary), dataset)


def start_run(
    recipe: Recipe, world: World, *, root: Path, name: str | None = None, data: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Train `recipe` in a new folder of `root`; return what final.json says."""
    dataset = open_dataset(recipe, data)
    wanted = _plain(free_name(root, recipe.name) if name is None else name)
    folder = RunFolder(root / world.agree_text(wanted))
    if not world.is_main:
        return _train_and_finish(recipe, dataset, world, folder, None)
    with folder.locked():
        folder.create(recipe, dataset.folder, force=force)
        return _train_and_finish(recipe, dataset, world, folder, None)


def resume_run(spec: str, world: World, *, root: Path, data: Path | None = None, force: bool = False) -> dict[str, Any]:
    """Continue the run of RUN[@BOUNDARY]; return what final.json says. A finished RUN is only shown, unless `force`.

    Raises UsageError for a boundary of a finished run without `force`: what follows would replace its results;
    BadFileError if the data is not that of the checkpoint.
    """
    path = find_checkpoint(spec, root=root)
    folder = RunFolder(path.parent)
    if folder.final.exists() and not force:
        if "@" in spec or Path(spec).is_file():
            what = f"going on from {path.stem} would replace its artifact and final.json"
            raise UsageError(
                f"run {folder.name!r} is finished, and {what}; give --force, or name the run alone to see it"
            )
        if data is not None:
            raise UsageError(f"run {folder.name!r} is already finished and looks at no data; leave --data out")
        Log(rank=world.rank).note(f"{folder.name}: already finished")
        summary: dict[str, Any] = read_json(folder.final)
        return summary
    run = open_run(spec, root=root, data=data)
    _check_same_data(run)
    if not world.is_main:
        return _train_and_finish(run.recipe, run.dataset, world, folder, run.checkpoint)
    with folder.locked():
        return _train_and_finish(run.recipe, run.dataset, world, folder, run.checkpoint)


def open_dataset(recipe: Recipe, data: Path | None) -> Dataset:
    """Open the shards in `data`, by default data/<the recipe's dataset>.

    Raises UsageError with the remedy if there is no such folder, BadFileError if its documents start otherwise or its
    tokens are beyond the recipe's vocabulary.
    """
    folder = data or Path("data") / recipe.data.dataset
    if folder.is_file():
        raise UsageError(f"{folder} is a file; name the folder of its shards with --data")
    if not folder.is_dir():
        how = f"{_how_to_get(recipe.data.dataset)} --out {folder}"
        raise UsageError(f"no data in {folder}; {how}, or name a folder with --data")
    dataset = Dataset.open(folder)
    if dataset.bos_id != recipe.model.bos_id:  # the model would take no token for a document's start
        reason = f"its documents start with id {dataset.bos_id}, the recipe's with {recipe.model.bos_id}"
        raise BadFileError(folder, reason, f"add --set model.bos_id={dataset.bos_id}")
    dataset.check_vocab(recipe.model.vocab_size)
    return dataset


def _looped_at_end(folder: RunFolder, summary: Mapping[str, Any]) -> bool:
    """Say how the finished weights were trained, which an earlier golf wrote into the checkpoint's manifest alone."""
    if "looping" in summary:
        return bool(summary["looping"])
    return read_manifest(folder.path / f"{summary['boundary']}.json").looping


def _check_same_data(run: OpenedRun) -> None:
    """Refuse to go on with other data than the checkpoint's; one that does not name its data is taken at its word."""
    trained, found = run.checkpoint.manifest.dataset_digest, run.dataset.digest()
    if trained and found != trained:
        reason = f"it is not the data of run {run.folder.name!r} (digest {found[:16]} instead of {trained[:16]})"
        raise BadFileError(run.dataset.folder, reason, "name that data with --data, or start a new run")


def _how_to_get(dataset: str) -> str:
    """Name the command that brings a data set."""
    if dataset == "demo":
        return "make it with: golf data demo"
    published = [name for name, variant in VARIANTS.items() if variant.dataset == dataset]
    return f"fetch it with: golf data fetch {published[0]}" if published else "prepare it with: golf data prepare"


def _plain(name: str) -> str:
    """Refuse a name that would leave the root or could not be told from RUN@BOUNDARY."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(f"run name {name!r} may hold letters, digits, _ . and - only; choose another --name")
    return name


def _train_and_finish(
    recipe: Recipe, dataset: Dataset, world: World, folder: RunFolder, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    ignored = unbuilt(recipe)
    with Log(folder.events, rank=world.rank) as log:
        if ignored:
            log.note(f"no tool acts on these values of the recipe yet, the scores are without: {', '.join(ignored)}")
        if checkpoint is None:
            log.note("rehearsing every phase before the training")
            with told_if_interrupted(UNBEGUN):
                rehearse(recipe, dataset, world, log)
        way_on = f"continue with: golf train --resume {folder.path}"
        if folder.final.exists():  # it is resumed by force, and would else only be shown
            way_on = "start it again with the same command"
        with told_if_interrupted(f"everything finished is on disk; {way_on}"):
            if checkpoint is None or checkpoint.manifest.boundary != f"final_{recipe.average.use}":
                boundary = train(recipe, dataset, world, folder=folder, log=log, resume=checkpoint)
                checkpoint = load_checkpoint(folder.path / f"{boundary}.json")
            return finish(recipe, dataset, world, checkpoint=checkpoint, folder=folder, log=log, unbuilt=ignored)
