"""Codes and scales of the recorded GPTQ runs; the low-rank (lqer::) keys await `golf.quant.lqer`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.quant.gptq import damped_diagonal, gptq
from golf.quant.primitives import absmax_scale, levels_of, quantize
from golf.quant.sdclip import choose_scale
from tests.parity.unbank import from_upper_triangle, hessian_of, read_fixture, unbanked_weights

REFERENCE_FLOOR = 1e-10


class Recorded:
    """The fixture with its inputs put together."""

    def __init__(self, folder: Path) -> None:
        self.json, self.tensors = read_fixture(folder, "gptq")
        weights = unbanked_weights(folder)
        self.inputs = {
            "random": (self.tensors["in::random.weight"], from_upper_triangle(self.tensors["in::random.H_triu"]))
        }
        for key, name in self.json["weights"].items():
            self.inputs[key] = weights[name], hessian_of(folder, name)
        self.gate = weights[self.json["gate_weight"]]

    def cases(self, pattern: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the key stem and the groups of `pattern` for every recorded code tensor that it matches."""
        found = [(key[:-2], match.groups()) for key in self.tensors if (match := re.fullmatch(pattern + r"\.q", key))]
        assert found
        yield from found

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
    for stem, (key, clip_sigmas, bits) in recorded.cases(r"out::(\w+)\.clip([\d.]+)\.int(\d)"):
        (weight, hessian), levels = recorded.inputs[key], levels_of(int(bits))
        scale = choose_scale(weight, clip_sigmas=float(clip_sigmas), levels=levels, floor=REFERENCE_FLOOR)
        recorded.assert_scale(scale, stem)
        recorded.assert_codes(gptq(weight, hessian, scale, levels=levels), stem)


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
        recorded.assert_codes(gptq(weight, hessian, scale, levels=levels), stem)


def test_the_zero_row_and_the_dead_columns_have_code_0(recorded: Recorded) -> None:
    weight, hessian = recorded.inputs["random"]
    codes = gptq(weight, hessian, choose_scale(weight, clip_sigmas=12.85, levels=31), levels=31)
    assert not codes[recorded.json["zero_row"]].any()
    assert not codes[:, recorded.json["dead_columns"]].any()


def test_gate_rows_are_exact(recorded: Recorded) -> None:
    scale = absmax_scale(recorded.gate, levels=127)
    assert torch.equal(scale, recorded.tensors["gate::scale"])
    assert torch.equal(quantize(recorded.gate, scale, 127), recorded.tensors["gate::q"])
