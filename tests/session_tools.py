"""A pico training session: recipe file, shards and run folders; whole commands in this process or in a child.

The run takes 20 steps and meets every boundary at a step of its own, `frac_50` and a shadow apart, which share one.
"""

import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor

from golf.checkpoint import boundaries, load_checkpoint
from golf.cli import cli
from golf.config import Recipe
from golf.data.documents import Batch
from golf.distributed import World, single_world
from golf.files import read_json
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.recipe import load_recipe
from golf.session import resume_run, start_run
from tests.children import SERVER
from tests.pico import pico_dataset, pico_values

STEPS = {  # boundary: step
    "init": 0,
    "momentum_full": 3,
    "step_4": 4,
    "pre_loop": 7,
    "frac_50": 10,
    "warmdown_start": 11,
    "pre_qat": 16,
    "lr_floor": 18,
    "final_raw": 20,
    "final_ema": 20,
}
SHADOW_STEPS = {"shadow_1": 5, "shadow_2": 10, "shadow_3": 15}
_CHANGES: dict[str, dict[str, Any]] = {
    "optim": {"momentum_warmup_steps": 3},
    "schedule": {
        "iterations": 20,
        "warmdown_fraction": 0.5,
        "min_lr": 0.25,
        "loop_at": 0.35,
        "late_qat_below": 0.5,
    },
    "average": {"ema_decay": 0.8, "swa_every": 2, "swa_below": 0.45, "swa_of": "ema", "shadow_snapshots": 4},
    "run": {"log_every": 4, "checkpoints": ["frac_50", "step_4"]},
}
CPU = torch.device("cpu")

SERVER.set_forkserver_preload(["golf.checkpoint", "pytest", "golf.session", "golf.sweep.run"])


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with `pico.toml`, `data/pico` and runs under `checkpoints`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Place":
        """Write recipe and shards."""
        values = pico_values()
        for table, changes in _CHANGES.items():
            values[table] |= changes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pico.toml").write_text(tomli_w.dumps(values))
        pico_dataset(folder / "data" / "pico")
        return cls(folder)

    @property
    def toml(self) -> Path:
        """The recipe's file."""
        return self.folder / "pico.toml"

    @property
    def data(self) -> Path:
        """The shards."""
        return self.folder / "data" / "pico"

    @property
    def root(self) -> Path:
        """Where runs land."""
        return self.folder / "checkpoints"

    def recipe(self, *overrides: str) -> Recipe:
        """Load the recipe with overrides."""
        return load_recipe(self.toml, overrides)

    def start(self, name: str, *overrides: str, world: World | None = None, force: bool = False) -> dict[str, Any]:
        """Train from the start, in this process."""
        world = world or single_world(CPU)
        return start_run(self.recipe(*overrides), world, root=self.root, name=name, data=self.data, force=force)

    def resume(self, spec: str, *, world: World | None = None, force: bool = False) -> dict[str, Any]:
        """Continue a run, in this process."""
        return resume_run(spec, world or single_world(CPU), root=self.root, force=force)

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.root / name


@dataclass(frozen=True, slots=True)
class Said:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as one JSON document."""
        return json.loads(self.out)


def golf(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Said:
    """Run a golf command line in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return Said(int(ended.value.code or 0), out, err)


def golf_child(said: Path, words: list[str | Path]) -> None:
    """Run a golf command line as the body of a child process; stdout and stderr go to the file `said`."""
    torch.set_num_threads(1)
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    cli.main([str(word) for word in words])


@functools.cache
def finished_place(base: Path) -> Place:
    """Make the place with the finished run "done", once in a test session; nobody changes it."""
    place = Place.make(base / "session")
    place.start("done")
    return place


def copy_place(place: Place, folder: Path) -> Place:
    """Copy recipe, data and runs, so that a test may change them."""
    shutil.copytree(place.folder, folder)
    for started in folder.glob("checkpoints/*/started.toml"):
        started.write_text(started.read_text().replace(str(place.folder), str(folder)))
    return Place(folder)


def cut_back(place: Place, run: str, boundary: str) -> None:
    """Make a run look as if it had been killed just after a boundary was written."""
    folder, step = place.run(run), STEPS[boundary]
    for name in STEPS:
        if list(STEPS).index(name) > list(STEPS).index(boundary):
            for path in folder.glob(f"{name}.*"):
                path.unlink()
    for name, at in SHADOW_STEPS.items():
        if at > step:
            for path in (folder / "shadows").glob(f"{name}.*"):
                path.unlink()
    for path in (folder / "final.json", folder / "artifact.golf"):
        path.unlink(missing_ok=True)


def digests(run: Path) -> dict[str, str]:
    """The digest of every boundary's tensors, of the shadows' and of the artifact."""
    found = {manifest.boundary: manifest.data_sha256 for manifest in [*boundaries(run), *boundaries(run / "shadows")]}
    return found | {"artifact": read_json(run / "final.json")["artifact"]["sha256"]}


def watch_visits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that every forward of a training step adds its number of layer visits to."""
    seen: list[int] = []
    forward = GPT.forward

    def watched(model: GPT, batch: Batch, *, plan: LayerPlan, **values: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(len(plan.visits))
        return forward(model, batch, plan=plan, **values)

    monkeypatch.setattr(GPT, "forward", watched)
    return seen


def weights_of(run: Path, boundary: str) -> dict[str, torch.Tensor]:
    """A boundary's model tensors."""
    return load_checkpoint(run / f"{boundary}.json").tensors("model/")
