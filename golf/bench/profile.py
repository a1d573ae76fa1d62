"""Where a step's time goes on the device: its kernels, put into groups by their names.

The groups are those of the table that record runs are compared by. A kernel's name is all that is known of it, so a new
library may bring names that belong nowhere: they are in the rest, and the longest of them are told.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch.profiler import ProfilerActivity

from golf.bench.measurement import Figure
from golf.bench.training import take_steps
from golf.distributed import World
from golf.model.plan import LayerPlan
from golf.sweep.table import make_table
from golf.train_state import TrainState

REST = "rest"

_GROUPS: tuple[tuple[str, str], ...] = (  # the first that is found in a name decides
    ("reductions", r"^triton_(red|per)_"),  # inductor's names tell all that was fused, copies too
    ("pointwise", r"^triton_(poi|for)_"),
    ("communication", r"nccl|gloo|c10d::"),
    ("cross-entropy", r"^_(loss|gradient)_kernel|entropy|nll_loss|cunn_SoftMax|log_softmax|LogSoftMax"),
    ("attention", r"flash|fmha|sdpa|flex_attention|attention|_attn_"),
    ("fused linear", r"^_(square|slope)(_product|_rows)?(_\d+)?$|linear_leaky"),
    (
        "GEMMs",
        r"^triton_tem_|gemm|nvjet|cutlass|cublas|splitK|gemv|^aten::(mm|addmm|bmm|baddbmm|mv|dot)$|mkldnn",
    ),
    ("fills and copies", r"Memcpy|Memset|FillFunctor|fill_|copy|CatArray|^aten::(zero_|cat|clone|index)"),
    ("reductions", r"^_(mix|norm|turn|exclude|column_sums)(_|$)|reduce_kernel|[nN]orm|^aten::(sum|mean)$"),
    ("pointwise", r"^_scale_rows|elementwise|multi_tensor_apply|^aten::(add|mul|sub|div|pow|where|lerp|neg|rsqrt)"),
)


class Kernel(NamedTuple):
    """All calls of one kernel; of one operator where there is no GPU."""

    name: str
    seconds: float
    calls: int


def group_of(name: str) -> str:
    """Return the group that a kernel of this name belongs to."""
    return next((group for group, pattern in _GROUPS if re.search(pattern, name)), REST)


def profile_steps(state: TrainState, plan: LayerPlan, world: World, *, steps: int) -> list[Kernel]:
    """Return what the device does in a whole step, on average over `steps`, the longest kernel first. A collective."""
    on_gpu = world.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    take_steps(state, plan, world, 1)
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiled:
        take_steps(state, plan, world, steps)
    totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for event in profiled.key_averages():
        if (event.device_type.name == "CUDA") == on_gpu and not event.is_user_annotation:
            seconds, calls = totals[event.key]
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            totals[event.key] = seconds + spent / 1e6, calls + event.count
    kernels = [Kernel(name, seconds / steps, calls // steps) for name, (seconds, calls) in totals.items()]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def group_figures(label: str, kernels: Sequence[Kernel]) -> list[Figure]:
    """Add up the milliseconds of every group."""
    totals: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        totals[group_of(kernel.name)] += kernel.seconds * 1e3
    order = dict.fromkeys([*(group for group, _ in _GROUPS), REST])
    found = [Figure(f"profile/{label}/{group}", totals[group], "ms") for group in order if group in totals]
    return [*found, Figure(f"profile/{label}/all kernels", sum(totals.values()), "ms")]


def kernel_table(kernels: Mapping[str, Sequence[Kernel]]) -> pd.DataFrame:
    """Lay out every kernel of each label, with its group."""
    rows = [
        {"name": f"{label}/{one.name}", "group": group_of(one.name), "ms": one.seconds * 1e3, "calls": one.calls}
        for label, found in kernels.items()
        for one in found
    ]
    return make_table(rows)
