"""The stored form of ternary weights: what is read back acts as what was stored."""

from typing import Any

import pytest
import torch

from golf.model.parts.ternary import expand_ternary, ternarize
from golf.quant.ternary import TernaryTensor


def weight(rows: int = 5, cols: int = 12) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) ** 3  # many small, a few large


def stored(group: int = 4, **changes: Any) -> TernaryTensor:
    codes, scale = ternarize(weight(), group)
    return TernaryTensor(**({"codes": codes, "scale": scale} | changes))


@pytest.mark.parametrize("group", [1, 3, 12])
def test_the_weight_read_back_has_the_codes_that_were_stored(group: int) -> None:
    tensor = stored(group)
    assert bool((tensor.codes == 0).any()) or group == 1
    assert torch.equal(ternarize(tensor.dequantize(), group)[0], tensor.codes)


@pytest.mark.parametrize("group", [1, 3, 12])
def test_the_weight_read_back_acts_as_the_stored_product(group: int) -> None:
    tensor = stored(group)
    acting = expand_ternary(*ternarize(tensor.dequantize(), group))
    torch.testing.assert_close(acting, expand_ternary(tensor.codes, tensor.scale), rtol=1e-6, atol=0)


def test_a_scale_that_float16_holds_comes_back_to_the_bit_once_it_is_rounded_again() -> None:
    tensor = stored(12, scale=ternarize(weight(), 12)[1].half())
    assert torch.equal(ternarize(tensor.dequantize(), 12)[1].half(), tensor.scale)


def test_without_the_shrinkage_fix_it_would_act_as_less() -> None:
    tensor = stored(12)
    naive = expand_ternary(tensor.codes, tensor.scale)
    assert float(ternarize(naive, 12)[1].sum()) < 0.95 * float(tensor.scale.sum())


def test_a_group_of_zeros_comes_back_as_zeros() -> None:
    codes, scale = torch.zeros(1, 4, dtype=torch.int8), torch.zeros(1, 2)
    assert TernaryTensor(codes=codes, scale=scale).dequantize().tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": torch.zeros(5, 12)},
        {"codes": torch.full((5, 12), 2, dtype=torch.int8)},
        {"codes": torch.full((5, 12), -2, dtype=torch.int8)},
        {"codes": torch.zeros(4, 12, dtype=torch.int8)},
        {"codes": torch.zeros(5, 13, dtype=torch.int8)},
        {"codes": torch.zeros(60, dtype=torch.int8)},
        {"scale": torch.ones(5, 3).double()},
        {"scale": torch.ones(5)},
        {"scale": torch.ones(5, 0)},
        {"scale": -torch.ones(5, 3)},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ternary|scales"):
        stored(**changes)
