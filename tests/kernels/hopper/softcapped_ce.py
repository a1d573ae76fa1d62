"""The cross-entropy kernels at a record's sizes: rows of 8,192 logits under a cap of 30."""

from typing import Any

from golf.kernels.softcapped_ce import COLUMNS_PER_WARP, WIDEST_BLOCK, _gradient_kernel, _loss_kernel
from tests.kernels.hopper.build import Case

VOCAB = 8192


def _constants(**changes: Any) -> dict[str, Any]:
    return {"VOCAB": VOCAB, "BLOCK": WIDEST_BLOCK, "CAP": 30.0, "ROUNDS": False, "BOUNDED": True} | changes


def _loss_case(name: str, dtype: str, **changes: Any) -> Case:
    constants = _constants(**changes)
    signature = {"logits": f"*{dtype}", "targets": "*i64", "losses": "*fp32", "partition": "*fp32", "stride": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    return Case(name, _loss_kernel, signature, constants, num_warps=WIDEST_BLOCK // COLUMNS_PER_WARP)


def _gradient_case(name: str, dtype: str, **changes: Any) -> Case:
    constants = _constants(**changes)
    signature = {"grad_losses": "*fp32", "logits": f"*{dtype}", "targets": "*i64", "partition": "*fp32"}
    signature |= {"gradient": f"*{dtype}", "grad_stride": "i32", "stride": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    return Case(name, _gradient_kernel, signature, constants, num_warps=WIDEST_BLOCK // COLUMNS_PER_WARP)


CASES = [
    _loss_case("softcapped_ce loss", "bf16"),
    _loss_case("softcapped_ce loss, float32", "fp32"),
    _loss_case("softcapped_ce loss, rounded", "bf16", ROUNDS=True),
    _loss_case("softcapped_ce loss, uncapped, vocabulary of 10,000", "bf16", CAP=None, BOUNDED=False, VOCAB=10_000),
    _loss_case("softcapped_ce loss, high cap", "bf16", CAP=1000.0, BOUNDED=False),
    _gradient_case("softcapped_ce gradient", "bf16"),
    _gradient_case("softcapped_ce gradient, float32", "fp32"),
    _gradient_case("softcapped_ce gradient, rounded", "bf16", ROUNDS=True),
    _gradient_case(
        "softcapped_ce gradient, uncapped, vocabulary of 10,000", "bf16", CAP=None, BOUNDED=False, VOCAB=10_000
    ),
]
