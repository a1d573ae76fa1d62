"""A recorded function of a batch gives what the function gives; on a GPU only, there is nothing to record without."""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.bench.synthetic import make_dataset
from golf.data.documents import Batch
from golf.distributed import single_world
from golf.errors import EnvironmentUnfitError
from golf.kernels.flash_ops import flash3_attention
from golf.kernels.table import PLAIN
from golf.log import Log
from golf.model.plan import LayerPlan, plan_layers
from golf.recording import MOST, Recorder, can_record
from golf.train_state import TrainState
from golf.workbench import Workbench
from tests.model.test_options import OPTIONS
from tests.pico import pico_batch, pico_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
IN_BFLOAT16 = ("run.dtype=bfloat16", "model.num_heads=2", "model.num_kv_heads=1", "run.rows_per_micro_batch=2")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_what_is_not_recorded_is_computed_each_time() -> None:
    seen: list[str] = []

    def function(batch: Batch, key: str) -> Tensor:
        seen.append(key)
        return batch.tokens.sum()

    recorder, batch = Recorder(function, CPU, records=False), pico_batch(1, 32)
    assert [int(recorder(batch, key)) for key in "aab"] == 3 * [int(batch.tokens.sum())]
    assert seen == ["a", "a", "b"]
    assert recorder.unrecorded == 0


@pytest.mark.parametrize("breaks", [False, True])
def test_no_garbage_is_collected_while_a_batch_is_recorded(monkeypatch: pytest.MonkeyPatch, breaks: bool) -> None:
    collects: list[bool] = []

    def function(batch: Batch, _: None) -> Tensor:
        collects.append(gc.isenabled())
        if breaks and len(collects) == 2:
            raise RuntimeError("no")
        return batch.tokens.sum()

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    recorder = Recorder(function, CPU, records=True)
    with pytest.raises(EnvironmentUnfitError) if breaks else contextlib.nullcontext():
        recorder(pico_batch(1, 32), None)
    assert collects == [True, False]  # computed, recorded
    assert gc.isenabled()


def test_only_a_gpu_records_and_not_with_the_attention_that_looks_at_lengths() -> None:
    run, other = pico_recipe().run, replace(PLAIN, attention=flash3_attention)
    assert can_record(run, other, GPU)
    assert not can_record(run, other, CPU)
    assert not can_record(run, PLAIN, GPU)
    assert not can_record(pico_recipe("run.cuda_graphs=false").run, other, GPU)


@needs_gpu
@pytest.mark.gpu
def test_batches_of_a_shape_are_replayed_with_their_own_numbers() -> None:
    calls, total = [], torch.zeros((), device=GPU)

    def function(batch: Batch, factor: int) -> Tensor:
        calls.append(factor)
        total.add_(1)
        return batch.tokens.sum() * factor

    recorder = Recorder(function, GPU, records=True)
    batches = [pico_batch(1, 32, seed=seed) for seed in range(4)]
    found = [int(recorder(batch.pinned(), factor)) for batch in batches for factor in (2, 3)]
    assert found == [int(batch.tokens.sum()) * factor for batch in batches for factor in (2, 3)]
    assert calls == [2, 2, 3, 3]  # computed once, recorded once
    assert int(total) == len(found)


@needs_gpu
@pytest.mark.gpu
def test_a_batch_that_lies_on_the_gpu_is_not_written_to() -> None:
    recorder: Recorder[None] = Recorder(lambda batch, _: batch.tokens.sum(), GPU, records=True)
    first, second = (pico_batch(1, 32, seed=seed) for seed in range(2))
    there = first.to(GPU)
    for batch in (there, second):
        recorder(batch, None)
    assert torch.equal(there.tokens.cpu(), first.tokens)


@needs_gpu
@pytest.mark.gpu
def test_more_shapes_than_recordings_are_computed_and_counted() -> None:
    recorder: Recorder[None] = Recorder(lambda batch, _: batch.tokens.sum(), GPU, records=True)
    for tokens in range(16, 16 * (MOST + 3), 16):
        batch = pico_batch(1, tokens)
        for _ in range(2):
            assert int(recorder(batch, None)) == int(batch.tokens.sum())
    assert (len(recorder.recordings), recorder.unrecorded) == (MOST, 2 * 2)


@needs_gpu
@pytest.mark.gpu
def test_what_reads_a_tensor_cannot_be_recorded_and_the_way_out_is_named() -> None:
    def reads(batch: Batch, key: None) -> Tensor:
        return batch.tokens * int(batch.tokens.sum())

    recorder: Recorder[None] = Recorder(reads, GPU, records=True)
    with pytest.raises(EnvironmentUnfitError, match=r"cannot be recorded as a CUDA graph .*; set run\.cuda"):
        recorder(pico_batch(1, 32), None)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_with_any_option_is_recorded(name: str, tmp_path: Path) -> None:
    recipe = pico_recipe("run.dtype=bfloat16", "run.rows_per_micro_batch=2", *OPTIONS[name])
    state = TrainState.build(recipe, make_dataset(tmp_path, recipe), single_world(GPU))
    with contextlib.closing(state.loader):
        for looping in (False, True) if recipe.model.loop else (False,):
            losses = [float(state.forward_backward(plan_layers(recipe.model, looping=looping), late_qat=False))]
            losses += [float(state.forward_backward(plan_layers(recipe.model, looping=looping), late_qat=False))]
            assert all(math.isfinite(loss) for loss in losses)
        assert state.gradient.recorder.recordings


@contextlib.contextmanager
def trained(folder: Path, *overrides: str) -> Iterator[TrainState]:
    recipe = pico_recipe(*IN_BFLOAT16, *overrides)
    state = TrainState.build(recipe, make_dataset(folder, recipe), single_world(GPU))
    with contextlib.closing(state.loader):
        yield state


def take(state: TrainState, plan: LayerPlan) -> float:
    loss = state.forward_backward(plan, late_qat=False)
    state.optimizer.step(lr_multiplier=1.0, momentum=0.9)
    return float(loss)


@needs_gpu
@pytest.mark.gpu
def test_recorded_steps_are_those_that_are_computed(tmp_path: Path) -> None:
    plans = [plan_layers(pico_recipe().model, looping=looping) for looping in (False, True, False, True, True, False)]
    with trained(tmp_path / "a") as recorded, trained(tmp_path / "b", "run.cuda_graphs=false") as computed:
        found, expected = ([take(state, plan) for plan in plans] for state in (recorded, computed))
        assert len(recorded.gradient.recorder.recordings) == 2
        assert not computed.gradient.recorder.recordings
        pairs = zip(recorded.model.parameters(), computed.model.parameters(), strict=True)
        distances = [float((one - other).detach().norm() / other.detach().norm()) for one, other in pairs]
    assert found[0] == expected[0]
    assert found == pytest.approx(expected, abs=2e-3)  # atomic additions in the attention's backward
    assert max(distances) < 2e-2


@needs_gpu
@pytest.mark.gpu
def test_a_late_step_is_recorded_apart_and_has_the_same_place_for_its_gradient(tmp_path: Path) -> None:
    plan = plan_layers(pico_recipe().model, looping=True)
    with trained(tmp_path) as state:
        for late_qat in (False, True, False, True):
            state.forward_backward(plan, late_qat=late_qat)
            gradients = [parameter.grad for parameter in state.gradient.parameters]
            assert all(one is other for one, other in zip(gradients, state.gradient.buffers, strict=True))
            assert all(bool(buffer.isfinite().all()) for buffer in state.gradient.buffers)
            state.optimizer.step(lr_multiplier=1.0, momentum=0.9)
        assert len(state.gradient.recorder.recordings) == 2


@needs_gpu
@pytest.mark.gpu
def test_an_evaluation_is_recorded_and_sees_new_weights(tmp_path: Path) -> None:
    recipe = pico_recipe(*IN_BFLOAT16)
    dataset = make_dataset(tmp_path, recipe)
    scores: dict[bool, list[float]] = {}
    for graphs in (True, False):
        bench = Workbench.build(
            pico_recipe(*IN_BFLOAT16, f"run.cuda_graphs={str(graphs).lower()}"),
            dataset,
            single_world(GPU),
            looping=True,
        )
        scores[graphs] = []
        for seed in range(3):
            bench.load(changed(bench, seed))
            scores[graphs].append(bench.score(Log(rank=1), "evaluate").loss_sum)
        assert bool(bench.losses.recorder.recordings) == graphs
    assert scores[True] == scores[False]
    assert len(set(scores[True])) == 3


def changed(bench: Workbench, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = bench.model.state_dict()
    return {name: x + 0.1 * torch.randn(x.shape, generator=generator).to(x) for name, x in state.items()}
