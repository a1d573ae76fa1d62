"""Kernels are put into groups by their names: names as they were recorded, and those of golf's own kernels."""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
import torch

from golf.bench import profile
from golf.bench.profile import REST, Kernel, group_figures, group_of, kernel_table, profile_steps
from golf.distributed import World, single_world
from golf.model.plan import LayerPlan, plan_layers
from golf.train_state import TrainState
from tests.bench.test_training import pico_state

RECORDED = {
    "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTT": "GEMMs",
    "nvjet_hsh_128x256_64x4_2x1_v_bz_coopB_TNN": "GEMMs",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_kernel__5x_cublas": "GEMMs",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(Params)": "GEMMs",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>(splitKreduce_params)": "GEMMs",
    "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float>(...)": "GEMMs",
    "aten::addmm": "GEMMs",
    "kernel_cutlass_kernel_flash_attncuteflash_fwdFlashAttentionForwardSm90_object_at__tensorptr": "attention",
    "kernel_cutlass_kernel_flash_attncuteflash_bwd_preprocessFlashAttentionBackwardPreprocess": "attention",
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<...> > >(Params)": "attention",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>(Flash_bwd_params)": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_6x128x64": "attention",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)": "attention",
    "triton_tem_fused_flex_attention_0": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "linear_leaky_relu_square_kernel": "fused linear",
    "softcapped_entropy_fwd_kernel": "cross-entropy",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float, ...>": "cross-entropy",
    "void at::native::(anonymous namespace)::nll_loss_forward_no_reduce_cuda_kernel<float>": "cross-entropy",
    "triton_red_fused__to_copy_add_mul_sum_12": "reductions",
    "triton_per_fused__fused_rms_norm_mul_3": "reductions",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, ...> >": "reductions",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>": "reductions",
    "triton_per_fused__log_softmax_nll_loss_forward_4": "reductions",
    "triton_tem_fused_mm_3": "GEMMs",
    "triton_poi_fused_add_mul_sigmoid_7": "pointwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, ...>": "pointwise",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<...>>": "pointwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, ...>": "fills and copies",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>": "fills and copies",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<...>": "fills and copies",
    "Memcpy HtoD (Pinned -> Device)": "fills and copies",
    "Memset (Device)": "fills and copies",
    "void at::native::(anonymous namespace)::indexing_backward_kernel<...>": REST,
    "aten::view": REST,
}
GOLF = {
    "column_sums": "reductions",
    "exclude": "reductions",
    "mix_kernels": "reductions",
    "norm": "reductions",
    "scale_rows": "pointwise",
    "softcapped_ce": "cross-entropy",
    "square_mlp": "fused linear",
    "square_mlp_gemm": "fused linear",
    "square_mlp_rows": "fused linear",
    "turn_kernels": "reductions",
}


def is_launched(function: ast.FunctionDef, decorator: ast.expr) -> bool:
    """Say whether a decorator makes a kernel of a function that is launched; one of Gluon's tells itself."""
    name = ast.unparse(decorator)
    returns_nothing = function.returns is not None and ast.unparse(function.returns) == "None"
    return name.startswith("gluon_kernel") or (name == "jit" and returns_nothing)


def launched_kernels() -> dict[str, list[str]]:
    """The functions that are launched, by module; Triton's return nothing then, so that no other one calls them."""
    found = {}
    for path in sorted(Path("golf/kernels").absolute().glob("*.py")):
        functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
        names = [node.name for node in functions if any(is_launched(node, one) for one in node.decorator_list)]
        if names:
            found[path.stem] = names
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_name_belongs_to_its_group(name: str) -> None:
    assert group_of(name) == RECORDED[name]


def test_every_kernel_of_golf_belongs_to_the_group_of_its_file() -> None:
    kernels = launched_kernels()
    found = {module: {group_of(name) for name in names} for module, names in kernels.items()}
    assert found == {module: {group} for module, group in GOLF.items()}


def test_groups_add_up_the_milliseconds_of_their_kernels() -> None:
    kernels = [
        Kernel("nvjet_a", 0.003, 5),
        Kernel("odd", 0.5, 1),
        Kernel("nvjet_b", 0.001, 2),
        Kernel("Memset", 0.002, 1),
    ]
    figures = group_figures("loop on", kernels)
    assert [one.name for one in figures] == [
        "profile/loop on/GEMMs",
        "profile/loop on/fills and copies",
        "profile/loop on/rest",
        "profile/loop on/all kernels",
    ]
    assert [one.value for one in figures] == pytest.approx([4.0, 2.0, 500.0, 506.0], rel=1e-12)
    assert {one.unit for one in figures} == {"ms"}


def test_the_table_has_every_kernel_with_its_group() -> None:
    table = kernel_table({"loop off": [Kernel("nvjet_a", 0.003, 5)], "loop on": [Kernel("nvjet_a", 0.004, 6)]})
    assert isinstance(table, pd.DataFrame)
    assert table.to_dict("records") == [
        {"name": "loop off/nvjet_a", "group": "GEMMs", "ms": 3.0, "calls": 5},
        {"name": "loop on/nvjet_a", "group": "GEMMs", "ms": 4.0, "calls": 6},
    ]


def event(name: str, device: str, microseconds: float, count: int, *, annotation: bool = False) -> SimpleNamespace:
    times = {"self_device_time_total": microseconds, "self_cpu_time_total": 1000 * microseconds}
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(key=name, device_type=kind, count=count, is_user_annotation=annotation, **times)


@pytest.mark.parametrize(("kind", "unit"), [("cuda", 1e-6), ("cpu", 1e-3)])
def test_a_kernel_has_the_time_and_the_calls_of_one_step(
    monkeypatch: pytest.MonkeyPatch, kind: str, unit: float
) -> None:
    own, other = kind.upper(), "CPU" if kind == "cuda" else "CUDA"
    events = [
        event("short", own, 20.0, 4),
        event("long", own, 300.0, 8),
        event("long", own, 100.0, 2),
        event("elsewhere", other, 900.0, 2),
        event("annotated", own, 900.0, 2, annotation=True),
    ]
    asked: list[object] = []
    taken: list[int] = []

    @contextlib.contextmanager
    def profiled(*, activities: list[object], acc_events: bool) -> Iterator[SimpleNamespace]:
        asked.extend(activities)
        assert acc_events  # else newer versions of PyTorch warn
        yield SimpleNamespace(key_averages=lambda: events)

    monkeypatch.setattr(torch.profiler, "profile", profiled)
    monkeypatch.setattr(profile, "take_steps", lambda state, plan, world, steps: taken.append(steps))
    world = World(0, 1, 0, torch.device(kind))
    found = profile_steps(cast(TrainState, None), cast(LayerPlan, None), world, steps=2)
    assert [(one.name, one.calls) for one in found] == [("long", 5), ("short", 2)]
    assert [one.seconds for one in found] == pytest.approx([200 * unit, 10 * unit], rel=1e-12)
    assert [str(one) for one in asked] == [f"ProfilerActivity.{own}"]
    assert taken == [1, 2]


def test_a_real_step_has_one_attention_a_visit(tmp_path: Path) -> None:
    changes = ["model.num_layers=1", "model.xsa_last_n=1", "run.rows_per_micro_batch=8"]
    changes += ["model.loop=false", "schedule.loop_at=false", "model.skips=false", "model.value_embedding=false"]
    world = single_world(torch.device("cpu"))
    with pico_state(tmp_path, world, *changes) as state:
        found = profile_steps(state, plan_layers(state.recipe.model, looping=False), world, steps=2)
    calls = {one.name: one.calls for one in found}
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 1
    assert calls["aten::lerp_"] > 0  # the averages of a whole step
