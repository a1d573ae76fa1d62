"""The forward and its gradients against the recorded models of PRs #1787, #1801 and #1855."""

from pathlib import Path

import pytest
import torch

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
    with torch.no_grad():
        logits, loss = recorded.model.logits(batch, plan=plan), recorded.model(batch, plan=plan).mean()
    expected = recorded.out[f"out::logits_{packing}_loop_{loop}"]
    torch.testing.assert_close(logits.view_as(expected), expected, **tolerances["logits"])
    torch.testing.assert_close(loss, recorded.out[f"out::loss_{packing}_loop_{loop}"], **tolerances["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_every_recorded_gradient_is_ours(fixtures: Path, name: str) -> None:
    recorded = Recorded(fixtures, name)
    recorded.model(recorded.batch("packed"), plan=recorded.plan("on")).mean().backward()
    expected = unbank({key[6:]: tensor for key, tensor in recorded.out.items() if key.startswith("grad::")})
    found = {reference_name(key): value.grad for key, value in recorded.model.named_parameters()}
    limit = recorded.description["tolerances"]["grad"]["relative_norm_per_tensor"]
    for key, gradient in expected.items():
        ours = found[key]
        assert ours is not None
        assert float((ours - gradient).norm()) <= limit * float(gradient.norm()), key


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
    assert float((logits - unmasked).abs().max()) > 1e-2
