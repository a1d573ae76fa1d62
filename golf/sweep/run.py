"""Sweeps over a finished checkpoint: everything that is the same for all settings is done once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from golf.artifact.budget import ByteLedger, byte_ledger
from golf.config import Recipe
from golf.distributed import World
from golf.errors import UsageError
from golf.log import Log
from golf.quant.pipeline import needs_hessians
from golf.quant_config import QuantConfig
from golf.recipe import override_recipe
from golf.session import OpenedRun
from golf.sweep.table import make_table
from golf.workbench import Workbench, checkpoint_weights

CONTROL = "control"
_CALIBRATION = ("calibration_batches", "calibration_windows")  # a change of these needs other Hessians


@dataclass(frozen=True, slots=True)
class Setting:
    """One row to compute."""

    name: str  # "control", or the overrides as the user wrote them
    config: QuantConfig


def default_tries(recipe: Recipe) -> list[str]:
    """Suggest settings around a recipe's own: tighter clips on attention and MLP if any, and one bit less."""
    quant = recipe.quant
    names = ("attn_clip_sigmas", "mlp_clip_sigmas") if quant.method == "gptq" else ()  # no other method clips by them
    clips = {key: getattr(quant, key) for key in names}
    tighter = ",".join(f"{key}={clip * 0.8:g}" for key, clip in clips.items() if clip)  # 0 spans the whole row
    fewer = f"matrix_bits={quant.matrix_bits - 1}" if quant.matrix_bits > 2 else ""
    return [text for text in (tighter, fewer) if text]


def parse_settings(recipe: Recipe, tries: Sequence[str]) -> list[Setting]:
    """Turn "key=value,key=value" texts over the [quant] table into settings, the unchanged control first.

    Raises UsageError for an unknown key, for a text that changes nothing, and for two texts that mean the same.
    """
    settings = [Setting(CONTROL, recipe.quant)]
    for text in tries:
        changes = [part.strip().removeprefix("quant.") for part in text.split(",") if part.strip()]
        config = override_recipe(recipe, [f"quant.{change}" for change in changes]).quant
        twin = next((setting for setting in settings if setting.config == config), None)
        if twin is not None:
            raise UsageError(f"--try {text} gives the same settings as {twin.name}; leave it out")
        settings.append(Setting(" ".join(changes), config))
    return settings


def requant(run: OpenedRun, settings: Sequence[Setting], world: World, log: Log) -> pd.DataFrame:
    """Quantize one checkpoint under each setting; return a row each, compared with the control.

    The model is built and the unquantized score taken once; Hessians are collected once for each calibration.
    """
    manifest = run.checkpoint.manifest
    bench = Workbench.build(run.recipe, run.dataset, world, looping=manifest.looping)
    original = checkpoint_weights(run.checkpoint, bench.model.state_dict())
    weights = bench.load(original)
    unquantized = bench.score(log, "evaluate unquantized")
    hessians: dict[tuple[Any, ...], Any] = {}
    rows = []
    for setting in settings:
        started = time.perf_counter()
        calibration = (needs_hessians(setting.config), *(getattr(setting.config, key) for key in _CALIBRATION))
        if calibration not in hessians:
            bench.load(original)
            hessians[calibration] = bench.hessians(log, setting.config)
        outcome = bench.quantize(weights, hessians[calibration], setting.config)
        ledger = byte_ledger(outcome.artifact)
        rows.append(_row(setting, outcome.score.val_bpb, unquantized.val_bpb, ledger, time.perf_counter() - started))
        log.event("requant", boundary=manifest.boundary, **rows[-1])
        log.note(f"{setting.name}: {outcome.score.val_bpb:.5f} bpb, {ledger.total_bytes:,} bytes")
    return make_table(rows, control=CONTROL)


def _row(
    setting: Setting, val_bpb: float, unquantized_bpb: float, ledger: ByteLedger, seconds: float
) -> dict[str, Any]:
    return {
        "name": setting.name,
        "val_bpb": val_bpb,
        "gap_bpb": val_bpb - unquantized_bpb,
        **ledger.to_dict(),
        "seconds": round(seconds, 3),
    }
