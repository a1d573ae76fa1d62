"""The [ttt] table of a recipe: how a finished model is trained on validation text that it has already scored."""

import dataclasses

from golf.errors import require, require_fraction, require_least


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SgdConfig:
    """Stochastic gradient descent on all weights, chunk after scored chunk (parameter-golf PR #549)."""

    lr: float
    momentum: float = 0.9
    epochs: int = 1
    chunk_tokens: int = 32_768
    batch_rows: int = 32
    grad_clip_norm: float = 1.0
    cosine: bool = False  # over the chunks; else the rate stays

    def check(self, table: str) -> None:
        """Raise UsageError for what cannot work, under the name of the `table` that holds it: there are two."""
        sizes = {"epochs": self.epochs, "chunk_tokens": self.chunk_tokens, "batch_rows": self.batch_rows}
        require_least(1, table, **sizes)
        require_least(0, table, lr=self.lr)
        require_fraction(table, momentum=self.momentum)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters of each document's own at q, k, v, o, MLP and head (parameter-golf PRs #1767 and #1787)."""

    rank: int
    alpha: float
    lr: float = 1e-4
    weight_decay: float
    beta1: float = 0.0
    beta2: float
    warm_start_a: bool  # A stays from one batch of documents to the next
    batch_documents: int = 64
    chunk_tokens: int = 48
    grad_steps: int = 1
    seq_len: int = 2048

    def __post_init__(self) -> None:
        sizes = {"rank": self.rank, "batch_documents": self.batch_documents, "chunk_tokens": self.chunk_tokens}
        require_least(1, "ttt.lora", **sizes, grad_steps=self.grad_steps, seq_len=self.seq_len)
        require_least(0, "ttt.lora", lr=self.lr, weight_decay=self.weight_decay)
        require_fraction("ttt.lora", beta1=self.beta1, beta2=self.beta2)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PhasesConfig:
    """Between phases all weights take steps on the prefix documents that were scored before."""

    count: int
    prefix_documents: int
    sgd: SgdConfig

    def __post_init__(self) -> None:
        require_least(1, "ttt.phases", count=self.count, prefix_documents=self.prefix_documents)
        self.sgd.check("ttt.phases.sgd")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TttConfig:
    """Test-time training in one of two forms: SGD over sliding windows, or adapters with phases."""

    sgd: SgdConfig | None = None
    lora: LoraConfig | None = None
    phases: PhasesConfig | None = None

    def __post_init__(self) -> None:
        require((self.sgd is None) != (self.lora is None), "[ttt] needs either [ttt.sgd] or [ttt.lora]")
        require(self.phases is None or self.lora is not None, "[ttt.phases] does nothing without [ttt.lora]")
        if self.sgd:
            self.sgd.check("ttt.sgd")
