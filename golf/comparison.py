"""Two runs beside each other: their losses at the same steps, and what they ended in."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from golf.checkpoint import find_run
from golf.errors import UsageError
from golf.files import read_json
from golf.log import read_events, series
from golf.run_folder import RunFolder


class RunLog(NamedTuple):
    """What a run said of itself."""

    name: str
    events: list[dict[str, Any]]
    final: dict[str, Any]  # empty while it is not finished

    def of_steps(self, key: str) -> dict[int, float]:
        """Return `key` of every training step that was logged."""
        return series([event for event in self.events if event["event"] == "train"], key)


class Comparison(NamedTuple):
    """The steps that both logged, and numbers about them."""

    table: pd.DataFrame
    summary: dict[str, Any]


def open_log(run: str, *, root: Path) -> RunLog:
    """Read what RUN, a name in `root` or a run's folder, logged.

    Raises UsageError if there is no such run, BadFileError if it has no events or others than a run's.
    """
    folder = RunFolder(find_run(run, root=root))
    final = read_json(folder.final) if folder.final.exists() else {}
    return RunLog(folder.path.resolve().name, read_events(folder.events), final)


def compare_runs(first: RunLog, second: RunLog) -> Comparison:
    """Put the losses of the steps that both logged beside each other. Raises UsageError if there is none."""
    ours, theirs = (run.of_steps("train_loss") for run in (first, second))
    seconds = [run.of_steps("elapsed_seconds") for run in (first, second)]
    steps = sorted(ours.keys() & theirs.keys())
    if not steps:
        raise UsageError(
            f"{first.name} and {second.name} logged no step in common; log both with the same run.log_every"
        )
    a, b = (first.name, second.name) if first.name != second.name else (f"{first.name} (1)", f"{second.name} (2)")
    apart = [theirs[step] - ours[step] for step in steps]
    table = pd.DataFrame(
        {
            "step": steps,
            a: [ours[step] for step in steps],
            b: [theirs[step] for step in steps],
            "difference": apart,
            f"{a} seconds": [seconds[0][step] for step in steps],
            f"{b} seconds": [seconds[1][step] for step in steps],
        }
    )
    largest = max(range(len(steps)), key=lambda index: abs(apart[index]))
    summary: dict[str, Any] = {
        "steps_compared": len(steps),
        "mean_difference": sum(map(abs, apart)) / len(steps),
        "largest_difference": abs(apart[largest]),
        "at_step": steps[largest],
    }
    if first.final and second.final:
        summary |= _ends(first.final, second.final)
    return Comparison(table, summary)


def _ends(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("unquantized", "quantized"):
        found[f"{key}_bpb"] = [first[key]["val_bpb"], second[key]["val_bpb"]]
    found["steps"] = [first["steps"], second["steps"]]
    found["same_checkpoint"] = first["checkpoint_sha256"] == second["checkpoint_sha256"]
    found["same_artifact"] = first["artifact"]["sha256"] == second["artifact"]["sha256"]
    return found
