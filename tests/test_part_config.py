"""Parts of the model that contradict themselves or the rest are refused, in words."""

import pytest

from golf.errors import UsageError
from tests.pico import pico_recipe

NO_EXTRAS = ("model.loop=false", "schedule.loop_at=false", "model.xsa_last_n=0", "model.value_embedding=false")
ONE_LAYER = ("model.num_layers=1", *NO_EXTRAS)
NO_LOOP = ("model.loop=false", "schedule.loop_at=false")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model.smear.form=blend",), r"window belongs to the additive form.*; set model\.smear\.window=false"),
        (("model.smear=false", "model.smear={form='additive'}"), r"model\.smear\.window is missing"),
        (("model.share.start=0", "model.share.end=1", "model.share.loops=2"), "keep one"),
        ((*NO_LOOP, "model.share.start=0", "model.share.end=1", "model.share.loops=1"), "at least 2"),
        ((*NO_LOOP, "model.share.start=0", "model.share.end=4", "model.share.loops=2"), "below model.num_layers"),
        (("model.parallel_start=4",), "below model.num_layers"),
        (("model.parallel_start=2", "model.lanes.start=3"), "keep one"),
        (("model.attention_gate.window=33",), "at most model.model_dim"),
        (("model.attention_gate.init_std=-0.1",), "at least 0"),
        (("model.carry={beta=[1.0,1.0],alpha=[[0.0,0.0],[0.0,0.0]],learn=true,round_to_bfloat16=true}",), "frozen"),
        (("model.mlp_widths=[1.0]",), "one factor for each"),
        (("model.mlp_widths=[1.0,1.0,0.0,1.0]",), r"model\.mlp_widths leaves the MLP no hidden channel"),
        (("model.mlp_widths=[1.0,1.0,1e308,1.0]",), r"model\.mlp_widths gives the MLP more than 65,536"),
        (("model.mlp_widths=[1.0,1.0,1.0,1.0]", "model.mlp_mult=0.01"), r"model\.mlp_mult leaves the MLP no hidden"),
        (("model.mlp_widths=[1.0,1.0,1.0,1.0]", "model.mlp_mult=1e308"), r"model\.mlp_mult gives the MLP more than"),
        (("model.activation=swiglu", "model.negative_slope=0.0"), "negative_slope does nothing with .* 'swiglu'"),
        (("model.activation=relu_square_gated", "model.negative_slope=0.0"), "negative_slope does nothing"),
        (("model.loop.extra_passes=511",), r"model\.loop\.extra_passes makes more than 1,024 visits"),
        ((*NO_LOOP, "model.share={start=0,end=3,loops=257}"), r"model\.share\.loops makes more than 1,024 visits"),
        (ONE_LAYER, r"model\.skips needs two visits"),
        (("model.logit_softcap=0.0",), "must be at least 0.001, or false"),
        (("model.value_embedding.layers=[4]",), r"model\.value_embedding\.layers must name layers from 0 to 3"),
        (("model.value_embedding.layers=[2,2]",), "each of them once"),
        (("model.ternary.group=7",), "must divide"),
        (("model.ternary.group=8", "model.mlp_rank=3"), "mlp_rank = 0"),
        (("model.multi_token={heads=0,weight=0.2}",), "between 1 and 16"),
        (("model.multi_token={heads=17,weight=0.2}",), "between 1 and 16"),
        (
            ("model.multi_token={heads=8,weight=0.2}", "data.batch_tokens=64"),
            "heads must be below the 8 tokens of a row",
        ),
        (
            ("model.multi_token={heads=4,weight=0.2}", "data.loader=sequential", "data.seq_len=4"),
            "heads must be below the 4 tokens of a row",
        ),
        (("model.multi_token={heads=1,weight=0.0}",), "positive"),
        ((*ONE_LAYER, "model.skips=false", "model.value_residual.form=mix"), "second layer"),
        (("model.rope={dims=2,scaling={method='ntk',trained_len=4,length=8}}",), "at least 4"),
        (("model.value_residual.form=other",), "must be one of 'mix', 'add', 'input'"),
    ],
)
def test_a_contradiction_is_refused(overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        pico_recipe(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.loop.extra_passes=510",),  # 4 + 2 * 510 visits
        (*NO_LOOP, "model.share={start=0,end=3,loops=256}"),
        (*NO_EXTRAS, "model.num_layers=2"),
        (*NO_EXTRAS, "model.num_layers=1", "model.share={start=0,end=0,loops=2}"),
        ("model.multi_token={heads=7,weight=0.2}", "data.batch_tokens=64"),
        ("model.mlp_mult=0.01", "model.mlp_widths=[4.0,4.0,4.0,4.0]"),
        ("model.logit_softcap=0.001",),
        ("model.smear.form=blend", "model.smear.window=false"),
    ],
)
def test_what_just_works_is_accepted(overrides: tuple[str, ...]) -> None:
    pico_recipe(*overrides)
