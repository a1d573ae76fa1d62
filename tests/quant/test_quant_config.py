"""Options of quantization that contradict each other are refused."""

from typing import Any

import pytest

from golf.errors import UsageError
from golf.quant_config import LqerConfig, QuantConfig


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"attn_proj_bits": 1}, "attn_proj_bits"),
        ({"attn_proj_bits": 9}, "attn_proj_bits"),
        ({"float16_below": -1}, "float16_below"),
        ({"damping": -0.1}, "damping"),
        ({"prune_to_bytes": 0}, "prune_to_bytes"),
        ({"method": "row_max", "hessian_lambda": 0.1}, "hessian_lambda needs"),
        ({"method": "clip_search", "lqer": LqerConfig()}, "lqer"),
    ],
)
def test_what_cannot_act_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        QuantConfig(**values)


@pytest.mark.parametrize("values", [{"rank": 0}, {"top_k": 0}, {"group": -1}, {"factor_bits": 1}, {"factor_bits": 9}])
def test_a_correction_of_nothing_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        LqerConfig(**values)
