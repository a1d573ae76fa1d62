"""What a layer does besides the stream: attention and all around it, and the MLP.

H query heads, K key/value heads, D head size, C model dim, F hidden.
"""

from functools import partial
from typing import Any

import torch

from golf.bench.case import Case, Draw, Inputs, Outputs, Sizes
from golf.bench.flop import attention_flop
from golf.bench.measurement import Work
from golf.bench.synthetic import draw_batch
from golf.kernels.square_mlp import MATMUL, Ways, can_go_by_rows, square_mlp_by
from golf.kernels.square_mlp_gemm import BACKWARD_TILES, FORWARD_TILES, GRAIN
from golf.kernels.square_mlp_rows import RINGS, why_not
from golf.model.rotary import rotary_table


def layer_cases(sizes: Sizes) -> list[Case]:
    """Return the cases of a layer of `sizes.config`; of the MLP if it is one for `golf.kernels.square_mlp`."""
    config = sizes.config
    is_square = config.activation == "leaky_relu_square" and config.mlp_rank == 0
    return [
        _attention(sizes),
        _project(sizes),
        _turn_heads(sizes),
        _exclude(sizes),
        _scale_rows(sizes),
        *([_square_mlp(sizes)] if is_square else []),
    ]


def _attention(sizes: Sizes) -> Case:
    config = sizes.config
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    vocab = {"vocab_size": config.vocab_size, "bos_id": config.bos_id}
    cu_seqlens = draw_batch(sizes.tokens, **vocab, max_doc_len=sizes.max_doc_len, seed=0).cu_seqlens
    on_device = cu_seqlens.to(sizes.device)
    q_bytes, kv_bytes = sizes.bytes(heads, dim), 2 * sizes.bytes(kv_heads, dim)
    flop = attention_flop(heads, dim, cu_seqlens)

    def make(draw: Draw) -> Inputs:
        q, k, v = (draw.activations(count, dim) for count in (heads, kv_heads, kv_heads))
        return {"q": q, "k": k, "v": v}

    def call(attention: Any, x: Inputs) -> Outputs:
        return (attention(x["q"], x["k"], x["v"], cu_seqlens=on_device, max_seqlen=sizes.max_doc_len),)

    backward = Work(4 * q_bytes + 2 * kv_bytes, 5 * flop // 2)  # reads q, k, v, y and its gradient; writes three
    return Case("attention", "attention", make, call, Work(2 * q_bytes + kv_bytes, flop), backward)


def _project(sizes: Sizes) -> Case:
    config = sizes.config
    dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
    shapes = [(dim, dim), (kv_dim, dim), (kv_dim, dim)]
    if config.attention_gate:
        shapes.append((config.num_heads, config.attention_gate.window))
    weights = sum(rows * columns for rows, columns in shapes)
    moved = sizes.bytes(dim + sum(rows for rows, _ in shapes)) + weights * sizes.dtype.itemsize

    def make(draw: Draw) -> Inputs:
        return {"n": draw.activations(dim)} | {str(i): draw.matrix(*shape) for i, shape in enumerate(shapes)}

    def call(form: Any, x: Inputs) -> Outputs:
        outputs: Outputs = form(x["n"], [tensor for name, tensor in x.items() if name != "n"])
        return outputs

    flop = 2 * sizes.tokens * weights
    input_and_weights = sizes.bytes(dim) + weights * sizes.dtype.itemsize
    backward = Work(moved + input_and_weights, 2 * flop)
    return Case("project", "project", make, call, Work(moved, flop), backward)


def _turn_heads(sizes: Sizes) -> Case:
    config = sizes.config
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    group = heads // kv_heads
    cos, sin = (part.to(sizes.dtype) for part in rotary_table(config.rope, sizes.tokens, sizes.device))

    def make(draw: Draw) -> Inputs:
        gain = {} if config.q_gain_init is None else {"gain": draw.parameter(heads)}
        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        return {name: draw.activations(count, dim) for name, count in counts.items()} | gain

    def call(turn_heads: Any, x: Inputs) -> Outputs:
        turned = turn_heads(x["q"], x["k"], x["v"], cos, sin, x.get("gain"), normalize=config.qk_norm)
        again = turned.again or ((turned.k, turned.v),) * (group - 1)
        return turned.q, turned.k, turned.v, turned.same_v, *(tensor for pair in again for tensor in pair)

    turned, table = sizes.bytes(heads + kv_heads, dim), sizes.bytes(config.rope.dims)
    # A gradient of k and of v for each query head of a group, and v's other reader's, become one of each.
    backward = Work(3 * turned + (2 * group + 1) * sizes.bytes(kv_heads, dim) + table)
    return Case("turn heads", "turn_heads", make, call, Work(2 * turned + table), backward)


def _exclude(sizes: Sizes) -> Case:
    config = sizes.config
    dim = config.head_dim
    y, v, gates = sizes.bytes(config.num_heads, dim), sizes.bytes(config.num_kv_heads, dim), 0
    if config.attention_gate:
        gates = sizes.bytes(config.num_heads)

    def make(draw: Draw) -> Inputs:
        gate = {"gates": draw.activations(config.num_heads)} if gates else {}
        return {"y": draw.activations(config.num_heads, dim), "v": draw.activations(config.num_kv_heads, dim), **gate}

    def call(exclude: Any, x: Inputs) -> Outputs:
        return (exclude(x["y"], x["v"], x.get("gates")),)

    backward = Work(3 * y + 2 * v + 2 * gates)
    return Case("exclude", "exclude", make, call, Work(2 * y + v + gates), backward)


def _scale_rows(sizes: Sizes) -> Case:
    shape = sizes.config.model_dim, sizes.config.hidden_dim(0)  # the MLP's last matrix
    weight, scaled = (torch.Size(shape).numel() * dtype.itemsize for dtype in (torch.float32, sizes.dtype))

    def make(draw: Draw) -> Inputs:
        return {"weight": draw.parameter(*shape), "gain": draw.parameter(shape[0])}

    def call(scale_rows: Any, x: Inputs) -> Outputs:
        return (scale_rows(x["weight"], x["gain"], sizes.dtype),)

    return Case("scale rows", "scale_rows", make, call, Work(weight + scaled), Work(scaled + 2 * weight))


def _square_mlp(sizes: Sizes) -> Case:
    config = sizes.config
    dim, hidden = config.model_dim, config.hidden_dim(0)
    stream, inner = sizes.bytes(dim), sizes.bytes(hidden)
    weights = 2 * dim * hidden
    weight_bytes, flop = weights * sizes.dtype.itemsize, 2 * sizes.tokens * weights

    def make(draw: Draw) -> Inputs:
        return {"n": draw.activations(dim), "fc": draw.matrix(hidden, dim), "proj": draw.matrix(dim, hidden)}

    def call(square_mlp: Any, x: Inputs) -> Outputs:
        return (square_mlp(x["n"], x["fc"], x["proj"], negative_slope=config.negative_slope)[0],)

    def by(x: Inputs, ways: Ways) -> Outputs:
        return (square_mlp_by(ways, x["n"], x["fc"], x["proj"], negative_slope=config.negative_slope)[0],)

    return Case(
        "square mlp",
        "square_mlp",
        make,
        call,
        forward=Work(2 * stream + inner + weight_bytes, flop),
        backward=Work(3 * stream + inner + 2 * weight_bytes, 2 * flop),
        others={f"{ways.forward}, {ways.backward}": partial(by, ways=ways) for ways in _ways(sizes)},
    )


def _ways(sizes: Sizes) -> list[Ways]:
    """Return every way of each of the MLP's two products that a model of these sizes can take, beside the plainest."""
    dim, hidden = sizes.config.model_dim, sizes.config.hidden_dim(0)
    fits = dim % GRAIN == 0 and hidden % GRAIN == 0
    tables = (FORWARD_TILES, BACKWARD_TILES) if fits else ({}, {})
    is_float32 = sizes.dtype is torch.float32
    forward, backward = ([way for way in table if (way == "float32") == is_float32] for table in tables)
    if can_go_by_rows(sizes.device, sizes.dtype):
        by_rows = [way for way, ring in RINGS.items() if why_not(ring, sizes.dtype, hidden, dim) is None]
        forward, backward = forward + by_rows, backward + by_rows
    return [
        Ways(MATMUL, MATMUL),
        *(Ways(way, MATMUL) for way in forward),
        *(Ways(MATMUL, way) for way in backward),
    ]
