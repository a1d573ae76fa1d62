"""A whole run with fused kernels, through Triton's interpreter: rehearsal, steps, late QAT, calibration, evaluation."""

import pytest

from golf.kernels.table import Kernels, fused_kernels
from tests.kernels.interpreter import needs_interpreter
from tests.session_tools import Place

SHORT = ("schedule.iterations=3", "average.shadow_snapshots=0", "quant.calibration_batches=1")
WIDER = ("eval.batch_tokens=304",)  # all of the validation tokens at once

pytestmark = needs_interpreter


def test_it_ends_where_the_plain_run_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = place.start("plain", *SHORT, *WIDER)

    def fused(*args: object, **choice: object) -> Kernels:
        return fused_kernels()

    monkeypatch.setattr("golf.run_model.choose_kernels", fused)
    found = place.start("fused", *SHORT, *WIDER)
    assert found["kernels"] == "fused Triton kernels"
    assert plain["kernels"] == "plain PyTorch"
    assert found["unquantized"]["val_loss"] == pytest.approx(plain["unquantized"]["val_loss"], abs=2e-4)
    assert found["quantized"]["val_loss"] == pytest.approx(plain["quantized"]["val_loss"], abs=2e-3)
