"""The score: bits per byte over the whole validation stream.

The unit of work is a global batch, so every world size scores the same tokens in the same contexts, and the float64
sums are added in batch order: the result does not depend on the number of ranks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf.config import EvalConfig
from golf.data.bytes import ByteCounter
from golf.data.documents import LENGTHS, Batch, segment_rows, whole_rows
from golf.distributed import World
from golf.errors import NumericalFaultError, UsageError
from golf.model.gpt import GPT
from golf.model.plan import LayerPlan
from golf.recording import Recorder


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over scored targets; document starts count as tokens of no bytes."""

    loss_sum: float  # nats
    tokens: int
    bytes: int

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.loss_sum / self.tokens

    @property
    def val_bpb(self) -> float:
        """Bits per byte: loss_sum / ln 2 over bytes."""
        return self.loss_sum / math.log(2) / self.bytes

    def to_dict(self) -> dict[str, float]:
        """Return the score with its numerator and denominator."""
        bits = self.loss_sum / math.log(2)
        return {
            "val_loss": self.val_loss,
            "val_bpb": self.val_bpb,
            "bits": bits,
            "bytes": self.bytes,
            "tokens": self.tokens,
        }


@dataclass(frozen=True, slots=True)
class ValidationStream:
    """The tokens to score, in which contexts and how exactly, and how to count their bytes."""

    tokens: npt.NDArray[np.uint16]
    counter: ByteCounter
    config: EvalConfig
    bos_id: int
    cross_documents: bool = False  # rows of seq_len tokens, one segment each, instead of documents
    rounds_logits: bool = False  # soft-capped ones, to the activations' dtype, as in the published evaluations
    lengths: int = LENGTHS  # of boundaries; see `boundary_bucket`
    whole_batches_of: int = 0  # ranks of the published scripts, whose incomplete last batches are left out; 0 = none

    @property
    def starts(self) -> Sequence[int]:
        """Stream position of each batch's first input."""
        if self.whole_batches_of == 0:
            return range(0, len(self.tokens) - 1, self.config.batch_tokens)
        ranks = range(self.whole_batches_of)
        return [start for rank in ranks for start in self.rank_starts(rank)]

    def rank_starts(self, rank: int) -> range:
        """Return the starts of the batches that `rank` of `whole_batches_of` ranks scores in the published scripts.

        The stream's whole sequences of seq_len are shared out in equal ranges, and a range's last batch is dropped
        unless it is full. So the score depends on the number of ranks.
        """
        seq_len, size, ranks = self.config.seq_len, self.config.batch_tokens, self.whole_batches_of
        total = (len(self.tokens) - 1) // seq_len
        first, stop = (total * number // ranks * seq_len for number in (rank, rank + 1))
        return range(first, stop - size + 1, size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.starts)

    def batch(self, index: int) -> tuple[Batch, Tensor, int]:
        """Return batch `index`, the mask (B, T) of its real targets, and those targets' bytes.

        One row with segments at its start, at every document, and every `seq_len` tokens; or rows of `seq_len` that are
        one segment each. The last batch is padded to the common length with tokens whose targets the mask leaves out.
        """
        size, seq_len = self.config.batch_tokens, self.config.seq_len
        start = self.starts[index]
        stop = min(start + size, len(self.tokens) - 1)
        window = np.zeros(size + 1, dtype=np.int64)
        window[: stop - start + 1] = self.tokens[start : stop + 1]
        stretch = torch.from_numpy(window)
        shape = (-1, seq_len) if self.cross_documents else (1, size)
        inputs, targets, positions = (part.view(shape) for part in (stretch[:-1], stretch[1:], torch.arange(size)))
        if self.cross_documents:
            cu_seqlens = whole_rows(*inputs.shape)
        else:
            cu_seqlens = segment_rows(inputs, bos_id=self.bos_id, max_doc_len=seq_len, lengths=self.lengths)
        charged = self.counter.bytes_of(self.tokens, start, stop)
        return Batch(inputs, targets, cu_seqlens, seq_len), positions < stop - start, int(charged.sum())


class TokenLosses:
    """Each target's loss under one plan, from the weights that the model holds when it is asked."""

    def __init__(self, model: GPT, plan: LayerPlan, *, records: bool = False) -> None:
        self.model, self.plan = model, plan
        self.recorder = Recorder(self._compute, next(model.parameters()).device, records=records)

    def of(self, batch: Batch, *, rounds_logits: bool) -> Tensor:
        """Return the losses (B, T) in nats, float32, valid until the next call; `batch` may lie anywhere."""
        return self.recorder(batch, rounds_logits)

    def _compute(self, batch: Batch, rounds_logits: bool) -> Tensor:
        logits, cap = self.model.raw_logits(batch, plan=self.plan), self.model.config.logit_softcap
        return self.model.kernels.cross_entropy(logits, batch.targets, cap=cap, rounds=rounds_logits)


@torch.no_grad()
def evaluate(
    losses: TokenLosses,
    stream: ValidationStream,
    *,
    world: World,
    limit_batches: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Score:
    """Score every target of `stream` once, or of its first `limit_batches`; `advance` is told of each batch.

    Raises UsageError if the stream has no target, NumericalFaultError when a loss is not finite.
    """
    if len(stream) == 0:
        raise UsageError("evaluation: the validation stream has no target to score; hold out more documents")
    count = len(stream) if limit_batches is None else min(limit_batches, len(stream))
    rounds = math.ceil(count / world.size)
    sums = torch.zeros(rounds, 3, dtype=torch.float64, device=world.device)
    for turn, index in _own(count, world):
        batch, mask, charged = stream.batch(index)
        found = losses.of(batch.pinned(), rounds_logits=stream.rounds_logits).double()
        if not mask.all():  # the last batch alone: a copy of the mask would wait for everything that is queued
            found = torch.where(mask.to(world.device), found, 0.0)
        sums[turn, 0] = found.sum()
        sums[turn, 1], sums[turn, 2] = int(mask.sum()), charged
        advance(1)
    gathered = world.gather(sums).view(world.size, rounds, 3).transpose(0, 1).reshape(-1, 3)  # in batch order
    loss_sum, tokens, charged_bytes = gathered.cpu().numpy().cumsum(axis=0)[-1]  # cumsum adds strictly left to right
    if not math.isfinite(loss_sum):
        raise NumericalFaultError("evaluation: the loss is not finite; the weights hold NaN or infinity")
    if charged_bytes == 0:
        raise UsageError("the scored tokens stand for no text; check the byte sidecar or the tokenizer of the data")
    return Score(float(loss_sum), int(tokens), int(charged_bytes))


def _own(count: int, world: World) -> Iterator[tuple[int, int]]:
    """Turns and batch indices of this rank: batch b belongs to rank b mod world size."""
    return enumerate(range(world.rank, count, world.size))
