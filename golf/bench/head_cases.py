"""The head and its loss.

C model dim, V vocabulary.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from golf.bench.case import Case, Inputs, Outputs, Sizes
from golf.bench.measurement import Work
from golf.bench.synthetic import draw_batch
from golf.kernels.linear_softcapped_ce import linear_softcapped_cross_entropy

_CHUNKS = (4096, 16_384)  # rows of logits that the head's loss may hold at a time


def head_cases(sizes: Sizes) -> list[Case]:
    """Return the cases of `golf.kernels.softcapped_ce`, alone and with the head's matrix product."""
    return [_cross_entropy(sizes), _head_loss(sizes)]


def _cross_entropy(sizes: Sizes) -> Case:
    config = sizes.config
    logits = sizes.bytes(config.vocab_size)
    targets = _targets(sizes)

    def call(cross_entropy: Any, x: Inputs) -> Outputs:
        return (cross_entropy(x["logits"], targets, cap=config.logit_softcap),)

    return Case(
        "cross-entropy",
        "cross_entropy",
        make=lambda draw: {"logits": draw.activations(config.vocab_size)},
        call=call,
        forward=Work(logits),
        backward=Work(2 * logits),
    )


def _head_loss(sizes: Sizes) -> Case:
    """The head and its loss together, which need not store the logits."""
    config = sizes.config
    dim, vocab = config.model_dim, config.vocab_size
    targets, stream, weight = _targets(sizes), sizes.bytes(dim), dim * vocab * sizes.dtype.itemsize

    def call(cross_entropy: Any, x: Inputs) -> Outputs:
        return (cross_entropy(F.linear(x["x"], x["weight"]), targets, cap=config.logit_softcap),)

    def in_chunks(x: Inputs, chunk_rows: int) -> Outputs:
        cap = config.logit_softcap
        return (linear_softcapped_cross_entropy(x["x"], x["weight"], targets, cap=cap, chunk_rows=chunk_rows),)

    flop = 2 * sizes.tokens * dim * vocab
    return Case(
        "head and cross-entropy",
        "cross_entropy",
        make=lambda draw: {"x": draw.activations(dim), "weight": draw.matrix(vocab, dim)},
        call=call,
        forward=Work(stream + weight, flop),
        backward=Work(2 * stream + 2 * weight, 2 * flop),
        others={f"chunks of {rows}": partial(in_chunks, chunk_rows=rows) for rows in _CHUNKS},
    )


def _targets(sizes: Sizes) -> Tensor:
    config = sizes.config
    vocab = {"vocab_size": config.vocab_size, "bos_id": config.bos_id}
    batch = draw_batch(sizes.tokens, **vocab, max_doc_len=sizes.max_doc_len, seed=0)
    return batch.targets.to(sizes.device)
