"""The whole model once more, token by token in float64, written from the formulas and sharing no code with it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from golf.model_config import ModelConfig

EPS = 1.1920929e-07
Merge = tuple[int, int]  # decoder slot -> (slot of the encoder visit, skip row)


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


class Formulas:
    """Float64 weights by name and the model's sizes; one row of tokens at a time."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.w = {name: tensor.detach().double() for name, tensor in weights.items()}

    def losses(
        self,
        tokens: list[int],
        targets: list[int],
        segments: Sequence[range],
        order: list[int],
        skips: dict[int, Merge],
    ) -> Tensor:
        """Loss of each target (T,) for the layers in `order`; `segments` are what attention may not look out of."""
        x0 = rms(self.embedding(tokens))
        x = q = x0
        outputs: list[Tensor] = []
        first: dict[int, Tensor] = {}
        for slot, layer in enumerate(order):
            if self.config.lanes and layer == self.config.lanes.start:
                q = x
            if slot in skips:
                source, row = skips[slot]
                s = self.w["skips.weights"][row] * outputs[source]
                x = s + torch.sigmoid(self.w["skips.gates"][row]) * (x - s)
            if self.config.lanes and layer >= self.config.lanes.start:
                x, q = self.lanes(x, q, x0, layer, tokens, segments)
            else:
                x = self.carried(self.block(x, x0, layer, tokens, segments), layer, first)
            outputs.append(x)
        if self.config.lanes:
            x = (x + q) / 2
        cap = self.config.logit_softcap
        assert cap is not None
        z = cap * torch.tanh(rms(x) @ self.w["tok_emb.weight"].T / cap)
        return torch.stack([z[t].logsumexp(0) - z[t, target] for t, target in enumerate(targets)])

    def embedding(self, tokens: list[int]) -> Tensor:
        """Token plus bigram embedding, smeared."""
        w, rows = self.w, []
        last = w["stem.bigram.table.weight"].shape[0] - 1
        for t, token in enumerate(tokens):
            first = t == 0 or token == self.config.bos_id
            bucket = last if first else ((36313 * token) ^ (27191 * tokens[t - 1])) % last
            bigram = w["stem.bigram.proj.weight"] @ w["stem.bigram.table.weight"][bucket]
            rows.append(w["tok_emb.weight"][token] + w["stem.bigram.scale"] * bigram)
        smeared = []
        for t, token in enumerate(tokens):
            gate = torch.sigmoid(w["stem.smear.weight"][0] @ rows[t][: w["stem.smear.weight"].shape[1]])
            before = torch.zeros_like(rows[t]) if t == 0 or token == self.config.bos_id else rows[t - 1]
            smeared.append(rows[t] + w["stem.smear.strength"] * gate * before)
        return torch.stack(smeared)

    def carried(self, y: Tensor, layer: int, first: dict[int, Tensor]) -> Tensor:
        """Remember a looped layer's first output; mix all of them into its later ones."""
        loop, carry = self.config.loop, self.config.carry
        if not (loop and carry and loop.start <= layer <= loop.end):
            return y
        if layer not in first:
            first[layer] = y
            return y
        row = carry.alpha[layer - loop.start]
        return carry.beta[layer - loop.start] * y + sum(
            (alpha * first[loop.start + j] for j, alpha in enumerate(row)), torch.zeros_like(y)
        )

    def lanes(
        self, p: Tensor, q: Tensor, x0: Tensor, layer: int, tokens: list[int], segments: Sequence[range]
    ) -> tuple[Tensor, Tensor]:
        own = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in self.w.items()}
        scale = (layer + 1) ** -0.5
        mixed = own["resid_mix"][0] * p + own["resid_mix"][1] * x0
        a = own["attn_scale"] * self.attention(scale * rms(mixed), own, layer, tokens, segments)
        m = own["mlp_scale"] * self.mlp(scale * rms(q), own)
        post, resid = self.w["lanes.post"][layer], self.w["lanes.resid"][layer]
        new_p = resid[0] * p + post[0, 0] * a + post[1, 0] * m
        return new_p, resid[1] * q + post[0, 1] * a + post[1, 1] * m

    def mlp(self, n: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        z = n @ own["mlp.fc.weight"].T
        return torch.where(z > 0, z, self.config.negative_slope * z) ** 2 @ own["mlp.proj.weight"].T

    def block(self, x: Tensor, x0: Tensor, layer: int, tokens: list[int], segments: Sequence[range]) -> Tensor:
        own = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in self.w.items()}
        scale = (layer + 1) ** -0.5
        u = own["resid_mix"][0] * x + own["resid_mix"][1] * x0
        u = u + own["attn_scale"] * self.attention(scale * rms(u), own, layer, tokens, segments)
        return u + own["mlp_scale"] * self.mlp(scale * rms(u), own)

    def attention(
        self, n: Tensor, own: Mapping[str, Tensor], layer: int, tokens: list[int], segments: Sequence[range]
    ) -> Tensor:
        config = self.config
        dim, group = config.head_dim, config.num_heads // config.num_kv_heads
        v_all = n @ own["attn.c_v.weight"].T
        if config.value_embedding and layer in config.value_embedding.layers:
            shared = self.w["value_embedding.table.weight"][tokens] @ self.w["value_embedding.proj.weight"].T
            v_all = v_all + own["attn.value_parts.embedding.scale"] * self.w["value_embedding.scale"] * shared
        y = torch.zeros_like(n)
        for head in range(config.num_heads):
            mine = slice(head * dim, (head + 1) * dim)
            its = slice(head // group * dim, (head // group + 1) * dim)
            q = self.rotated(rms((n @ own["attn.c_q.weight"].T)[:, mine])) * own["attn.q_gain"][head]
            k, v = self.rotated(rms((n @ own["attn.c_k.weight"].T)[:, its])), v_all[:, its]
            for segment in segments:
                for t in segment:
                    seen = slice(segment.start, t + 1)
                    share = (k[seen] @ q[t] / dim**0.5).softmax(0)
                    out = share @ v[seen]
                    if layer >= config.num_layers - config.xsa_last_n:
                        out = out - (out @ v[t]) / (v[t] @ v[t]) * v[t]
                    if config.attention_gate:
                        weight = own["attn.gate.weight"][head]
                        dot = weight @ n[t][: config.attention_gate.window]
                        out = torch.sigmoid(config.attention_gate.scale * dot) * out
                    y[t, mine] = out
        return y @ own["attn.proj.weight"].T

    def rotated(self, x: Tensor) -> Tensor:
        """Turn channels (j, j + dims/2) of x (T, D) by t * base^(-2j/dims)."""
        half, out = self.config.rope.dims // 2, x.clone()
        for j in range(half):
            angle = torch.arange(len(x), dtype=torch.float64) * self.config.rope.base ** (-j / half)
            u, w = x[:, j], x[:, j + half]
            out[:, j] = u * angle.cos() + w * angle.sin()
            out[:, j + half] = w * angle.cos() - u * angle.sin()
        return out
