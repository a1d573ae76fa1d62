"""The model: embed, walk the plan, normalize, score.

B rows, T tokens, C model dim, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.data.documents import Batch
from golf.kernels.softcapped_ce import softcap
from golf.kernels.table import PLAIN, Kernels
from golf.model.blocks import Block, ParallelBlock, Streams
from golf.model.context import Context
from golf.model.hooks import Adapter, Hooks, Observer
from golf.model.layers import Linear
from golf.model.parts.bigram import BigramHash
from golf.model.parts.carry import Carry
from golf.model.parts.lanes import LaneBlock, LaneWeights, finish_lanes
from golf.model.parts.multi_token import MultiTokenHeads
from golf.model.parts.share import LoopPositions
from golf.model.parts.skips import Skips, let_wait
from golf.model.parts.smear import Smear, SmearBlend
from golf.model.parts.value_embedding import ValueEmbedding
from golf.model.parts.value_residual import remember_output
from golf.model.plan import LayerPlan, Visit, count_skip_rows
from golf.model.rotary import rotary_table
from golf.model_config import ModelConfig

Stage = Callable[[Tensor, Visit, Context], Tensor]  # what happens to the stream (B, T, C) before or after a block


class GPT(nn.Module):
    """A transformer whose layers are visited in the order of a plan; see ARCHITECTURE.md for its stages."""

    def __init__(self, config: ModelConfig, kernels: Kernels = PLAIN) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.walk: Callable[[GPT, Context, LayerPlan, Hooks], Tensor] = walk  # or its compiled form
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim)
        self.head = None if config.tie_embeddings else Linear(config.model_dim, config.vocab_size)
        self.stem = nn.ModuleDict()
        if config.bigram:
            self.stem["bigram"] = BigramHash(config, config.bigram)
        if config.smear and config.smear.window:
            self.stem["smear"] = Smear(config.smear.window)
        self.blend = SmearBlend(config.model_dim) if config.smear and config.smear.form == "blend" else None
        part = config.value_embedding
        self.value_embedding = ValueEmbedding(config, part) if part else None
        rows = count_skip_rows(config)
        self.skips = Skips(rows, config.model_dim, gated=config.skips.gated) if config.skips else None
        self.carry = Carry(config.loop, config.carry) if config.loop and config.carry else None
        self.lanes = LaneWeights(config) if config.lanes else None
        positioned = config.share if config.share and config.share.position_std else None
        self.share = LoopPositions(config, positioned) if positioned else None
        self.multi_token = MultiTokenHeads(config, config.multi_token) if config.multi_token else None
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.num_layers))
        # The stages of a visit, in order; what is off is not in them.
        remembers = remember_output if config.value_residual and config.value_residual.form == "input" else None
        self.before_block = _those_on(self.share, self.skips)
        self.after_block = _those_on(self.carry, remembers, let_wait if config.skips else None)
        self.finish = partial(finish_lanes, final=config.lanes.final) if config.lanes else _finish

    def forward(
        self,
        batch: Batch,
        *,
        plan: LayerPlan,
        adapters: Adapter | None = None,
        observer: Observer | None = None,
        auxiliary: bool = False,
    ) -> Tensor:
        """Return each target's loss in nats (B, T), float32; `auxiliary` adds what only training minimizes."""
        x = self.states(batch, plan, hooks := Hooks(adapters, observer))
        logits = self.score(x, plan, hooks)
        losses = self.kernels.cross_entropy(logits, batch.targets, cap=self.config.logit_softcap, spends=True)
        if auxiliary and self.multi_token is not None:
            losses = losses + self.multi_token(x, batch.targets, self.kernels)
        return losses

    def logits(
        self, batch: Batch, *, plan: LayerPlan, adapters: Adapter | None = None, observer: Observer | None = None
    ) -> Tensor:
        """Return the soft-capped logits (B, T, V), float32."""
        logits = self.raw_logits(batch, plan=plan, adapters=adapters, observer=observer)
        return softcap(logits, self.config.logit_softcap)

    def raw_logits(
        self, batch: Batch, *, plan: LayerPlan, adapters: Adapter | None = None, observer: Observer | None = None
    ) -> Tensor:
        """Return the logits (B, T, V) before the soft cap, in the activations' dtype."""
        hooks = Hooks(adapters, observer)
        return self.score(self.states(batch, plan, hooks), plan, hooks)

    def states(self, batch: Batch, plan: LayerPlan, hooks: Hooks) -> Tensor:
        """Return the normalized final states (B, T, C)."""
        return self.walk(self, self._context(batch, hooks), plan, hooks)

    def score(self, x: Tensor, plan: LayerPlan, hooks: Hooks) -> Tensor:
        """Return the logits (B, T, V) of final states (B, T, C)."""
        hooks.show("head", x)
        logits = F.linear(x, self.tok_emb.weight) if self.head is None else self.head(x)
        return hooks.adapt(len(plan.visits), "head", logits, x)

    def _context(self, batch: Batch, hooks: Hooks) -> Context:
        """Embed the tokens and gather what all blocks share."""
        e = self.tok_emb(batch.tokens)  # (B, T, C)
        follows = self._follows(batch.tokens)
        for part in self.stem.values():
            e = part(e, batch.tokens, follows, hooks)
        x0 = self.kernels.norm(e)
        if self.blend is not None:
            x0 = self.blend(x0, follows)
        values = None if self.value_embedding is None else self.value_embedding(batch.tokens, hooks)
        lanes = None if self.lanes is None else (self.lanes.post, self.lanes.resid)
        table = rotary_table(self.config.rope, batch.tokens.shape[1], e.device)
        cos, sin = (part.to(e.dtype) for part in table)
        return Context(x0, batch.cu_seqlens, batch.max_seqlen, cos, sin, self.kernels, {}, [], values, lanes)

    def _follows(self, tokens: Tensor) -> Tensor:
        """Whether the token before belongs to the same text (B, T): False at row starts and at document starts."""
        own = torch.ones_like(tokens, dtype=torch.bool) if self.config.cross_documents else tokens != self.config.bos_id
        return F.pad(own[:, 1:], (1, 0))


def walk(model: GPT, context: Context, plan: LayerPlan, hooks: Hooks) -> Tensor:
    """Take the embedding through every visit of the plan; return the normalized final states (B, T, C)."""
    streams: Streams = (context.x0,)
    for visit in plan.visits:
        if visit.splits:
            streams = streams * 2
        streams = _on_first(model.before_block, streams, visit, context)
        read = streams[0]
        streams = model.blocks[visit.layer](streams, context, hooks, visit)
        context.hand_on(read)
        streams = _on_first(model.after_block, streams, visit, context)
    return model.finish(streams, model.kernels)


def _finish(streams: Streams, kernels: Kernels) -> Tensor:
    """Return the normalized stream (B, T, C) that the head reads."""
    return kernels.norm(streams[0])


def _those_on(*parts: Stage | None) -> tuple[Stage, ...]:
    return tuple(part for part in parts if part is not None)


def _on_first(stages: tuple[Stage, ...], streams: Streams, visit: Visit, context: Context) -> Streams:
    """Take the first stream through `stages`."""
    x = streams[0]
    for stage in stages:
        x = stage(x, visit, context)
    return (x, *streams[1:])


def _block(config: ModelConfig, layer: int) -> Block:
    if config.lanes and layer >= config.lanes.start:
        return LaneBlock(config, layer)
    if config.parallel_start is not None and layer >= config.parallel_start:
        return ParallelBlock(config, layer)
    return Block(config, layer)
