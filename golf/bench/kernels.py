"""Kernels side by side: every form of every operation, forward and with its backward, in turns and on the same inputs.

A form is timed only if its results are there to be compared: how far outputs and gradients are from the plain form's
is told beside its time, because a fast kernel may be a wrong one.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from golf.bench.case import Case, Draw, Inputs, Outputs, Run, Sizes
from golf.bench.ceilings import Ceilings
from golf.bench.findings import Findings
from golf.bench.head_cases import head_cases
from golf.bench.layer_cases import layer_cases
from golf.bench.measurement import Figure, Measurement
from golf.bench.stream_cases import stream_cases
from golf.bench.timing import count_input_sets, time_calls
from golf.kernels.table import Kernels

_FAR = 0.1  # of the plain form's norm; in bfloat16 that itself is up to a few hundredths away from the exact result


def build_cases(sizes: Sizes) -> list[Case]:
    """Return a case for every operation of a model."""
    return [*layer_cases(sizes), *stream_cases(sizes), *head_cases(sizes)]


def time_kernels(
    cases: Sequence[Case], tables: Mapping[str, Kernels], sizes: Sizes, ceilings: Ceilings, *, seconds: float
) -> Findings:
    """Time every case in every form that differs, for about `seconds` each way; the first table is the reference.

    A form that raises is left out and told among the failures; the others are still timed.
    """
    findings = Findings()
    for case in cases:
        try:
            _time_case(case, tables, sizes, ceilings, findings, seconds=seconds)
        except Exception as error:  # of any kind, as below; what was timed before is not to be lost
            findings.failures.append(f"{case.name}: {_told(error)}")
    return findings


def _time_case(
    case: Case,
    tables: Mapping[str, Kernels],
    sizes: Sizes,
    ceilings: Ceilings,
    findings: Findings,
    *,
    seconds: float,
) -> None:
    """Time one case; add to `findings`."""
    sets = _draw_sets(case, sizes)
    runs = _runs(case, tables, on_gpu=sizes.device.type == "cuda")
    upstream, good = _check(case, runs, sets[0], findings)
    acts = [partial(_forward), partial(_backward, upstream=upstream)]
    works = [("forward", case.forward), ("forward + backward", case.forward.plus(case.backward))]
    for act, (way, work) in zip(acts, works, strict=True):
        calls = {name: [partial(act, run, inputs) for inputs in sets] for name, run in good.items()}
        for name, samples in time_calls(calls, sizes.device, seconds=seconds).items():
            measured = Measurement.of(f"{case.name}/{name}/{way}", samples, work)
            findings.measurements.append(ceilings.judge(measured))


def _runs(case: Case, tables: Mapping[str, Kernels], *, on_gpu: bool) -> dict[str, Run]:
    """Return what runs the case in each form; tables that share a function share a run, named by the first."""
    runs: dict[str, Run] = {}
    seen = set()
    for name, table in tables.items():
        function = getattr(table, case.entry)
        if function not in seen:
            seen.add(function)
            runs[name] = partial(case.call, function)
    return runs | dict(case.others) if on_gpu else runs


def _draw_sets(case: Case, sizes: Sizes) -> list[Inputs]:
    """Draw as many sets of inputs as the cache wants."""
    draw = Draw(sizes, torch.Generator(sizes.device).manual_seed(0))
    first = case.make(draw)
    count = count_input_sets(sum(tensor.nbytes for tensor in first.values()), sizes.device)
    return [first, *(case.make(draw) for _ in range(count - 1))]


def _check(case: Case, runs: Mapping[str, Run], inputs: Inputs, findings: Findings) -> tuple[Outputs, dict[str, Run]]:
    """Compare every form with the first; return the outputs' gradients to use, and the forms that can be findings."""
    upstream: Outputs = ()
    expected: list[Tensor] = []
    good: dict[str, Run] = {}
    for name, run in runs.items():
        try:
            upstream = upstream or _like(run(inputs))
            found = [*_forward(run, inputs), *_backward(run, inputs, upstream)]
        except Exception as error:  # of any kind: a kernel may fail in the compiler, the driver or the allocator
            findings.failures.append(f"{case.name}/{name}: {_told(error)}")
            continue
        reference = next(iter(good), name)
        distance = float(np.max([relative_distance(*pair) for pair in zip(found, expected or found, strict=True)]))
        if not distance <= _FAR:
            findings.failures.append(
                f"{case.name}/{name}: its results are {distance:.3g} away from those of {reference}"
            )
            continue
        if expected:
            findings.figures.append(Figure(f"{case.name}/{name}/distance from {reference}", distance, "relative"))
        expected, good[name] = expected or found, run
    return upstream, good


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected| by norms, in float32."""
    found, expected = found.detach().float(), expected.detach().float()
    least = torch.finfo(torch.float32).tiny
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected).clamp_min(least))


def _told(error: Exception) -> str:
    """Return an error's kind, and the first and last line of what it says: a compiler begins with the place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"


def _forward(run: Run, inputs: Inputs) -> Outputs:
    return run(inputs)


def _backward(run: Run, inputs: Inputs, upstream: Outputs) -> Outputs:
    return torch.autograd.grad(run(inputs), list(inputs.values()), upstream)


def _like(outputs: Outputs) -> Outputs:
    """Draw a gradient for every output."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    return tuple(torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator) for x in outputs)
