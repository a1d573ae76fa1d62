"""The recipe as a frozen value: one dataclass a table. Nothing else configures anything.

The larger tables are in `golf.model_config`, `training_config`, `quant_config` and `ttt_config`. What contradicts
itself is refused where it is declared, what is unknown or of the wrong type by `golf.recipe`, which reads the TOML.
"""

import dataclasses
import hashlib
import re
from typing import Any, Literal

from golf.errors import require, require_between, require_least
from golf.files import canonical_json
from golf.model_config import ModelConfig
from golf.quant_config import QuantConfig
from golf.training_config import AverageConfig, OptimConfig, ScheduleConfig
from golf.ttt_config import TttConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which token stream, and how it is cut."""

    dataset: str  # folder name below the data root
    batch_tokens: int  # tokens of one optimizer step over all ranks, a multiple of 8
    seq_len: int  # tokens of a row; of a piece of a document where documents are packed
    loader: Literal["packed", "sequential", "shuffled", "coprime"] = "packed"  # docs/training.md

    def __post_init__(self) -> None:
        require_least(1, "data", batch_tokens=self.batch_tokens, seq_len=self.seq_len)
        require(self.batch_tokens % 8 == 0, "data.batch_tokens must be a multiple of 8, the number of virtual ranks")
        whole = self.loader == "packed" or self.batch_tokens % (8 * self.seq_len) == 0
        require(whole, "data.batch_tokens must be a multiple of 8 data.seq_len unless data.loader is 'packed'")

    @property
    def row_tokens(self) -> int:
        """Tokens of a row that the model is trained on."""
        return self.batch_tokens // 8 if self.loader == "packed" else self.seq_len


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation: every validation token once, in rows of `batch_tokens`."""

    seq_len: int
    batch_tokens: int
    sliding_stride: int | None = None  # of windows of seq_len, each scoring its last tokens; None: plain rows

    def __post_init__(self) -> None:
        require_least(1, "eval", seq_len=self.seq_len, batch_tokens=self.batch_tokens)
        require(self.batch_tokens % self.seq_len == 0, "eval.batch_tokens must be a multiple of eval.seq_len")
        inside = self.sliding_stride is None or 0 < self.sliding_stride <= self.seq_len
        require(inside, "eval.sliding_stride must be 1 to eval.seq_len")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run is besides its mathematics."""

    seed: int = 1337
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations and of Newton-Schulz
    rows_per_micro_batch: int = 0  # virtual ranks in one forward; 0 = all that a process has
    log_every: int = 10  # steps
    priming_steps: int = 0  # thrown away before the clock starts, with the loop off and as many with it on
    kernels: Literal["auto", "plain"] = "auto"  # of the model; auto: fused ones on a GPU, plain PyTorch elsewhere
    attention: Literal["auto", "fa3", "fa4", "varlen", "padded"] = "auto"  # auto: the first of them that is installed
    compile: Literal["off", "block", "model"] = "off"  # by torch.compile: each block alone, or all of them as one graph
    cuda_graphs: bool = True  # on a GPU: what a batch needs is recorded once and replayed
    cpu_threads: int = 0  # without a GPU: threads of a process, on which the last digits depend; 0 = PyTorch's choice
    checkpoints: tuple[str, ...] = ()  # beside the phase boundaries: "frac_25" (percent) or "step_500"

    def __post_init__(self) -> None:
        require_least(1, "run", log_every=self.log_every)
        require_least(0, "run", priming_steps=self.priming_steps, rows_per_micro_batch=self.rows_per_micro_batch)
        require_between(0, 1024, "run", cpu_threads=self.cpu_threads)
        for name in self.checkpoints:
            valid = re.fullmatch(r"frac_([1-9][0-9]?|100)|step_[1-9][0-9]*", name)
            require(valid is not None, f"run.checkpoints: {name!r} is not frac_N (1 to 100) or step_N (from 1)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CompatConfig:
    """Where the published scripts differ from golf, one switch each; the defaults are golf's ways."""

    clip: Literal["global", "local"] = "global"  # local: each rank clips its own gradient before averaging
    clock: Literal["rank0", "rank"] = "rank0"  # rank: each rank's clock sets its rates, loop and late QAT
    loader_group: Literal["virtual", "world"] = "virtual"  # segments that must fit into a shard together: 8, or a rank
    train_loss: Literal["mean", "rank0"] = "mean"  # rank0: rank 0's own loss is logged too
    stale_muon_momentum: bool = False  # a fresh run starts with Muon's momentum of the priming steps
    eval_drop_tail: bool = False  # also score without each of 8 ranks' incomplete last batch
    eval_logits_bf16: bool = True  # evaluation rounds soft-capped logits to the activations' dtype


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that defines a run; equal recipes on equal data give equal runs."""

    name: str
    description: str
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    average: AverageConfig
    quant: QuantConfig
    eval: EvalConfig
    run: RunConfig
    ttt: TttConfig | None = None
    compat: CompatConfig = CompatConfig()

    def __post_init__(self) -> None:
        has_loop, has_switch = self.model.loop is not None, self.schedule.loop_at is not None
        require(not has_switch or has_loop, "schedule.loop_at does nothing without [model.loop]")
        require(not has_loop or has_switch, "[model.loop] never runs without schedule.loop_at")
        twice = self.model.ternary is not None and self.schedule.late_qat_below > 0
        require(not twice, "schedule.late_qat_below would round what [model.ternary] already rounds; keep one")
        has_head, has_rate = not self.model.tie_embeddings, self.optim.head_lr is not None
        require(has_rate or not has_head, "model.tie_embeddings = false needs optim.head_lr (0.008 as published)")
        require(has_head or not has_rate, "optim.head_lr acts on nothing while model.tie_embeddings is true")
        row, ahead = self.data.row_tokens, self.model.multi_token
        require(not ahead or ahead.heads < row, f"model.multi_token.heads must be below the {row} tokens of a row")
        self._check_average()
        self._check_compat()

    def _check_average(self) -> None:
        average, schedule = self.average, self.schedule
        falls = schedule.has_warmdown and schedule.min_lr < average.swa_below
        never = "average.use 'swa' gets no snapshot without a warmdown to a schedule.min_lr below average.swa_below"
        require(average.use != "swa" or falls, never)

    def _check_compat(self) -> None:
        compat, alone = self.compat, "does nothing without"
        clips, clocked = self.optim.grad_clip_norm > 0, self.schedule.max_seconds > 0
        require(compat.clip == "global" or clips, f"compat.clip 'local' {alone} optim.grad_clip_norm")
        one_history = compat.clip == "global" or not self.optim.lyapunov_window
        require(one_history, "optim.lyapunov_window needs compat.clip 'global': local clips have norms of their own")
        require(compat.clock == "rank0" or clocked, f"compat.clock 'rank' {alone} schedule.max_seconds")
        grouped = compat.loader_group == "virtual" or self.data.loader == "packed"
        require(grouped, f"compat.loader_group 'world' {alone} data.loader 'packed'")
        primed = not compat.stale_muon_momentum or self.run.priming_steps > 0
        require(primed, f"compat.stale_muon_momentum {alone} run.priming_steps")
        rounds = compat.eval_logits_bf16 or self.run.dtype == "bfloat16"
        require(rounds, f"compat.eval_logits_bf16 = false {alone} run.dtype 'bfloat16': nothing is rounded anyway")

    @property
    def digest(self) -> str:
        """SHA-256 over all values that are not defaults, but for the two texts that describe the recipe.

        So a new key, whose default is how golf was without it, changes no older recipe's digest.
        """
        values = {key: value for key, value in _chosen(self).items() if key not in ("name", "description")}
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, every default written out, parts that are off left out."""
        values: dict[str, Any] = _plain(self)
        return values


def _chosen(value: Any) -> Any:
    """Return what differs from the defaults, as `_plain` writes it; an optional table that is on is there, if empty."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _chosen(item) for field, item in pairs if item != field.default}
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return plain nested values as TOML has them: what is off is left out, or False where it is on by default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        told = [(field.name, item) for field, item in pairs if item is not None or field.default is not None]
        return {name: False if item is None else _plain(item) for name, item in told}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
