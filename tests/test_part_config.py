"""Parts of the model that contradict themselves or the rest are refused, in words."""

import pytest

from golf.errors import UsageError
from tests.pico import pico_recipe

ONE_LAYER = ("model.num_layers=1", "model.loop=false", "model.xsa_last_n=0", "model.value_embedding=false")
NO_LOOP = ("model.loop=false", "schedule.loop_at=false")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model.smear={form='blend',window=3}",), "window belongs to the additive form"),
        (("model.smear=false", "model.smear={form='additive'}"), "window belongs to the additive form"),
        (("model.share.start=0", "model.share.end=1", "model.share.loops=2"), "keep one"),
        ((*NO_LOOP, "model.share.start=0", "model.share.end=1", "model.share.loops=1"), "at least 2"),
        ((*NO_LOOP, "model.share.start=0", "model.share.end=4", "model.share.loops=2"), "below model.num_layers"),
        (("model.parallel_start=4",), "below model.num_layers"),
        (("model.parallel_start=2", "model.lanes.start=3"), "keep one"),
        (("model.attention_gate.window=33",), "at most model.model_dim"),
        (("model.attention_gate.init_std=-0.1",), "at least 0"),
        (("model.carry={beta=[1.0,1.0],alpha=[[0.0,0.0],[0.0,0.0]],learn=true,round_to_bfloat16=true}",), "frozen"),
        (("model.mlp_widths=[1.0]",), "one factor for each"),
        (("model.mlp_widths=[1.0,1.0,0.0,1.0]",), "no hidden channel"),
        (("model.logit_softcap=0.0",), "must be positive, or false"),
        (("model.ternary.group=7",), "must divide"),
        (("model.ternary.group=8", "model.mlp_rank=3"), "mlp_rank = 0"),
        (("model.multi_token={heads=0,weight=0.2}",), "at least 1"),
        (("model.multi_token={heads=1,weight=0.0}",), "positive"),
        ((*ONE_LAYER, "schedule.loop_at=false", "model.value_residual.form=mix"), "second layer"),
        (("model.rope={dims=2,scaling={method='ntk',trained_len=4,length=8}}",), "at least 4"),
        (("model.value_residual.form=other",), "must be one of 'mix', 'add', 'input'"),
    ],
)
def test_a_contradiction_is_refused(overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        pico_recipe(*overrides)
