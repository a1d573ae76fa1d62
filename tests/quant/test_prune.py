"""Zeroing codes of one until the file fits."""

import zlib
from collections.abc import Mapping

import pytest
import torch

from golf.artifact.container import pack_bytes, unpack_bytes
from golf.errors import UsageError
from golf.quant.lqer import factor_names
from golf.quant.prune import STEPS, pack_within
from golf.quant.scheme import QuantizedTensor, Stored


def quantized(rows: int, cols: int, *, seed: int, size: float) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(rows, cols, generator=generator).mul(1.5).round().clamp(-3, 3).to(torch.int8)
    scale = (torch.rand(rows, generator=generator) * size + 0.01).half()
    return QuantizedTensor(codes=codes, scale=scale, bits=3, shape=(rows, cols))


def model() -> dict[str, Stored]:
    return {
        "a": quantized(31, 40, seed=0, size=1.0),
        factor_names("a")[0]: quantized(1, 60, seed=2, size=0.01),
        "plain": torch.linspace(-1, 1, 7).half(),
        "b": quantized(20, 33, seed=1, size=0.3),
    }


def pack(stored: Mapping[str, Stored]) -> bytes:
    return pack_bytes(stored, config={}, codec="zlib")


def codes_of(stored: Mapping[str, Stored], name: str) -> torch.Tensor:
    value = stored[name]
    assert isinstance(value, QuantizedTensor)
    return value.codes


def read(data: bytes) -> dict[str, Stored]:
    return unpack_bytes(data).tensors


WHOLE = len(pack(model()))
ONES = sum(int((codes_of(model(), name).abs() == 1).sum()) for name in ("a", "b"))


@pytest.mark.parametrize("limit", [None, WHOLE, WHOLE + 1])
def test_what_fits_is_packed_as_it_is(limit: int | None) -> None:
    assert pack_within(model(), limit, pack) == pack(model())


@pytest.mark.parametrize("saved", [1, 60, 150])
def test_the_file_fits_and_of_all_that_were_tried_it_keeps_the_most_codes(saved: int) -> None:
    tried: dict[bytes, int] = {}

    def counted(stored: Mapping[str, Stored]) -> bytes:
        data = pack(stored)
        tried[data] = sum(int(codes_of(stored, name).count_nonzero()) for name in ("a", "b"))
        return data

    data = pack_within(model(), WHOLE - saved, counted)
    assert len(data) <= WHOLE - saved
    assert tried[data] == max(count for attempt, count in tried.items() if len(attempt) <= WHOLE - saved)
    least_too_many = min(count for attempt, count in tried.items() if len(attempt) > WHOLE - saved)
    assert 0 < least_too_many - tried[data] <= 1 + ONES // STEPS


def test_only_codes_of_one_become_zero() -> None:
    before, after = model(), read(pack_within(model(), WHOLE - 120, pack))
    for name in ("a", "b"):
        changed = codes_of(before, name) != codes_of(after, name)
        assert bool(changed.any())
        assert bool((codes_of(before, name)[changed].abs() == 1).all())
        assert not codes_of(after, name)[changed].any()


def test_factors_and_plain_tensors_are_left_alone() -> None:
    after = read(pack_within(model(), WHOLE - 120, pack))
    name = factor_names("a")[0]
    assert torch.equal(codes_of(after, name), codes_of(model(), name))
    plain = after["plain"]
    assert isinstance(plain, torch.Tensor)
    assert torch.equal(plain, torch.linspace(-1, 1, 7).half())


def test_the_smallest_scales_go_first_over_all_tensors() -> None:
    before, after = model(), read(pack_within(model(), WHOLE - 120, pack))
    zeroed, kept = [], []
    for name in ("a", "b"):
        tensor = before[name]
        assert isinstance(tensor, QuantizedTensor)
        ones = tensor.codes.abs() == 1
        scales = tensor.scale.float()[:, None].expand_as(tensor.codes)
        zeroed.append(scales[ones & (codes_of(after, name) == 0)])
        kept.append(scales[ones & (codes_of(after, name) != 0)])
    assert float(torch.cat(zeroed).max()) <= float(torch.cat(kept).min())


def test_with_all_candidates_zeroed_no_one_is_left() -> None:
    bare = {name: value for name, value in model().items() if name in ("a", "b")}
    smallest = len(pack_within_all(bare))
    data = pack_within(bare, smallest, pack)
    assert len(data) == smallest


def pack_within_all(stored: dict[str, Stored]) -> bytes:
    cleared: dict[str, Stored] = {}
    for name, value in stored.items():
        assert isinstance(value, QuantizedTensor)
        codes = torch.where(value.codes.abs() == 1, 0, value.codes).to(torch.int8)
        cleared[name] = QuantizedTensor(codes=codes, scale=value.scale, bits=3, shape=value.shape)
    return pack(cleared)


def test_the_same_model_gives_the_same_bytes() -> None:
    assert pack_within(model(), WHOLE - 150, pack) == pack_within(model(), WHOLE - 150, pack)


def test_a_limit_out_of_reach_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"prune_to_bytes is 300.*every code of 1 or -1 zeroed"):
        pack_within(model(), 300, pack)


def test_a_model_without_matrices_out_of_reach_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="zeroed"):
        pack_within({"plain": torch.rand(500)}, 100, lambda stored: zlib.compress(pack(stored)))


def test_a_share_is_a_power_of_two_so_that_bisection_ends_in_ten_steps() -> None:
    assert STEPS == 2**10
