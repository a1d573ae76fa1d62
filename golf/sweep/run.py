"""Sweeps over a finished checkpoint: everything that is the same for all settings is done once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from golf.artifact.budget import byte_ledger
from golf.config import Recipe
from golf.distributed import World
from golf.errors import GolfError, UsageError
from golf.log import Log
from golf.quant.pipeline import needs_hessians
from golf.quant_config import QuantConfig
from golf.recipe import override_recipe
from golf.session import OpenedRun
from golf.sweep.table import make_table, write_table
from golf.workbench import Outcome, Workbench, checkpoint_weights

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

    Raises UsageError for an unknown key, for a text that is empty or changes nothing, and for two that mean the same.
    """
    settings = [Setting(CONTROL, recipe.quant)]
    for text in tries:
        changes = [part.removeprefix("quant.") for part in _parts(text)]
        if not changes:
            raise UsageError(f"--try '{text}' is empty; write key=value, for example matrix_bits=5")
        config = override_recipe(recipe, [f"quant.{change}" for change in changes]).quant
        twin = next((setting for setting in settings if setting.config == config), None)
        if twin is not None:
            raise UsageError(f"--try {text} gives the same settings as {twin.name}; leave it out")
        settings.append(Setting(" ".join(changes), config))
    return settings


def requant(
    run: OpenedRun, settings: Sequence[Setting], world: World, log: Log, *, outs: Sequence[Path] = ()
) -> tuple[pd.DataFrame, GolfError | None]:
    """Quantize one checkpoint under each setting; return a row each, compared with the control, and the first failure.

    The model is built and the unquantized score taken once; Hessians are collected once for each calibration. A setting
    that fails has a row with its `reason`, and the next is tried. The table so far is written to `outs` after each row.
    """
    manifest = run.checkpoint.manifest
    bench = Workbench.build(run.recipe, run.dataset, world, looping=manifest.looping)
    log.note(bench.model.kernels.sentence())
    original = checkpoint_weights(run.checkpoint, bench.model.state_dict())
    weights = bench.load(original)
    unquantized = bench.score(log, "evaluate unquantized")
    hessians: dict[tuple[Any, ...], dict[str, Tensor]] = {}
    rows: list[dict[str, Any]] = []
    failure: GolfError | None = None
    for setting in settings:
        started = time.perf_counter()
        try:
            outcome = _quantize(bench, original, weights, hessians, setting.config, log)
            values = _values(outcome, unquantized.val_bpb)
            said = f"{outcome.score.val_bpb:.5f} bpb, {values['total_bytes']:,} bytes"
        except GolfError as error:
            if world.size > 1:  # the other ranks wait for what this one would have sent them
                raise
            failure, said, values = failure or error, f"failed: {error}", {"reason": str(error)}
        rows.append({"name": setting.name, **values, "seconds": round(time.perf_counter() - started, 3)})
        log.event("requant", boundary=manifest.boundary, **rows[-1])
        log.note(f"{setting.name}: {said}")
        if world.is_main:
            for out in outs:
                write_table(make_table(rows, control=CONTROL), out)
    return make_table(rows, control=CONTROL), failure


def _parts(text: str) -> list[str]:
    """Split at the commas outside brackets; leave out empty parts."""
    depth, parts = 0, [""]
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _quantize(
    bench: Workbench,
    original: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    hessians: dict[tuple[Any, ...], dict[str, Tensor]],
    config: QuantConfig,
    log: Log,
) -> Outcome:
    """Quantize `weights`, those that an artifact holds of `original`, adding to `hessians` those still missing."""
    calibration = (needs_hessians(config), *(getattr(config, key) for key in _CALIBRATION))
    if calibration not in hessians:
        bench.load(original)
        hessians[calibration] = bench.hessians(log, config)
    return bench.quantize(weights, hessians[calibration], config)


def _values(outcome: Outcome, unquantized_bpb: float) -> dict[str, Any]:
    val_bpb = outcome.score.val_bpb
    return {"val_bpb": val_bpb, "gap_bpb": val_bpb - unquantized_bpb, **byte_ledger(outcome.artifact).to_dict()}
