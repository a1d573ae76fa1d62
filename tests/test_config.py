"""Which contradictions a recipe refuses, and what its digest covers."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from golf.config import Recipe
from golf.data.loader import Loader
from golf.errors import UsageError
from golf.recipe import load_recipe, recipe_from_dict
from tests.pico import RECORD_PARTS, pico_recipe, pico_values

NO_WARMDOWN = ("schedule.warmdown_fraction=0", "schedule.late_qat_below=0")
SGD = "{lr=0.1}"
LORA = "{rank=2, alpha=2.0, weight_decay=0.0, beta2=0.9, warm_start_a=true}"
PHASED = f"ttt={{lora={LORA}, phases={{count=1, prefix_documents=1, sgd={SGD}}}}}"
CONTRADICTIONS: list[tuple[str, list[Any]]] = [
    ("model.rope.dims", [0, -2, 3]),
    ("model.rope.dims", [10]),  # a head has 8 channels
    ("model.loop.start", [-1, 3]),  # the end is 2
    ("model.loop.extra_passes", [0]),
    ("model.loop.end", [4]),  # four layers
    ("model.model_dim", [30, 16_388]),
    ("model.num_kv_heads", [3]),
    ("model.num_heads", [0, -4]),
    ("model.num_kv_heads", [0]),
    ("model.num_layers", [0, 257, 10**12]),
    ("model.loop.extra_passes", [10**12]),
    ("model.loop.mlp_lora_rank", [-1, 16_385]),
    ("model.vocab_size", [0, 65_537]),
    ("model.mlp_mult", [0.0, 0.01, -1.0, 2049.0, 1e308]),
    ("model.mlp_rank", [-1, 16_385]),
    ("model.negative_slope", [-10.5, 10.5]),
    ("model.embed_init_std", [-0.01]),
    ("model.rope.base", [-1e4, 0.0, 1.0]),
    ("model.logit_softcap", [0.0, -30.0, 1e-4]),
    ("model.xsa_last_n", [-1, 5]),
    ("model.bos_id", [-1, 61]),
    ("model.smear.window", [0, 33]),
    ("model.bigram.buckets", [1, 2**24 + 1]),
    ("model.bigram.dim", [0, 16_385]),
    ("model.value_embedding.layers", [[], [4], [-1], [3, 3]]),
    ("model.value_embedding.dim", [0, 16_385]),
    ("data.batch_tokens", [0, 252]),
    ("data.seq_len", [0]),
    ("optim.newton_schulz_steps", [0, 6]),  # Polar Express has five
    ("optim.momentum_warmup_steps", [-1, 0]),  # it starts lower
    ("optim.momentum", [-0.1, 1.0]),
    ("optim.momentum_start", [-0.1, 1.0]),
    *((f"optim.{name}_lr", [-0.01]) for name in ("matrix", "embed", "scalar")),
    *((f"optim.{name}_weight_decay", [-0.01]) for name in ("matrix", "embed", "scalar")),
    ("optim.beta1", [-0.1, 1.0]),
    ("optim.beta2", [-0.1, 1.0]),
    ("optim.adam_eps", [0.0, -1e-8]),
    ("schedule.iterations", [0]),
    ("schedule.warmdown_fraction", [-0.1, 1.1]),
    ("schedule.loop_at", [-0.1, 1.1]),
    ("schedule.min_lr", [-0.1, 1.1]),
    ("schedule.reserve_seconds", [1.0]),  # there is no clock
    ("schedule.max_seconds", [-1.0, 0.9, 1e-300]),
    ("schedule.late_qat_below", [-0.1, 1.1]),
    ("average.ema_decay", [-0.1, 1.0]),
    ("average.ema_decay", [0.0]),  # use is "ema"
    ("average.shadows", [[]]),  # there are snapshots
    ("average.shadows", [[0.0], [0.1, 0.3], [0.1, 0.1]]),
    ("average.swa_every", [-1, 0]),  # swa_below is not the default
    ("average.swa_below", [0.0, -0.1, 1.1]),
    ("average.shadow_snapshots", [-1]),
    ("quant.matrix_bits", [1, 9]),
    ("quant.embed_bits", [1, 9]),
    *((f"quant.{name}_clip_sigmas", [-0.1]) for name in ("attn", "mlp", "matrix", "embed")),
    ("quant.hessian_lambda", [-0.1, 1.0]),
    ("quant.calibration_batches", [0]),
    ("quant.calibration_windows", [0]),
    ("eval.batch_tokens", [0, 40]),
    ("eval.seq_len", [0]),
    ("run.log_every", [0]),
    ("run.cpu_threads", [-1, 1025]),
    ("run.rows_per_micro_batch", [-1]),
    ("run.checkpoints", [["half"], ["frac_"], ["step_x"], ["frac_0"], ["frac_101"], ["step_0"], ["step_²"]]),
]


def with_value(values: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Set one key of nested values."""
    *path, key = dotted.split(".")
    table = values
    for name in path:
        table = table[name]
    table[key] = value
    return values


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in CONTRADICTIONS for value in values], ids=lambda item: str(item)
)
def test_a_value_that_cannot_work_is_refused_by_name(key: str, value: Any) -> None:
    table, name = key.rsplit(".", 1)
    with pytest.raises(UsageError) as refused:
        recipe_from_dict(with_value(pico_values(), key, value))
    assert table.split(".")[0] in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["schedule.loop_at=false"], "loop_at"),
        (["model.loop=false"], "loop_at"),
        (["schedule.warmdown_fraction=0.0"], "late_qat_below"),
        (["schedule.warmdown_fraction=0.0", "schedule.late_qat_below=0", "schedule.min_lr=0.1"], "min_lr"),
        (["schedule.max_seconds=10", "schedule.reserve_seconds=10"], "reserve_seconds"),
        (["average.use=raw", "average.ema_decay=0"], "swa_of"),
        (
            ["schedule.max_seconds=10", "schedule.reserve_seconds=9.5"],
            "at least 1 second longer than .*reserve_seconds",
        ),
        (["average.use=swa", "average.swa_every=0", "average.swa_below=0.2"], "swa_every"),
        (["average.use=swa", *NO_WARMDOWN], "gets no snapshot without a warmdown"),
        (["average.use=swa", "schedule.min_lr=0.5"], r"to a schedule\.min_lr below average\.swa_below"),
        (["model.tie_embeddings=false", "optim.head_lr=-0.01"], r"optim\.head_lr must be at least 0"),
        (["optim.momentum_warmup_steps=0"], r"optim\.momentum_start must be optim\.momentum while"),
        ([f"ttt.sgd={SGD[:-1]}, epochs=0}}"], r"^ttt\.sgd\.epochs must be"),
        ([f"ttt.sgd={SGD[:-1]}, momentum=1.0}}"], r"^ttt\.sgd\.momentum must be"),
        (["ttt.sgd={lr=-0.1}"], r"^ttt\.sgd\.lr must be"),
        ([PHASED, "ttt.phases.sgd.chunk_tokens=0"], r"^ttt\.phases\.sgd\.chunk_tokens must be"),
        ([PHASED, "ttt.lora.lr=-1"], r"^ttt\.lora\.lr must be"),
        ([PHASED, "ttt.lora.weight_decay=-1"], r"^ttt\.lora\.weight_decay must be"),
        ([PHASED, "ttt.lora.beta1=1"], r"^ttt\.lora\.beta1 must be"),
        ([PHASED, "ttt.lora.beta2=1"], r"^ttt\.lora\.beta2 must be"),
        (["model.carry.beta=[1.0]", "model.carry.alpha=[[0.5]]"], "one beta for each of the 2 looped layers"),
        (["model.carry.beta=[1.0,1.0]", "model.carry.alpha=[[0.5,0.5]]"], "a square"),
        (["model.lanes.start=2"], r"from 3, behind the loop"),
        (["model.lanes.start=4"], "below model.num_layers"),
        (["model.attention_gate.window=33"], "at most model.model_dim"),
        (["model.attention_gate.window=0"], "must be positive"),
    ],
)
def test_two_values_that_contradict_each_other_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        pico_recipe(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.matrix_lr=0", "optim.embed_lr=0", "optim.scalar_lr=0"],  # frozen
        ["optim.momentum_warmup_steps=0", "optim.momentum_start=0.95"],
        ["average.swa_every=0", "average.swa_below=0.2"],
        ["average.shadow_snapshots=20"],
        ["schedule.max_seconds=10", "schedule.reserve_seconds=9"],
        ["run.cpu_threads=1024", "schedule.late_qat_below=1", "average.use=swa", "average.swa_below=1"],
        [PHASED],
    ],
)
def test_values_at_the_edge_of_what_works_are_accepted(overrides: list[str]) -> None:
    pico_recipe(*overrides)


class NoStream:
    """A stream without a token."""

    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed

    def read(self, segment: int) -> Any:
        raise NotImplementedError

    def place(self, segment: int) -> dict[str, int]:
        return {}


def test_rows_that_no_rank_can_share_out_are_refused_by_the_recipes_name() -> None:
    with pytest.raises(UsageError, match=r"^run\.rows_per_micro_batch is 3; it must divide this rank's 8 rows"):
        Loader(NoStream(), bos_id=1, max_doc_len=4, rank=0, world_size=1, rows_per_micro_batch=3)


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the dotted name, the owning dataclass and the field of every value that is no table."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            yield from leaves(item, f"{where}{field.name}.")
        elif item is not None:  # a part that is off
            yield f"{where}{field.name}", value, field.name


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else (*value, 9)


def test_the_digest_covers_every_value_but_the_two_texts() -> None:
    recipe = pico_recipe("run.checkpoints=['step_3']")
    names = [name for name, _, _ in leaves(recipe)]
    unmoved = []
    for name in names:
        other = copy.deepcopy(recipe)
        owner, field = next((owner, field) for leaf, owner, field in leaves(other) if leaf == name)
        object.__setattr__(owner, field, changed(getattr(owner, field)))  # a value only: what it means is not checked
        if other.digest == recipe.digest:
            unmoved.append(name)
    assert unmoved == ["name", "description"]
    assert len(names) > 60


def test_a_key_left_at_its_default_is_not_in_the_digest() -> None:
    written_out = pico_recipe("model.negative_slope=0.5", "optim.newton_schulz_steps=5", "compat.clip=global")
    assert written_out.digest == pico_recipe().digest


@pytest.mark.parametrize("name", ["q_gain_init", "logit_softcap"])
def test_what_is_on_by_default_and_switched_off_stays_off(name: str) -> None:
    off = pico_recipe(f"model.{name}=false")
    assert getattr(recipe_from_dict(off.to_dict()).model, name) is None
    assert off.digest != pico_recipe().digest


@pytest.mark.parametrize("part", ["skips", "bigram", "smear", "value_embedding", "carry", "lanes", "attention_gate"])
def test_the_digest_covers_which_parts_are_on(part: str) -> None:
    assert pico_recipe(*RECORD_PARTS, f"model.{part}=false").digest != pico_recipe(*RECORD_PARTS).digest


def test_a_recipe_survives_the_way_through_plain_values() -> None:
    for recipe in (pico_recipe(), load_recipe("demo"), pico_recipe("model.bigram=false", "run.checkpoints=['frac_9']")):
        assert recipe_from_dict(recipe.to_dict()) == recipe


def test_plain_values_hold_every_default_and_no_part_that_is_off() -> None:
    values = pico_recipe("model.smear=false").to_dict()
    assert values["optim"]["adam_eps"] == 1e-8
    assert "smear" not in values["model"]


def test_a_recipe_cannot_be_changed() -> None:
    recipe: Recipe = pico_recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.run.seed = 2  # type: ignore[misc]  # that it is refused is the point
