"""The model: embed, walk the plan, normalize, score.

B rows, T tokens, C model dim, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from golf.config import ModelConfig
from golf.data.documents import Batch
from golf.kernels.norm import rms_norm
from golf.kernels.softcapped_ce import softcap, softcapped_cross_entropy
from golf.model.blocks import Block
from golf.model.context import Context
from golf.model.hooks import Adapter, Hooks, Observer
from golf.model.parts.bigram import BigramHash
from golf.model.parts.skips import Skips
from golf.model.parts.smear import Smear
from golf.model.parts.value_embedding import ValueEmbedding
from golf.model.plan import LayerPlan, count_skip_rows
from golf.model.rotary import rotary_table


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
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))

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
        x = context.x0
        waiting: list[Tensor] = []
        for visit in plan.visits:
            if self.skips is not None and visit.skip_row is not None:
                x = self.skips(x, waiting.pop(), visit.skip_row)
            x = self.blocks[visit.layer](x, context, hooks, visit.slot)
            if visit.pushes:
                waiting.append(x)
        x = rms_norm(x)
        hooks.show("head", x)
        return hooks.adapt(len(plan.visits), "head", F.linear(x, self.tok_emb.weight), x)

    def _context(self, batch: Batch, hooks: Hooks) -> Context:
        """Embed the tokens and gather what all blocks share."""
        e = self.tok_emb(batch.tokens)  # (B, T, C)
        follows = F.pad(batch.tokens[:, 1:] != self.config.bos_id, (1, 0))  # (B, T) False at document and row starts
        for part in self.stem.values():
            e = part(e, batch.tokens, follows, hooks)
        values = None if self.value_embedding is None else self.value_embedding(batch.tokens, hooks)
        cos, sin = rotary_table(self.config.rope, batch.tokens.shape[1], e.device)
        return Context(rms_norm(e), batch.cu_seqlens, batch.max_seqlen, cos.to(e.dtype), sin.to(e.dtype), values)
