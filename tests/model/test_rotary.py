"""Rotary tables by value, the rotation by its formula, and what the rotation is for: relative positions."""

import math
from typing import Literal

import pytest
import torch

from golf.errors import UsageError
from golf.kernels.turn_heads import rotate
from golf.model.rotary import rotary_table
from golf.part_config import RopeConfig, RopeScalingConfig

CPU = torch.device("cpu")
# rotated dims 16, base 10000: exact frequencies and those that bfloat16 rounding leaves
EXACT = [10_000 ** (-j / 8) for j in range(8)]
ROUNDED = [
    1.0,
    0.31640625,
    0.10009765625,
    0.03173828125,
    0.010009765625,
    0.0031585693359375,
    0.00099945068359375,
    0.000316619873046875,
]


def frequencies(config: RopeConfig) -> list[float]:
    """The angles of position 1, all below pi."""
    cos, sin = rotary_table(config, 2, CPU)
    angles: list[float] = torch.atan2(sin[1, 0].double(), cos[1, 0].double()).tolist()
    return angles


def test_the_frequencies_are_powers_of_the_base() -> None:
    assert frequencies(RopeConfig(dims=16)) == pytest.approx(EXACT, rel=1e-6)


def test_bfloat16_rounding_gives_the_published_frequencies() -> None:
    assert frequencies(RopeConfig(dims=16, round_to_bfloat16=True)) == pytest.approx(ROUNDED, rel=1e-7)


@pytest.mark.parametrize("position", [0, 1, 422])
def test_tables_hold_cosine_and_sine_of_position_times_frequency(position: int) -> None:
    cos, sin = rotary_table(RopeConfig(dims=6, base=100.0), 423, CPU)
    angles = [position * 100.0 ** (-2 * j / 6) for j in range(3)]
    assert cos.shape == (423, 1, 3)
    assert cos[position, 0].tolist() == pytest.approx([math.cos(angle) for angle in angles], abs=5e-5)
    assert sin[position, 0].tolist() == pytest.approx([math.sin(angle) for angle in angles], abs=5e-5)


def test_channel_j_turns_with_channel_j_plus_half() -> None:
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_table(RopeConfig(dims=4), 5, CPU)
    expected = x.clone()
    for t in range(5):
        for j in range(2):
            c, s, u, w = cos[t, 0, j], sin[t, 0, j], x[:, t, :, j], x[:, t, :, j + 2]
            expected[:, t, :, j], expected[:, t, :, j + 2] = u * c + w * s, -u * s + w * c
    torch.testing.assert_close(rotate(x, cos, sin), expected)


def test_channels_beyond_the_rotated_ones_pass_untouched() -> None:
    x = torch.randn(1, 5, 2, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, *rotary_table(RopeConfig(dims=4), 5, CPU))[..., 4:], x[..., 4:])


def test_position_0_is_not_rotated() -> None:
    x = torch.randn(1, 1, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, *rotary_table(RopeConfig(dims=8), 1, CPU)), x)


def test_products_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=generator).expand(1, 40, 1, 8) for _ in range(2))
    tables = rotary_table(RopeConfig(dims=6), 40, CPU)
    scores = (rotate(q, *tables)[0, :, 0] @ rotate(k, *tables)[0, :, 0].T).double()  # (query, key)
    for distance in (1, 7, 30):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert float(scores[7, 0]) != pytest.approx(float(scores[8, 0]), abs=1e-2)


def test_a_rotation_keeps_lengths() -> None:
    x = torch.randn(1, 40, 2, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, *rotary_table(RopeConfig(dims=8), 40, CPU)).norm(dim=-1), x.norm(dim=-1))


def test_the_channels_must_be_even_in_number() -> None:
    with pytest.raises(UsageError, match=r"model\.rope\.dims"):
        RopeConfig(dims=3)


def scaled(method: Literal["ntk", "yarn"], dims: int = 16) -> RopeConfig:
    return RopeConfig(dims=dims, scaling=RopeScalingConfig(method=method, trained_len=1024, length=2048))


@pytest.mark.parametrize(("dims", "base"), [(16, 22_081.8), (64, 20_452.2)])
def test_ntk_scaling_doubles_the_length_of_the_slowest_wave(dims: int, base: float) -> None:
    expected = [base ** (-2 * j / dims) for j in range(dims // 2)]
    assert frequencies(scaled("ntk", dims)) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] == pytest.approx(10_000 ** (-(dims - 2) / dims) / 2, rel=1e-5)


def test_yarn_keeps_fast_waves_halves_slow_ones_and_blends_between() -> None:
    found = frequencies(scaled("yarn"))
    for frequency, plain in zip(found, EXACT, strict=True):
        turns = 1024 * plain / (2 * math.pi)
        kept = min(max((turns - 1) / 31, 0.0), 1.0)
        assert frequency == pytest.approx(kept * plain + (1 - kept) * plain / 2, rel=1e-5)
    assert found[0] == pytest.approx(EXACT[0])
    assert found[-1] == pytest.approx(EXACT[-1] / 2, rel=1e-5)
    assert EXACT[2] / 2 < found[2] < EXACT[2]


def test_scaling_to_a_shorter_length_is_refused() -> None:
    with pytest.raises(UsageError, match="trained_len < length"):
        RopeScalingConfig(method="ntk", trained_len=2048, length=1024)
