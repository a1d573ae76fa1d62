"""The folder of one run: where its checkpoints, events, artifact and results lie, and who may write there."""

import contextlib
import importlib.metadata
import importlib.util
import platform
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import tomli_w
from filelock import FileLock, Timeout

from golf.checkpoint_manifest import manifest_paths
from golf.config import Recipe
from golf.errors import BadFileError, EnvironmentUnfitError, UsageError
from golf.files import remove_stale, write_text
from golf.recipe import recipe_from_dict

_PACKAGES = ("golf-hotstart", "torch", "numpy", "safetensors", "brotli", "sentencepiece")


class RunFolder:
    """Names of the files of a run; nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.recipe = path / "recipe.toml"  # resolved, every default written out
        self.started = path / "started.toml"  # the command line and the data folder
        self.events = path / "events.jsonl"
        self.final = path / "final.json"
        self.artifact = path / "artifact.golf"
        self.shadows = path / "shadows"  # checkpoints that hold the shadow averages alone
        self.results = path / "results"

    def create(self, recipe: Recipe, data: Path, *, force: bool = False) -> None:
        """Make the folder; store the resolved recipe, the command line and the data folder.

        Raises UsageError if the run has a checkpoint, unless `force`. What an earlier run left is removed, so that
        nothing of it can pass for this one's; files that golf did not write stay.
        """
        if manifest_paths(self.path) and not force:
            remedy = f"continue it with --resume {self.name}, or choose another --name"
            raise UsageError(f"run {self.name!r} exists in {self.path.parent}; {remedy}")
        self._clear()
        started = {"command": ["golf", *sys.argv[1:]], "data": str(data.absolute())}
        write_text(self.started, tomli_w.dumps(started))
        write_text(self.recipe, tomli_w.dumps(recipe.to_dict()))

    def _clear(self) -> None:
        """Remove an earlier run, its claims before what they are about."""
        manifests = [*manifest_paths(self.path), *manifest_paths(self.shadows)]
        tensors = [*self.path.glob("*.safetensors"), *self.shadows.glob("*.safetensors")]
        for path in (self.final, *manifests, *tensors, self.artifact, self.events):
            path.unlink(missing_ok=True)

    def data_folder(self) -> Path:
        """Return the folder of shards that the run was started on."""
        try:
            return Path(tomllib.loads(self.started.read_text(encoding="utf-8"))["data"])
        except (OSError, ValueError, KeyError) as error:
            raise BadFileError(
                self.started, f"does not say where the data is ({error})", "name it with --data"
            ) from None

    def load_recipe(self) -> Recipe:
        """Read the resolved recipe back. Raises BadFileError if it is missing or damaged."""
        try:
            return recipe_from_dict(tomllib.loads(self.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError, UsageError) as error:
            raise BadFileError(self.recipe, f"not a stored recipe ({error})", "restore it or start a new run") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing and remove what a killed writer left.

        Raises EnvironmentUnfitError if another process holds it or the folder may not be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise EnvironmentUnfitError(f"run {self.name!r} is being written by another process; wait for it") from None
        except OSError as error:
            raise EnvironmentUnfitError(
                f"{self.path}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        try:
            remove_stale(self.path)
            yield
        finally:
            lock.release()


def free_name(root: Path, stem: str) -> str:
    """Return the first of stem-1, stem-2, … that is no run in `root` yet."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def versions() -> dict[str, str]:
    """Versions of everything that may change a number."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    if importlib.util.find_spec("triton") is not None:  # there is none for macOS
        found["triton"] = importlib.metadata.version("triton")
    return {"python": platform.python_version(), **found}
