"""The shipped recipes hold the published values: the table of the records, written out a second time."""

from typing import Any

import pytest

from golf.recipe import load_recipe, recipe_names
from golf.recipe_report import flat_values

NAMES = ("baseline", "pr401", "pr1493", "pr1787", "pr1801", "pr1855")
SP8192 = "fineweb10B_sp8192"
CASEOPS = f"{SP8192}_lossless_caps_caseops_v1_reserved"
BETA, ALPHA = [1.56, 1.85, 2.13], [[0.23, 0.04, 0.03], [0.13, -0.34, 0.01], [0.06, 0.19, -0.02]]
OFF = None

# key: a value a recipe, or one for all; the rows that the records share after a column are written out.
TABLE: dict[str, Any] = {
    "data.dataset": ("fineweb10B_sp1024", "fineweb10B_sp1024", SP8192, CASEOPS, CASEOPS, CASEOPS),
    "model.vocab_size": (1024, 1024, 8192, 8192, 8192, 8192),
    "model.num_layers": (9, 11, 11, 11, 11, 11),
    "model.model_dim": 512,
    "model.num_heads": 8,
    "model.num_kv_heads": 4,
    "model.mlp_mult": (2.0, 3.0, 4.0, 4.0, 4.0, 4.0),
    "model.activation": "leaky_relu_square",
    "model.negative_slope": (0.0, 0.0, 0.5, 0.5, 0.5, 0.5),
    "model.xsa_last_n": (0, 4, 11, 11, 11, 11),
    "model.rope.dims": (64, 16, 16, 16, 16, 16),
    "model.rope.base": 1e4,
    "model.rope.scaling.method": (OFF, "ntk", OFF, OFF, OFF, OFF),
    "model.rope.scaling.trained_len": (OFF, 1024, OFF, OFF, OFF, OFF),
    "model.rope.scaling.length": (OFF, 2048, OFF, OFF, OFF, OFF),
    "model.rope.round_to_bfloat16": (False, False, True, True, True, True),
    "model.ln_scale": (False, True, True, True, True, True),
    "model.q_gain_init": (1.5, 1.5, 5.25, 5.0, 5.0, 5.0),
    "model.skips.gated": (False, False, True, True, True, True),
    "model.loop.start": (OFF, OFF, 3, 3, 3, 3),
    "model.loop.end": (OFF, OFF, 5, 5, 5, 5),
    "model.loop.extra_passes": (OFF, OFF, 2, 2, 2, 2),
    "schedule.loop_at": (OFF, OFF, 0.35, 0.35, 0.35, 0.35),
    "model.carry.beta": (OFF, OFF, OFF, OFF, BETA, OFF),
    "model.carry.alpha": (OFF, OFF, OFF, OFF, ALPHA, OFF),
    "model.carry.learn": (OFF, OFF, OFF, OFF, False, OFF),
    "model.carry.round_to_bfloat16": (OFF, OFF, OFF, OFF, True, OFF),
    "model.parallel_start": (OFF, OFF, 7, OFF, OFF, OFF),
    "model.lanes.start": (OFF, OFF, OFF, 8, 8, 8),
    "model.lanes.final": (OFF, OFF, OFF, "mean", "mean", "mean"),
    "model.attention_gate.window": (OFF, OFF, OFF, 12, 12, 12),
    "model.attention_gate.init_std": (OFF, OFF, OFF, 0.0, 0.0, 0.0),
    "model.attention_gate.scale": (OFF, OFF, OFF, 1.0, 1.0, 0.5),
    "model.smear.form": (OFF, "blend", OFF, OFF, OFF, "additive"),
    "model.smear.window": (OFF, OFF, OFF, OFF, OFF, 12),
    "model.bigram.buckets": (OFF, 2048, OFF, OFF, OFF, OFF),
    "model.bigram.dim": (OFF, 128, OFF, OFF, OFF, OFF),
    "model.value_embedding.dim": (OFF, 128, OFF, OFF, OFF, OFF),
    "model.value_embedding.layers": (OFF, [9, 10], OFF, OFF, OFF, OFF),
    "model.logit_softcap": 30.0,
    "model.tie_embeddings": True,
    "model.embed_init_std": 0.005,
    "model.init": ("default", *5 * ("orthogonal",)),
    "data.seq_len": (1024, 2048, 2048, 2048, 2048, 2048),
    "eval.seq_len": (1024, 2048, 2048, 2048, 2048, 2048),
    "eval.batch_tokens": 65_536,  # of one rank: 524,288 over eight
    "data.batch_tokens": (524_288, *5 * (786_432,)),
    "data.loader": ("sequential", "sequential", "shuffled", "packed", "packed", "packed"),
    "schedule.iterations": 20_000,
    "schedule.max_seconds": 600.0,
    "schedule.reserve_seconds": (0.0, 0.0, 12.0, 0.5, 0.5, 0.5),
    "run.priming_steps": 3,  # published: 20, of which nothing is left
    "schedule.warmdown_steps": (1200, 3500, 0, 0, 0, 0),
    "schedule.warmdown_fraction": (0.095, 0.52, 0.72, 0.75, 0.75, 0.85),
    "schedule.min_lr": (0.0, 0.0, 0.0, 0.1, 0.1, 0.1),
    "optim.matrix_lr": (0.04, 0.025, 0.022, 0.026, 0.026, 0.026),
    "optim.momentum": (0.95, 0.99, 0.99, 0.97, 0.97, 0.97),
    "optim.momentum_start": (0.85, *5 * (0.92,)),
    "optim.momentum_warmup_steps": (500, *5 * (1500,)),
    "optim.newton_schulz": (*3 * ("classic",), *3 * ("polar_express",)),
    "optim.newton_schulz_steps": 5,
    "optim.nesterov": True,
    "optim.row_normalize": (False, False, True, True, True, True),
    "optim.matrix_weight_decay": (0.0, 0.04, 0.095, 0.095, 0.095, 0.095),
    "optim.scalar_weight_decay": (0.0, 0.04, 0.02, 0.02, 0.02, 0.02),
    "optim.embed_weight_decay": (0.0, 0.04, 0.085, 0.085, 0.085, 0.085),
    "optim.embed_lr": (0.05, 0.035, 0.03, 0.03, 0.03, 0.03),
    "optim.scalar_lr": (0.04, 0.025, 0.02, 0.02, 0.02, 0.02),
    "optim.beta1": 0.9,
    "optim.beta2": (*5 * (0.95,), 0.99),
    "optim.adam_eps": 1e-8,
    "optim.grad_clip_norm": (0.0, *5 * (0.3,)),
    "average.ema_decay": (0.0, 0.997, *4 * (0.9965,)),
    "average.swa_every": (0, 50, 0, 0, 0, 0),
    "average.swa_below": 0.2,
    "average.swa_of": ("raw", "ema", *4 * ("raw",)),
    "average.use": ("raw", "swa", *4 * ("ema",)),
    "schedule.late_qat_below": 0.0,  # of #401 it was compiled away
    "quant.method": ("row_max", "row_max", *4 * ("gptq",)),
    "quant.calibration_batches": (OFF, OFF, 64, 16, 16, 16),
    "quant.damping": (OFF, OFF, *4 * (0.01,)),
    "quant.matrix_bits": (8, *5 * (6,)),
    "quant.embed_bits": (8, 8, 8, 7, 7, 7),
    "quant.matrix_clip_sigmas": (OFF, OFF, *4 * (12.85,)),
    "quant.attn_clip_sigmas": (OFF, OFF, 12.85, 13.0, 13.0, 13.0),
    "quant.mlp_clip_sigmas": (OFF, OFF, 12.85, 12.0, 12.0, 11.5),
    "quant.embed_clip_sigmas": (OFF, OFF, 20.0, 15.0, 15.0, 14.0),
    "quant.lqer.rank": (*5 * (OFF,), 4),
    "quant.lqer.top_k": (*5 * (OFF,), 3),
    "quant.lqer.factor_bits": (*5 * (OFF,), 4),
    "quant.lqer.group": (*5 * (OFF,), 64),
    "quant.float16_below": (65_536, 65_536, 0, 0, 0, 0),  # later ones go by role: their gates are int8
    "quant.scale_floor": ("unit", "unit", *4 * ("none",)),
    "quant.codec": ("zlib", "zstd", *4 * ("brotli",)),
    "eval.sliding_stride": (OFF, 64, 64, OFF, OFF, OFF),
    "ttt.sgd.lr": (OFF, OFF, 0.005, OFF, OFF, OFF),
    "ttt.sgd.momentum": (OFF, OFF, 0.9, OFF, OFF, OFF),
    "ttt.sgd.epochs": (OFF, OFF, 3, OFF, OFF, OFF),
    "ttt.sgd.chunk_tokens": (OFF, OFF, 32_768, OFF, OFF, OFF),
    "ttt.sgd.grad_clip_norm": (OFF, OFF, 1.0, OFF, OFF, OFF),
    "ttt.sgd.cosine": (OFF, OFF, True, OFF, OFF, OFF),
    "ttt.lora.rank": (*3 * (OFF,), 96, 96, 80),
    "ttt.lora.alpha": (*3 * (OFF,), *3 * (144.0,)),
    "ttt.lora.lr": (*3 * (OFF,), *3 * (1e-4,)),
    "ttt.lora.weight_decay": (*3 * (OFF,), 1.0, 1.0, 0.5),
    "ttt.lora.beta1": (*3 * (OFF,), *3 * (0.0,)),
    "ttt.lora.beta2": (*3 * (OFF,), 0.999, 0.999, 0.99),
    "ttt.lora.warm_start_a": (*3 * (OFF,), *3 * (True,)),
    "ttt.lora.batch_documents": (*3 * (OFF,), *3 * (64,)),
    "ttt.lora.chunk_tokens": (*3 * (OFF,), *3 * (48,)),
    "ttt.lora.grad_steps": (*3 * (OFF,), *3 * (1,)),
    "ttt.lora.seq_len": (*3 * (OFF,), *3 * (2048,)),
    "ttt.phases.count": (*3 * (OFF,), *3 * (3,)),
    "ttt.phases.prefix_documents": (*3 * (OFF,), 2000, 2000, 2500),
    "ttt.phases.sgd.lr": (*3 * (OFF,), *3 * (1e-3,)),
    "ttt.phases.sgd.momentum": (*3 * (OFF,), *3 * (0.9,)),
    "ttt.phases.sgd.epochs": (*3 * (OFF,), *3 * (1,)),
    "ttt.phases.sgd.chunk_tokens": (*3 * (OFF,), *3 * (32_768,)),
    "ttt.phases.sgd.batch_rows": (*3 * (OFF,), *3 * (32,)),
    "ttt.phases.sgd.grad_clip_norm": (*3 * (OFF,), *3 * (1.0,)),
    "run.seed": (1337, 1337, 42, 42, 42, 42),
    "run.log_every": (50, 500, 500, 500, 100, 500),
    "run.dtype": "bfloat16",
}


@pytest.mark.parametrize("column", range(len(NAMES)), ids=NAMES)
def test_every_published_value_is_in_the_recipe(column: int) -> None:
    found = flat_values(load_recipe(NAMES[column]))
    wanted = {key: value[column] if isinstance(value, tuple) else value for key, value in TABLE.items()}
    by_quantizer = "quant." if found["quant.method"] != "gptq" else "-"  # a table has keys that its method never reads
    differing = {
        key: (found.get(key), value)
        for key, value in wanted.items()
        if found.get(key) != value and not (value is OFF and key.startswith(by_quantizer))
    }
    assert differing == {}


def test_every_shipped_recipe_is_in_the_table_or_the_demo() -> None:
    assert recipe_names() == sorted((*NAMES, "demo"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_golfs_ways_where_the_scripts_had_defects(name: str) -> None:
    compat = {key: value for key, value in flat_values(load_recipe(name)).items() if key.startswith("compat.")}
    assert compat == {
        "compat.clip": "global",
        "compat.clock": "rank0",
        "compat.loader_group": "virtual",
        "compat.train_loss": "mean",
        "compat.stale_muon_momentum": False,
        "compat.eval_drop_tail": False,
        "compat.eval_logits_bf16": True,
    }
