"""Forms of an operation are compared before they are timed, and one that breaks does not stop the others."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.bench import forms as forms_module
from golf.bench import kernels, layer_cases
from golf.bench.case import Sizes
from golf.bench.ceilings import Ceilings
from golf.bench.findings import Findings
from golf.bench.forms import find_forms
from golf.bench.kernels import build_cases, relative_distance, time_kernels
from golf.errors import EnvironmentUnfitError
from golf.kernels.norm import rms_norm
from golf.kernels.square_mlp_gemm import BACKWARD_TILES, FORWARD_TILES
from golf.kernels.square_mlp_rows import RINGS
from golf.kernels.table import PLAIN, Kernels, fused_kernels
from tests.kernels.interpreter import needs_interpreter
from tests.pico import RECORD_PARTS, pico_recipe

CPU = torch.device("cpu")
SIZES = Sizes(pico_recipe().model, 423, 16, torch.float32, CPU)
CEILINGS = Ceilings(1e9, 1e9)


def norm_like(factor: float) -> Any:
    def norm(x: Tensor, *, scale: float = 1.0) -> Tensor:
        return rms_norm(x) * scale * factor

    return norm


def broken(x: Tensor, *, scale: float = 1.0) -> Tensor:
    raise RuntimeError("at 5:11:\na long trace\n  TypeError('no such tile')\n")


def time_norms(**norms: Any) -> Findings:
    tables: dict[str, Kernels] = {name: dataclasses.replace(PLAIN, norm=norm) for name, norm in norms.items()}
    cases = [case for case in build_cases(SIZES) if case.name == "norm"]
    return time_kernels(cases, tables, SIZES, CEILINGS, seconds=0)


def names(findings: Findings) -> list[str]:
    return [one.name for one in findings.measurements]


def test_every_form_is_timed_both_ways_with_its_work() -> None:
    found = time_norms(plain=PLAIN.norm, other=norm_like(1.0))
    assert names(found) == [
        "norm/plain/forward",
        "norm/other/forward",
        "norm/plain/forward + backward",
        "norm/other/forward + backward",
    ]
    assert [one.bytes_moved for one in found.measurements] == 2 * [2 * 423 * 32 * 4] + 2 * [5 * 423 * 32 * 4]
    assert all(one.share == one.bytes_moved / 1e9 / one.seconds for one in found.measurements)


def test_the_distance_from_the_first_form_is_told() -> None:
    (figure,) = time_norms(plain=PLAIN.norm, other=norm_like(1.01)).figures
    assert figure.name == "norm/other/distance from plain"
    assert figure.value == pytest.approx(0.01, rel=1e-3)


def test_every_form_is_compared_with_the_first_not_with_the_one_before() -> None:
    figures = time_norms(plain=PLAIN.norm, second=norm_like(1.03), third=norm_like(1.06)).figures
    assert [one.name for one in figures] == ["norm/second/distance from plain", "norm/third/distance from plain"]
    assert [one.value for one in figures] == pytest.approx([0.03, 0.06], rel=1e-3)


@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_a_form_with_other_results_fails_and_is_not_timed(factor: float) -> None:
    found = time_norms(plain=PLAIN.norm, wrong=norm_like(factor))
    assert names(found) == ["norm/plain/forward", "norm/plain/forward + backward"]
    (failure,) = found.failures
    assert failure == f"norm/wrong: its results are {factor - 1:.3g} away from those of plain"


def test_a_form_with_another_gradient_alone_fails() -> None:
    def norm(x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = PLAIN.norm(x, scale=scale)
        return y.detach() + 2 * (y - y.detach())

    found = time_norms(plain=PLAIN.norm, wrong=norm)
    assert found.failures == ["norm/wrong: its results are 1 away from those of plain"]


def test_a_form_that_breaks_is_told_and_the_others_are_timed() -> None:
    found = time_norms(plain=PLAIN.norm, breaks=broken, other=norm_like(1.0))
    assert found.failures == ["norm/breaks: RuntimeError: at 5:11: … TypeError('no such tile')"]
    assert [name for name in names(found) if "+" not in name] == ["norm/plain/forward", "norm/other/forward"]


def test_if_the_first_form_breaks_the_next_one_is_the_reference() -> None:
    found = time_norms(breaks=broken, second=PLAIN.norm, third=norm_like(1.01))
    assert [figure.name for figure in found.figures] == ["norm/third/distance from second"]


def test_what_breaks_while_it_is_timed_does_not_lose_the_other_operations() -> None:
    calls = 0

    def dies(x: Tensor, *, scale: float = 1.0) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("an illegal memory access was encountered")
        return PLAIN.norm(x, scale=scale)

    cases = [case for case in build_cases(SIZES) if case.name in ("project", "norm", "mix norm")]
    found = time_kernels(cases, {"plain": dataclasses.replace(PLAIN, norm=dies)}, SIZES, CEILINGS, seconds=0)
    assert found.failures == ["norm: RuntimeError: an illegal memory access was encountered"]
    assert [name for name in names(found) if "+" not in name] == ["project/plain/forward", "mix norm/plain/forward"]


def test_if_all_forms_break_nothing_is_timed() -> None:
    found = time_norms(breaks=broken)
    assert (found.measurements, len(found.failures)) == ([], 1)


def test_forms_with_the_same_function_are_timed_once() -> None:
    tables = {"plain": PLAIN, "other": dataclasses.replace(PLAIN, norm=norm_like(1.0))}
    found = time_kernels(build_cases(SIZES), tables, SIZES, CEILINGS, seconds=0)
    assert [name for name in names(found) if "/other/" in name] == [
        "norm/other/forward",
        "norm/other/forward + backward",
    ]
    assert len(found.measurements) == 2 * (len(build_cases(SIZES)) + 1)
    assert found.failures == []


def test_further_ways_are_for_a_gpu_alone() -> None:
    (head,) = [case for case in build_cases(SIZES) if case.name == "head and cross-entropy"]
    assert list(kernels._runs(head, {"plain": PLAIN}, on_gpu=False)) == ["plain"]
    assert list(kernels._runs(head, {"plain": PLAIN}, on_gpu=True)) == ["plain", "chunks of 4096", "chunks of 16384"]


@needs_interpreter
@pytest.mark.parametrize("name", ["square mlp", "head and cross-entropy"])
def test_further_ways_lead_to_the_same_results(name: str) -> None:
    sizes = SIZES._replace(tokens=3)
    (case,) = [case for case in build_cases(sizes) if case.name == name]
    assert case.others
    calls = kernels._runs(case, {"plain": PLAIN}, on_gpu=True)
    (inputs,) = kernels._draw_sets(case, sizes)
    expected = calls["plain"](inputs)
    upstream = tuple(map(torch.ones_like, expected))
    gradients = torch.autograd.grad(expected, list(inputs.values()), upstream)
    for run in calls.values():
        found = run(inputs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, list(inputs.values()), upstream), gradients)


@needs_interpreter
def test_every_operation_but_attention_has_a_fused_form_with_the_same_results() -> None:
    sizes = SIZES._replace(tokens=3, config=pico_recipe(*RECORD_PARTS).model)
    tables = {"plain": PLAIN, "fused": fused_kernels()}
    findings = Findings()
    for case in build_cases(sizes):
        (inputs,) = kernels._draw_sets(case, sizes)
        kernels._check(case, kernels._runs(case, tables, on_gpu=False), inputs, findings)
    names = [case.name for case in build_cases(sizes) if case.name != "attention"]
    assert [one.name for one in findings.figures] == [f"{name}/fused/distance from plain" for name in names]
    assert max(one.value for one in findings.figures) < 1e-5
    assert findings.failures == []


def test_the_mlp_is_timed_by_every_way_of_each_product_that_does_its_dtype() -> None:
    def others(overrides: tuple[str, ...], dtype: torch.dtype) -> list[str]:
        sizes = SIZES._replace(config=pico_recipe(*overrides).model, dtype=dtype)
        return [name for case in build_cases(sizes) if case.name == "square mlp" for name in case.others]

    assert others((), torch.float32) == ["matmul, matmul", "float32, matmul", "matmul, float32"]
    assert others(("model.mlp_mult=1.25",), torch.bfloat16) == ["matmul, matmul"]  # 40 channels, no multiple of 16
    half = others((), torch.bfloat16)
    assert half == [
        "matmul, matmul",
        *(f"{way}, matmul" for way in FORWARD_TILES if way != "float32"),
        *(f"matmul, {way}" for way in BACKWARD_TILES if way != "float32"),
    ]
    assert len(half) > 3


def test_the_mlp_goes_by_rows_where_they_run_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(*overrides: str) -> set[str]:
        sizes = SIZES._replace(config=pico_recipe(*overrides).model, dtype=torch.bfloat16)
        return {name for case in build_cases(sizes) if case.name == "square mlp" for name in case.others}

    by_rows = {f"{way}, matmul" for way in RINGS} | {f"matmul, {way}" for way in RINGS}
    assert not others("model.mlp_mult=4") & by_rows
    monkeypatch.setattr(layer_cases, "can_go_by_rows", lambda device, dtype: True)
    assert others("model.mlp_mult=4") >= by_rows  # 128 hidden units
    assert not others("model.mlp_mult=3") & by_rows


def test_inputs_are_drawn_anew_for_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "count_input_sets", lambda size, device: 3 if size == 423 * 32 * 4 else 0)
    (case,) = [case for case in build_cases(SIZES) if case.name == "norm"]
    sets = kernels._draw_sets(case, SIZES)
    assert len(sets) == 3
    assert all(not torch.equal(sets[0]["x"], other["x"]) for other in sets[1:])


def test_a_distance_is_relative_to_the_expected_norm() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_distance(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_distance(expected.bfloat16(), expected) == 0.0
    assert relative_distance(torch.zeros(3), torch.zeros(3)) == 0.0


def test_a_cpu_has_the_plain_form_alone_and_the_reasons_are_told() -> None:
    found = find_forms(CPU, torch.bfloat16)
    assert list(found.tables) == ["plain"]
    assert found.tables["plain"] is PLAIN
    assert len(found.missing) == 3


def test_a_gpu_has_the_fused_form_and_each_installed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        return q

    def choose(device: torch.device, dtype: torch.dtype, *, wanted: str) -> Any:
        if wanted == "fa3":
            raise EnvironmentUnfitError("no fa3")
        return type("Backend", (), {"function": staticmethod(attention)})

    fused = dataclasses.replace(PLAIN, description="fused")
    monkeypatch.setattr(forms_module, "choose_attention", choose)
    monkeypatch.setattr(forms_module, "can_go_by_rows", lambda device, dtype: False)
    monkeypatch.setattr(forms_module, "fused_kernels", lambda **_: fused)
    found = find_forms(torch.device("cuda"), torch.bfloat16)
    assert list(found.tables) == ["plain", "fused", "fa4", "varlen"]
    assert found.missing == ("no fa3",)
    assert found.tables["fused"] is fused
    assert found.tables["fa4"].attention is attention
    assert found.tables["fa4"].norm is PLAIN.norm
