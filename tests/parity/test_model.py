"""The forward and its gradients against the recorded models of PRs #1787, #1801 and #1855."""

from pathlib import Path

import pytest
import torch

from golf.data.documents import segment_rows
from golf.model.init import build_model
from golf.model.rotary import rotary_table
from golf.part_config import RopeConfig
from tests.parity.fixture_set import under
from tests.parity.recorded import Recorded, reference_name
from tests.parity.unbank import unbank

MODELS = ("model_1787", "model_1801", "model_1855")
CASES = [("model_1787", packing, loop) for packing in ("packed", "unpacked") for loop in ("off", "on")]
CASES += [(name, packing, "on") for name in MODELS[1:] for packing in ("packed", "unpacked")]


@pytest.mark.parametrize(("name", "packing", "loop"), CASES)
def test_logits_and_losses_are_the_recorded_ones(fixtures: Path, name: str, packing: str, loop: str) -> None:
    recorded = Recorded(fixtures, name)
    batch, plan = recorded.batch(packing), recorded.plan(loop)
    tolerances = recorded.description["tolerances"]
    logits_limits, loss_limits = {**tolerances["logits"]}, {**tolerances["loss"]}
    with torch.no_grad():
        logits, loss = recorded.model.logits(batch, plan=plan), recorded.model(batch, plan=plan).mean()
    key = f"out::logits_{packing}_loop_{loop}"
    if key in recorded.out:  # the compact subset has few
        expected = recorded.out[key]
        torch.testing.assert_close(logits.view_as(expected), expected, **logits_limits)
    torch.testing.assert_close(loss, recorded.out[f"out::loss_{packing}_loop_{loop}"], **loss_limits)


@pytest.mark.parametrize("name", MODELS)
def test_every_recorded_gradient_is_ours(fixtures: Path, name: str) -> None:
    recorded = Recorded(fixtures, name)
    recorded.model(recorded.batch("packed"), plan=recorded.plan("on")).mean().backward()
    expected = unbank(under(recorded.out, "grad::"))
    assert expected
    found = {reference_name(key): value.grad for key, value in recorded.model.named_parameters()}
    limit = recorded.description["tolerances"]["grad"]["relative_norm_per_tensor"]
    for key, gradient in expected.items():
        ours = found[key]
        assert ours is not None
        assert float((ours - gradient).norm()) <= limit * float(gradient.norm()), key


@pytest.mark.parametrize("name", MODELS)
def test_the_packed_row_is_cut_at_its_documents(fixtures: Path, name: str) -> None:
    recorded = Recorded(fixtures, name)
    batch, scalars, bos_id = recorded.batch("packed"), recorded.description["scalars"], recorded.model.config.bos_id
    assert (batch.tokens[0] == bos_id).nonzero().flatten().tolist() == scalars["doc_starts"]
    segments = segment_rows(batch.tokens, bos_id=bos_id, max_doc_len=batch.tokens.numel())
    assert torch.equal(segments.unique(), batch.cu_seqlens.unique())
    assert int(segments.diff().max()) == scalars["max_seqlen"]


@pytest.mark.parametrize("name", MODELS)
def test_the_unpacked_rows_have_the_length_of_training(fixtures: Path, name: str) -> None:
    recorded = Recorded(fixtures, name)
    assert recorded.batch("unpacked").tokens.shape[1] == recorded.description["hyperparameters"]["train_seq_len"]


def test_rotary_tables_are_the_recorded_ones(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1787")
    rope, tolerance = under(recorded.out, "rope::"), recorded.description["tolerances"]["logits"]
    settings = recorded.description["hyperparameters"]
    for frequencies, is_rounded in (("inv_freq", False), ("inv_freq_after_module_cast_to_bfloat16", True)):
        config = RopeConfig(dims=settings["rope_dims"], base=settings["rope_base"], round_to_bfloat16=is_rounded)
        cos, sin = rotary_table(config, settings["train_seq_len"], torch.device("cpu"))
        torch.testing.assert_close(torch.atan2(sin[1, 0], cos[1, 0]), rope[frequencies])
        if not is_rounded:
            torch.testing.assert_close(cos[:, 0], rope["cos"], **tolerance)
            torch.testing.assert_close(sin[:, 0], rope["sin"], **tolerance)


def test_the_layers_are_visited_in_the_recorded_order(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1787")
    plan = recorded.plan("on")
    assert plan.encoder == recorded.description["encoder_indices"]
    assert plan.decoder == recorded.description["decoder_indices"]
    assert len(recorded.tokens["w::skip_weights"]) == recorded.description["num_skip_weights"]


def test_without_the_document_mask_the_smear_gate_gives_other_logits(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1855")
    unmasked = recorded.out["out::logits_packed_loop_on_without_bos_mask"]
    with torch.no_grad():
        logits = recorded.model.logits(recorded.batch("packed"), plan=recorded.plan("on"))[0]
    assert float((logits - unmasked).abs().max()) > 100 * recorded.description["tolerances"]["logits"]["atol"]


def test_in_a_bfloat16_model_the_recorded_parameters_alone_are_bfloat16(fixtures: Path) -> None:
    recorded = Recorded(fixtures, "model_1787")
    model = build_model(recorded.model.config, seed=0, dtype=torch.bfloat16, device=torch.device("cpu"))
    narrow = [reference_name(name) for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16]
    assert narrow == recorded.description["parameters_left_in_bfloat16_by_the_reference"]
