"""The model: embed, walk the plan, normalize, score.

B rows, T tokens, C model dim, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from golf.data.documents import Batch
from golf.kernels.norm import rms_norm
from golf.kernels.softcapped_ce import softcap, softcapped_cross_entropy
from golf.model.blocks import Block, Streams
from golf.model.context import Context
from golf.model.hooks import Adapter, Hooks, Observer
from golf.model.parts.bigram import BigramHash
from golf.model.parts.carry import Carry
from golf.model.parts.lanes import LaneBlock, LaneWeights, join_lanes
from golf.model.parts.skips import Skips
from golf.model.parts.smear import Smear
from golf.model.parts.value_embedding import ValueEmbedding
from golf.model.plan import LayerPlan, count_skip_rows
from golf.model.rotary import rotary_table
from golf.model_config import ModelConfig


class GPT(nn.Module):
    """A transformer whose layers are visited in the order of a plan; see ARCHITECTURE.md for its stages."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim)
        self.stem = nn.ModuleDict()
        if config.bigram:
            self.stem["bigram"] = BigramHash(config, config.bigram)
        if config.smear:
            self.stem["smear"] = Smear(config.smear)
        part = config.value_embedding
        self.value_embedding = ValueEmbedding(config, part) if part else None
        rows = count_skip_rows(config)
        self.skips = Skips(rows, config.model_dim, gated=config.skips.gated) if config.skips else None
        self.carry = Carry(config.loop, config.carry) if config.loop and config.carry else None
        self.lanes = LaneWeights(config) if config.lanes else None
        first_lanes = config.lanes.start if config.lanes else config.num_layers
        kinds = [LaneBlock if layer >= first_lanes else Block for layer in range(config.num_layers)]
        self.blocks = nn.ModuleList(kind(config, layer) for layer, kind in enumerate(kinds))

    def forward(
        self, batch: Batch, *, plan: LayerPlan, adapters: Adapter | None = None, observer: Observer | None = None
    ) -> Tensor:
        """Return each target's loss in nats (B, T), float32."""
        logits = self.raw_logits(batch, plan=plan, adapters=adapters, observer=observer)
        return softcapped_cross_entropy(logits, batch.targets, cap=self.config.logit_softcap)

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
        context = self._context(batch, hooks)
        streams: Streams = (context.x0,)
        waiting: list[Tensor] = []
        remembered: dict[int, Tensor] = {}
        for visit in plan.visits:
            if visit.splits:
                streams = streams * 2
            if self.skips is not None and visit.skip_row is not None:
                streams = (self.skips(streams[0], waiting.pop(), visit.skip_row), *streams[1:])
            streams = self.blocks[visit.layer](streams, context, hooks, visit.slot)
            if self.carry is not None:
                streams = (self.carry(streams[0], visit, remembered), *streams[1:])
            if visit.pushes:
                waiting.append(streams[0])
        x = rms_norm(join_lanes(streams, self.config.lanes.final) if self.config.lanes else streams[0])
        hooks.show("head", x)
        return hooks.adapt(len(plan.visits), "head", F.linear(x, self.tok_emb.weight), x)

    def _context(self, batch: Batch, hooks: Hooks) -> Context:
        """Embed the tokens and gather what all blocks share."""
        e = self.tok_emb(batch.tokens)  # (B, T, C)
        follows = F.pad(batch.tokens[:, 1:] != self.config.bos_id, (1, 0))  # (B, T) False at document and row starts
        for part in self.stem.values():
            e = part(e, batch.tokens, follows, hooks)
        values = None if self.value_embedding is None else self.value_embedding(batch.tokens, hooks)
        lanes = None if self.lanes is None else (self.lanes.post, self.lanes.resid)
        table = rotary_table(self.config.rope, batch.tokens.shape[1], e.device)
        cos, sin = (part.to(e.dtype) for part in table)
        return Context(rms_norm(e), batch.cu_seqlens, batch.max_seqlen, cos, sin, values, lanes)
