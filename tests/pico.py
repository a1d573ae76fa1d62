"""The smallest recipe with every part on, a model with no silent path, and a data set to match.

A step takes milliseconds; sizes are odd on purpose wherever the recipe allows it.
"""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golf.config import Recipe
from golf.data.documents import Batch, segment_rows
from golf.data.shards import Dataset, write_shard
from golf.model.gpt import GPT
from golf.model.init import build_model
from golf.recipe import override_recipe, recipe_from_dict

BOS = 1
RECORD_PARTS = (  # overrides that switch on the parts of the record stacks, which the pico recipe lacks
    "model.carry.beta=[1.25,0.75]",
    "model.carry.alpha=[[0.5,-0.25],[0.125,0.375]]",
    "model.lanes.start=3",
    "model.attention_gate.window=5",
    "model.attention_gate.scale=0.75",
)
_VALUES: dict[str, Any] = {
    "name": "pico",
    "description": "Every part, four layers of 32.",
    "model": {
        "vocab_size": 61,
        "num_layers": 4,
        "model_dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_mult": 1.5,
        "rope": {"dims": 4},
        "xsa_last_n": 2,
        "ln_scale": True,
        "q_gain_init": 1.5,
        "logit_softcap": 15.0,
        "embed_init_std": 0.02,
        "skips": {"gated": True},
        "loop": {"start": 1, "end": 2, "extra_passes": 1},
        "bigram": {"buckets": 37, "dim": 8},
        "smear": {"window": 6},
        "value_embedding": {"dim": 8, "layers": [2, 3]},
    },
    "data": {"dataset": "pico", "batch_tokens": 256, "seq_len": 16},
    "optim": {
        "matrix_lr": 0.02,
        "embed_lr": 0.03,
        "scalar_lr": 0.02,
        "momentum": 0.95,
        "momentum_start": 0.85,
        "momentum_warmup_steps": 4,
        "newton_schulz": "polar_express",
        "row_normalize": True,
        "matrix_weight_decay": 0.04,
        "grad_clip_norm": 0.3,
    },
    "schedule": {"iterations": 20, "warmdown_fraction": 0.5, "loop_at": 0.35, "late_qat_below": 0.3},
    "average": {
        "ema_decay": 0.9,
        "swa_every": 2,
        "swa_below": 0.5,
        "swa_of": "ema",
        "shadow_snapshots": 4,
        "use": "ema",
    },
    "quant": {"calibration_batches": 3, "calibration_windows": 4},
    "eval": {"seq_len": 16, "batch_tokens": 64},
    "run": {"seed": 1, "dtype": "float32", "log_every": 1, "cpu_threads": 1},
}


def pico_values() -> dict[str, Any]:
    """The recipe as plain values, free to be changed."""
    return copy.deepcopy(_VALUES)


def pico_recipe(*overrides: str) -> Recipe:
    """The recipe with `table.key=value` overrides."""
    return override_recipe(recipe_from_dict(_VALUES), overrides)


def pico_model(recipe: Recipe | None = None, *, stir: float = 0.2) -> GPT:
    """A float32 model to all of whose weights noise was added, so that no gate, table or projection is silent."""
    recipe = recipe or pico_recipe()
    model = build_model(recipe.model, seed=recipe.run.seed, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=stir)
    return model


def pico_tokens(count: int, *, seed: int) -> npt.NDArray[np.uint16]:
    """Documents of 2 to 30 tokens, each begun by BOS, cut at `count`."""
    choose = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < count:
        tokens += [BOS, *(choose.randrange(2, 61) for _ in range(choose.randrange(1, 30)))]
    return np.array(tokens[:count], dtype=np.uint16)


def pico_batch(rows: int, tokens: int, *, seed: int = 0, max_doc_len: int = 16) -> Batch:
    """Rows of packed documents; the last target of each row is the next row's first token."""
    stream = torch.from_numpy(pico_tokens(rows * tokens + 1, seed=seed).astype(np.int64))
    return batch_of(stream[:-1].view(rows, tokens), stream[1:].view(rows, tokens), max_doc_len=max_doc_len)


def batch_of(tokens: torch.Tensor, targets: torch.Tensor, *, max_doc_len: int = 16) -> Batch:
    """Segment `tokens` (B, T) at documents and every `max_doc_len` tokens."""
    return Batch(tokens, targets, segment_rows(tokens, bos_id=BOS, max_doc_len=max_doc_len), max_doc_len)


def pico_dataset(folder: Path, *, train: tuple[int, ...] = (900, 700), val: int = 301) -> Dataset:
    """Write training shards of `train` tokens each and a validation shard of `val` with its byte sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(train):
        write_shard(folder / f"pico_train_{number:06d}.bin", pico_tokens(count, seed=number))
    tokens = pico_tokens(val, seed=99)
    write_shard(folder / "pico_val_000000.bin", tokens)
    write_shard(folder / "pico_val_bytes_000000.bin", np.where(tokens == BOS, 0, tokens % 5 + 1))
    return Dataset.open(folder)
