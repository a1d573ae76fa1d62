"""Codes and scales of the recorded GPTQ runs, and the low-rank factors of what one of them did wrong."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.lqer import Correction, low_rank_factors, pack_asymmetric, pack_symmetric
from golf.quant.primitives import absmax_scale, dequantize, levels_of, quantize
from golf.quant.scheme import QuantizedTensor
from golf.quant.sdclip import choose_scale
from tests.parity.fixture_set import read_fixture
from tests.parity.unbank import from_upper_triangle, hessian_of, unbanked_weights

REFERENCE_FLOOR = 1e-10
RULES = {  # the words of the recorded run that golf's functions put into practice
    "clip_range": "2^(bits-1)-1, symmetric",
    "dead": "diagonal exactly 0: set to 1 before damping, column set to 0",
    "order": "columns sorted by descending damped Hessian diagonal (argsort, not stable)",
    "rounding": "half to even",
    "scale": "float16(max(clip_sigmas * std(row, unbiased) / clip_range, 1e-10)), std over the original row "
    "including dead columns",
}


class Recorded:
    """The fixture with its inputs put together."""

    def __init__(self, folder: Path) -> None:
        self.json, self.tensors = read_fixture(folder, "gptq")
        weights = unbanked_weights(folder)
        ending = ".H_triu"
        stems = [name.removesuffix(ending) for name in self.tensors if name.endswith(ending)]
        self.inputs = {
            stem.removeprefix("in::"): (
                self.tensors[f"{stem}.weight"],
                from_upper_triangle(self.tensors[stem + ending]),
            )
            for stem in stems
        }
        for key, name in self.json["weights"].items():
            self.inputs[key] = weights[name], hessian_of(folder, name)
        self.gate = weights[self.json["gate_weight"]]
        self.lqer_weight = weights[self.json["lqer"]["weight"]]

    def cases(self, pattern: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the key stem and the groups of `pattern` for every recorded code tensor that it matches."""
        found = [(key[:-2], match.groups()) for key in self.tensors if (match := re.fullmatch(pattern + r"\.q", key))]
        assert found
        yield from found

    def gptq(self, key: str, scale: Tensor, levels: int) -> Tensor:
        """Round input `key` with the damping and block size of the record."""
        constants = self.json["constants"]
        weight, hessian = self.inputs[key]
        return gptq(
            weight, hessian, scale, levels=levels, damping=constants["damp"], block_size=constants["block_size"]
        )

    def assert_codes(self, codes: Tensor, stem: str) -> None:
        difference = (codes.int() - self.tensors[f"{stem}.q"].int()).abs()
        assert difference.max() <= self.json["tolerances"]["max_code_difference"], stem
        assert (difference > 0).float().mean() <= self.json["tolerances"]["codes_mismatch_fraction"], stem

    def assert_scale(self, scale: Tensor, stem: str) -> None:
        assert torch.equal(scale, self.tensors[f"{stem}.scale"]), stem


@pytest.fixture
def recorded(fixtures: Path) -> Recorded:
    return Recorded(fixtures)


def test_codes_and_scales_for_every_clip_and_width(recorded: Recorded) -> None:
    flips = 3 * recorded.json["tolerances"]["codes_mismatch_fraction"]  # what flipped codes may do to a mean square
    for stem, (key, clip_sigmas, bits) in recorded.cases(r"out::(\w+)\.clip([\d.]+)\.int(\d)"):
        (weight, _), levels = recorded.inputs[key], levels_of(int(bits))
        scale = choose_scale(weight, clip_sigmas=float(clip_sigmas), levels=levels, floor=REFERENCE_FLOOR)
        recorded.assert_scale(scale, stem)
        codes = recorded.gptq(key, scale, levels)
        recorded.assert_codes(codes, stem)
        found = float((weight - dequantize(codes, scale)).square().mean())
        assert found == pytest.approx(recorded.json["stats"][stem.removeprefix("out::")]["mse"], rel=flips), stem


def test_the_tolerances_cover_what_a_disturbed_hessian_flips(recorded: Recorded) -> None:
    tolerances = recorded.json["tolerances"]
    for name, stats in recorded.json["stats"].items():
        assert stats["codes_changed_by_1e-6_noise_on_H"] <= tolerances["codes_mismatch_fraction"], name
        assert stats["max_code_change"] <= tolerances["max_code_difference"], name


def test_the_record_followed_the_rules_that_golf_does(recorded: Recorded) -> None:
    assert {name: recorded.json["constants"][name] for name in RULES} == RULES


def test_codes_for_every_block_size_and_damping(recorded: Recorded) -> None:
    levels, clip_sigmas = levels_of(recorded.json["variants"]["bits"]), recorded.json["variants"]["clip_sigmas"]
    for stem, (key, block_size, damping) in recorded.cases(r"variant::(\w+)\.block(\d+)\.damp([\d.]+)"):
        weight, hessian = recorded.inputs[key]
        scale = choose_scale(weight, clip_sigmas=clip_sigmas, levels=levels, floor=REFERENCE_FLOOR)
        codes = gptq(weight, hessian, scale, levels=levels, damping=float(damping), block_size=int(block_size))
        recorded.assert_codes(codes, stem)


def test_codes_and_scales_of_the_hessian_aware_clip(recorded: Recorded) -> None:
    levels, clip_sigmas = levels_of(recorded.json["sdclip"]["bits"]), recorded.json["sdclip"]["clip_sigmas"]
    for stem, (key, hessian_lambda) in recorded.cases(r"sdclip::(\w+)\.lambda([\d.]+)"):
        weight, hessian = recorded.inputs[key]
        scale = choose_scale(
            weight,
            clip_sigmas=clip_sigmas,
            levels=levels,
            hessian_diagonal=damped_diagonal(hessian, damping=recorded.json["constants"]["damp"]),
            hessian_lambda=float(hessian_lambda),
            floor=REFERENCE_FLOOR,
        )
        recorded.assert_scale(scale, stem)
        recorded.assert_codes(recorded.gptq(key, scale, levels), stem)


def test_the_zero_row_and_the_dead_columns_have_code_0(recorded: Recorded) -> None:
    weight, _ = recorded.inputs["random"]
    levels, clip_sigmas = levels_of(recorded.json["sdclip"]["bits"]), recorded.json["sdclip"]["clip_sigmas"]
    codes = recorded.gptq("random", choose_scale(weight, clip_sigmas=clip_sigmas, levels=levels), levels)
    assert not codes[recorded.json["zero_row"]].any()
    assert not codes[:, recorded.json["dead_columns"]].any()


def test_gate_rows_are_exact(recorded: Recorded) -> None:
    scale = absmax_scale(recorded.gate, levels=127)
    assert torch.equal(scale, recorded.tensors["gate::scale"])
    assert torch.equal(quantize(recorded.gate, scale, 127), recorded.tensors["gate::q"])


def lqer_error(recorded: Recorded) -> Tensor:
    return recorded.lqer_weight - dequantize(recorded.tensors["lqer::q"], recorded.tensors["lqer::scale"])


def assert_factor(found: QuantizedTensor, recorded: Recorded, form: str, factor: str) -> None:
    codes, scale = (recorded.tensors[f"lqer::{form}.{kind}{factor}"] for kind in ("q", "s"))
    assert torch.equal(found.codes.flatten(), codes.flatten()), (form, factor)
    assert torch.equal(found.scale, scale.reshape(found.scale.shape)), (form, factor)


def test_the_matrix_that_is_corrected_is_rounded_as_recorded(recorded: Recorded, fixtures: Path) -> None:
    settings, constants = recorded.json["lqer"], recorded.json["constants"]
    levels = levels_of(settings["bits"])
    scale = choose_scale(
        recorded.lqer_weight, clip_sigmas=settings["clip_sigmas"], levels=levels, floor=REFERENCE_FLOOR
    )
    hessian = hessian_of(fixtures, settings["weight"])
    assert torch.equal(scale, recorded.tensors["lqer::scale"])
    codes = gptq(recorded.lqer_weight, hessian, scale, levels=levels, damping=constants["damp"])
    mismatch = float((codes != recorded.tensors["lqer::q"]).float().mean())
    assert mismatch <= recorded.json["tolerances"]["codes_mismatch_fraction"]


def test_the_factors_of_the_error_are_the_recorded_ones_up_to_sign(recorded: Recorded) -> None:
    rtol = float(recorded.json["tolerances"]["lqer_A_B"].split()[0])
    left, right = low_rank_factors(lqer_error(recorded), recorded.json["lqer"]["rank"])
    for found, name, axis in ((left, "A", 0), (right, "B", 1)):
        expected = recorded.tensors[f"lqer::{name}"]
        sign = (found * expected).sum(axis, keepdim=True).sign()
        assert float((found * sign - expected).norm() / expected.norm()) <= rtol, name


def test_the_columns_of_the_left_factor_have_the_recorded_singular_values_as_norms(recorded: Recorded) -> None:
    values = recorded.tensors["lqer::singular_values"]
    left, _ = low_rank_factors(lqer_error(recorded), len(values))
    torch.testing.assert_close(left.norm(dim=0), values, rtol=1e-4, atol=1e-4 * float(values[0]))


def test_asymmetric_factors_are_packed_as_recorded(recorded: Recorded) -> None:
    left, right = recorded.tensors["lqer::A"], recorded.tensors["lqer::B"]
    pair = Correction(
        pack_asymmetric(left.view(1, -1), 2), pack_asymmetric(right.view(-1, recorded.json["lqer"]["asym_group"]), 4)
    )
    assert_factor(pair.left, recorded, "asym", "A")
    assert_factor(pair.right, recorded, "asym", "B")
    expected = recorded.tensors["lqer::asym.correction"]
    torch.testing.assert_close(pair.expand(tuple(expected.shape)), expected, rtol=1e-6, atol=1e-7)


def test_symmetric_factors_are_packed_as_recorded(recorded: Recorded) -> None:
    assert_factor(pack_symmetric(recorded.tensors["lqer::A"], 4), recorded, "sym", "A")
    assert_factor(pack_symmetric(recorded.tensors["lqer::B"], 4), recorded, "sym", "B")
