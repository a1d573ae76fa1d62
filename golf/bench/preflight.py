"""A few steps before a run is paid for: how long one takes here, and how many the recipe's time will hold."""

from collections.abc import Mapping

import numpy as np

from golf.bench.findings import Findings
from golf.bench.measurement import Figure, Measurement
from golf.bench.saving import forecast_run
from golf.bench.training import LOOPS, take_steps
from golf.distributed import World
from golf.model.plan import LayerPlan
from golf.train_state import TrainState


def foresee_run(state: TrainState, plans: Mapping[bool, LayerPlan], world: World, *, steps: int) -> Findings:
    """Take `steps` steps, half of them with the loop on if there is one, and walk through the schedule at that speed.

    The state should be primed. A collective.
    """
    found, recipe = Findings(), state.recipe
    loops = (False, True) if recipe.model.loop else (False,)
    for looping in loops:
        laps = take_steps(state, plans[looping], world, max(1, steps // len(loops)))
        found.measurements.append(Measurement.of(f"preflight/{LOOPS[looping]}", np.sum([*laps.values()], 0).tolist()))
    seconds = [one.seconds for one in found.measurements]
    run = forecast_run(recipe, {False: seconds[0], True: seconds[-1]})
    tokens = run.steps * recipe.data.batch_tokens
    figures = {
        "steps of a run": (run.steps, ""),
        "seconds of a run": (run.seconds, "s"),
        "tokens of a run": (tokens, ""),
        "throughput": (tokens / run.seconds, "tokens/s"),
    }
    found.figures.extend(Figure(f"preflight/{name}", *value) for name, value in figures.items())
    return found
