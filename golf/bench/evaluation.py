"""Plain evaluation of a whole validation stream: the first time, which compiles, and after."""

import time

from golf.bench.findings import Findings
from golf.bench.measurement import Figure, Measurement
from golf.config import Recipe
from golf.data.shards import Dataset
from golf.distributed import World
from golf.log import Log
from golf.workbench import Workbench

_REPEATS = 3


def time_evaluation(recipe: Recipe, dataset: Dataset, world: World, log: Log) -> Findings:
    """Score the validation stream of `dataset` with first weights, in the graph that training ends in. A collective."""
    bench = Workbench.build(recipe, dataset, world, looping=recipe.model.loop is not None)
    seconds = [_score(bench, log) for _ in range(1 + _REPEATS)]
    cold, warm = Measurement.of("eval/cold", seconds[:1]), Measurement.of("eval/warm", seconds[1:])
    tokens = len(bench.stream.tokens) - 1
    figures = [
        Figure("eval/tokens", tokens, "tokens"),
        Figure("eval/throughput, cold", tokens / cold.seconds, "tokens/s"),
        Figure("eval/throughput, warm", tokens / warm.seconds, "tokens/s"),
    ]
    return Findings([cold, warm], figures)


def _score(bench: Workbench, log: Log) -> float:
    bench.world.barrier()
    began = time.perf_counter()
    bench.score(log, "evaluate")  # ends with the sums on the host: nothing is queued any more
    return time.perf_counter() - began
