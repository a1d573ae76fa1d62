"""The rehearsal: every phase once before the clock starts, nothing left behind, and what cannot work fails there."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.artifact.codecs import compress
from golf.checkpoint_manifest import manifest_paths
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import single_world
from golf.errors import GolfError, NumericalFaultError, UsageError
from golf.log import Log
from golf.model.gpt import GPT
from golf.posttrain import rehearse
from tests.pico import pico_dataset
from tests.session_tools import CPU, Place, digests


def try_out(place: Place, folder: Path, recipe: Recipe | None = None) -> None:
    """Rehearse alone, with the run folder `folder`."""
    with Log(folder / "events.jsonl") as log:
        rehearse(recipe or place.recipe(), Dataset.open(place.data), single_world(CPU), log)


def test_it_leaves_one_event_behind_and_nothing_else(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(finished.folder.rglob("*"))
    try_out(finished, tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "events.jsonl"]
    assert sorted(finished.folder.rglob("*")) == files
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("golf-loader")]


def test_it_does_not_change_what_is_trained(place: Place, finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.session.rehearse", lambda *args: None)
    place.start("unrehearsed")
    assert digests(place.run("unrehearsed")) == digests(finished.run("done"))


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **values: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "target",
    [
        "golf.workbench.pack_bytes",  # the codec is missing
        "golf.workbench.unpack_bytes",
        "golf.quant.pipeline.gptq",
        "golf.workbench.evaluate",
        "golf.workbench.collect_hessians",
        "golf.artifact.budget._own_code_bytes",
        "golf.workbench.byte_counter",
        "golf.posttrain.fake_quantized_forward",  # runs late in training
    ],
)
def test_what_cannot_work_after_training_fails_before_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(target, raising(GolfError("this cannot work")))
    with pytest.raises(GolfError, match="this cannot work"):
        place.start("new")
    assert manifest_paths(place.run("new")) == []


def test_a_codec_that_cannot_be_read_back_fails_before_training(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.workbench.pack_bytes", lambda *args, **values: b"no artifact")
    with pytest.raises(GolfError, match="not a golf artifact"):
        place.start("new")
    assert manifest_paths(place.run("new")) == []


def test_shards_too_short_to_calibrate_on_fail_before_training(place: Place) -> None:
    shutil.rmtree(place.data)
    pico_dataset(place.data, train=(270, 270))
    with pytest.raises(UsageError, match="no training shard of virtual rank 0 holds the 271 tokens of a window"):
        place.start("new", "data.seq_len=270")
    assert manifest_paths(place.run("new")) == []


def test_an_activation_that_is_not_finite_fails_before_training(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.posttrain._stirred", lambda weights: {k: v * torch.nan for k, v in weights.items()})
    with pytest.raises(NumericalFaultError, match="holds NaN"):
        place.start("new")


def test_a_parameter_that_no_loss_depends_on_is_named(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = GPT.__init__

    def with_idle(model: GPT, *args: Any) -> None:
        build(model, *args)
        model.get_submodule("blocks.1.mlp").register_parameter("idle_scale", torch.nn.Parameter(torch.ones(3)))

    monkeypatch.setattr(GPT, "__init__", with_idle)
    with pytest.raises(ValueError, match=r"no gradient reaches blocks\.1\.mlp\.idle_scale; they would never"):
        try_out(finished, tmp_path)


def test_parameters_that_only_the_loop_uses_are_not_called_idle(finished: Place, tmp_path: Path) -> None:
    """The looped plan has skip rows and visits that the plain one has not."""
    for overrides in ((), ("model.skips.index=position",), ("model.loop.extra_passes=2",)):
        try_out(finished, tmp_path, finished.recipe(*overrides))


def test_a_resumed_run_is_not_rehearsed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.session.rehearse", raising(AssertionError("rehearsed")))
    assert place.resume("done@pre_qat", force=True)["steps"] == 20


def test_it_compresses_with_the_least_effort(finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    efforts: list[bool] = []

    def watched(codec: str, data: bytes, *, quick: bool = False) -> bytes:
        efforts.append(quick)
        return compress(codec, data, quick=quick)

    monkeypatch.setattr("golf.artifact.container.compress", watched)
    try_out(finished, tmp_path / "run")
    assert efforts.count(True) >= 4  # the streams
    assert efforts.count(False) == 1  # the header is small
