"""Attention sublayers: multi-head, grouped-query, cross and multi-head latent; fused or as separate kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.graph.context import exchanged
from simulator.graph.graph import Operator, Shape
from simulator.graph.layers import BlockBuilder, elementwise, linear, norm
from simulator.graph.work import Attention, Collective, Elementwise, Matmul, Numeric, Work
from simulator.specs.model import LatentAttention, Model

SOFTMAX_FLOPS = 5.0
NARROW = ("fp8", "fp6", "fp4")
"""Formats of linear layers that attention does not follow; devices that have them have bf16."""
ROTARY_FLOPS = 6.0


def self_attention(
    b: BlockBuilder,
    model: Model,
    shape: Shape,
    source: str,
    target: str,
    *,
    fused: bool,
    window: float,
    causal: bool,
) -> Numeric:
    """Add projections, rotary embedding, attention and output projection; returns KV elements a token on this rank."""
    heads, dim = model.num_attention_heads, model.attention_head_dim
    kv_heads = (
        np.maximum(model.kv_heads, b.tp) if np.any(np.asarray(b.tp) > model.kv_heads) else model.kv_heads
    )
    q_width, kv_width = heads * dim, kv_heads * dim
    qkv = linear(
        b,
        "attention.qkv",
        source,
        "qkv",
        b.hidden,
        q_width + 2 * kv_width,
        parallel="column",
        parts={"q_proj": q_width, "k_proj": kv_width, "v_proj": kv_width},
        bias=model.attention_bias,
    )
    local_heads, local_kv = heads / b.tp, kv_heads / b.tp
    rows = b.tokens
    if model.qk_norm != "none":
        qkv = _qk_norm(b, model, rows * (local_heads + local_kv) * dim)
    if model.position == "rope":
        _rotary(b, qkv, rows * (local_heads + local_kv) * dim)
    _attention_core(
        b, model, shape, qkv, local_heads, local_kv, dim, dim, fused=fused, window=window, causal=causal
    )
    linear(
        b,
        "attention.output",
        "context",
        target,
        q_width,
        b.hidden,
        parallel="row",
        parts={"o_proj": b.hidden},
        bias=model.attention_output_bias,
    )
    return 2 * local_kv * dim


def cross_attention(
    b: BlockBuilder, model: Model, shape: Shape, source: str, target: str, *, fused: bool
) -> Numeric:
    """Add attention of decoder tokens over the encoder's output; keys and values are made once, in the prefill."""
    dim, heads = model.attention_head_dim, model.num_attention_heads
    width = heads * dim
    encoder_rows = shape.batch * shape.sequence
    b.tensor("encoder", encoder_rows * b.hidden / b.cut)
    linear(b, "cross.q", source, "cross.q.out", b.hidden, width, parallel="column", bias=model.attention_bias)
    linear(
        b, "cross.kv", "encoder", "cross.kv.out", b.hidden, 2 * width,
        parallel="column", bias=model.attention_bias, rows=encoder_rows,
    )  # fmt: skip
    if shape.phase == "decode":  # keys and values were made in the prefill
        b.operators[-1] = replace(b.operators[-1], forward=())
    local = heads / b.tp
    decoder_tokens = 1 if shape.phase == "decode" else (shape.target or 1)
    encoder_shape = Shape(shape.batch, decoder_tokens, _encoder_length(shape) - decoder_tokens, shape.phase)
    _attention_core(
        b, model, encoder_shape, "cross.q.out", local, local, dim, dim, fused=fused, window=np.inf, causal=False,
        prefix="cross.", kv="cross.kv.out",
    )  # fmt: skip
    linear(
        b,
        "cross.output",
        "cross.context",
        target,
        width,
        b.hidden,
        parallel="row",
        bias=model.attention_output_bias,
    )
    return 2 * local * dim


def latent_attention(
    b: BlockBuilder, model: Model, mla: LatentAttention, shape: Shape, source: str, target: str
) -> Numeric:
    """Add multi-head latent attention (DeepSeek-V2, section 2.1.2); absorbed in decode, expanded otherwise.

    Down projections are replicated over the tensor-parallel group (each rank on its own tokens with sequence parallelism),
    heads are cut. Decode multiplies queries by the
    key up-projection and works on the latent cache directly, of kv_lora_rank + qk_rope_head_dim elements a token.
    """
    heads, rope, nope, value = (
        model.num_attention_heads,
        mla.qk_rope_head_dim,
        mla.qk_nope_head_dim,
        mla.v_head_dim,
    )
    rows, local = b.tokens, heads / b.tp
    own = rows / b.cut
    queries = source
    if mla.q_lora_rank:
        queries = linear(
            b, "attention.q_a", source, "q_a", b.hidden, mla.q_lora_rank, bias=model.attention_bias, rows=own
        )
        queries = norm(
            b, "attention.q_norm", queries, "q_a.norm", "rmsnorm",
            bias=False, width=mla.q_lora_rank, elements=own * mla.q_lora_rank,
        )  # fmt: skip
    linear(
        b,
        "attention.q_b",
        queries,
        "q",
        mla.q_lora_rank or b.hidden,
        heads * (nope + rope),
        parallel="column",
    )
    latent = mla.kv_lora_rank + rope
    linear(b, "attention.kv_a", source, "kv_a", b.hidden, latent, bias=model.attention_bias, rows=own)
    norm(
        b, "attention.kv_norm", "kv_a", "kv_a.norm", "rmsnorm",
        bias=False, width=mla.kv_lora_rank, elements=own * mla.kv_lora_rank,
    )  # fmt: skip
    _rotary(b, "q", rows * (local + 1) * rope, shared=rows * rope)
    if shape.phase == "decode":
        _absorbed(b, model, mla, shape, local)
    else:
        linear(
            b,
            "attention.kv_b",
            "kv_a.norm",
            "kv",
            mla.kv_lora_rank,
            heads * (nope + value),
            parallel="column",
        )
        _attention_core(
            b,
            model,
            shape,
            "q",
            local,
            local,
            nope + rope,
            value,
            fused=True,
            window=np.inf,
            causal=True,
            kv="kv",
        )
    linear(
        b, "attention.output", "context", target, heads * value, b.hidden,
        parallel="row", parts={"o_proj": b.hidden},
    )  # fmt: skip
    return latent


def _absorbed(b: BlockBuilder, model: Model, mla: LatentAttention, shape: Shape, local: Numeric) -> None:
    rank, nope, value, rope = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.v_head_dim, mla.qk_rope_head_dim
    weight = b.numerics.weight_bytes
    rows = b.tokens
    q = b.tensor("q.latent", rows * local * rank)
    key = Matmul(rows, rank, nope, local, b.numerics.compute, b.width, weight, b.width)
    b.add(Operator("attention.k_up", (key,), parameters=local * rank * nope, inputs=("q",), outputs=(q,)))
    context = b.tensor("context.latent", rows * local * rank)
    attention = Attention(
        shape.batch, local, 1, shape.sequence, shape.context + shape.sequence, rank + rope, rank, rank + rope,
        True, np.inf, True, False, _product_format(b), b.numerics.kv_bytes, b.width, True,
    )  # fmt: skip
    b.add(Operator("attention.core", (attention,), inputs=(q, "kv_a.norm"), outputs=(context,), core=True))
    out = b.tensor("context", rows * local * value)
    values = Matmul(rows, value, rank, local, b.numerics.compute, b.width, weight, b.width)
    b.add(
        Operator(
            "attention.v_up", (values,), parameters=local * rank * value, inputs=(context,), outputs=(out,)
        )
    )


def _qk_norm(b: BlockBuilder, model: Model, elements: Numeric) -> str:
    dim = model.attention_head_dim
    full = (model.num_attention_heads + model.kv_heads) * dim / b.tp
    weights = 2 * dim if model.qk_norm == "head" else full
    parameters = weights if model.qk_norm_weight else 0
    kept = b.tensors["qkv"].size
    work = Elementwise(elements * b.width, elements * b.width, 4.0 * elements)
    back = Elementwise(2 * elements * b.width, elements * b.width, 8.0 * elements)
    normed = b.tensor("qkv.normed", kept / b.width)
    b.add(Operator("attention.qk_norm", (work,), (back,), (), parameters, ("qkv",), (normed,), ("qkv",)))
    return normed


def _rotary(b: BlockBuilder, source: str, elements: Numeric, *, shared: Numeric | None = None) -> None:
    """Rotate in place; ``shared`` elements are a key that all heads have and that sequence parallelism has cut."""
    work = Elementwise(elements * b.width, elements * b.width, ROTARY_FLOPS * elements)
    forward: tuple[Work, ...] = (work,)
    backward: tuple[Work, ...] = (work,)
    if shared is not None and b.partition.sequence_parallel:
        forward = (Collective("all-gather", "tensor", shared * b.width), work)
        backward = (work, Collective("reduce-scatter", "tensor", shared * b.width))
    b.add(Operator("attention.rotary", forward, backward, inputs=(source,), outputs=(source,)))


def _attention_core(
    b: BlockBuilder,
    model: Model,
    shape: Shape,
    q: str,
    heads: Numeric,
    kv_heads: Numeric,
    qk_dim: Numeric,
    v_dim: Numeric,
    *,
    fused: bool,
    window: float,
    causal: bool,
    prefix: str = "",
    kv: str | None = None,
) -> None:
    queries, keys = shape.sequence, shape.context + shape.sequence
    saved = (q,) if kv is None else (q, kv)
    rows = shape.batch * queries if b.context is None else shape.batch * queries / b.context
    name = f"{prefix}core" if prefix else "attention.core"
    if fused:
        decode = shape.phase == "decode"
        common = (
            shape.batch,
            heads,
            kv_heads,
            queries,
            keys,
            qk_dim,
            v_dim,
            kv_heads * (qk_dim + v_dim),
            causal,
            window,
        )
        expanded = kv is not None and not prefix  # latent attention: never in the cache in this form
        kernel = b.numerics.attention_kernel
        tail = (_product_format(b), b.width if expanded else b.numerics.kv_bytes, b.width)
        stores = shape.phase in ("prefill", "decode") and kv is None
        out = b.tensor(f"{prefix}context", rows * heads * v_dim)
        statistics = b.tensor(f"{prefix}logsumexp", rows * heads, 4.0)
        sinks = heads if model.attention_sinks else 0
        forward: tuple[Work, ...] = (Attention(*common, decode, False, *tail, stores=stores, kernel=kernel),)
        backward: tuple[Work, ...] = (Attention(*common, False, True, *tail, kernel=kernel),)
        if b.context is not None:
            whole = Attention(*common, False, False, *tail, kernel=kernel)
            forward, backward = exchanged(whole, b.context, b.partition.context_exchange)
        b.add(
            Operator(
                name, forward, backward, (), sinks, saved, (out, statistics), (*saved, out, statistics), core=True,
            )
        )  # fmt: skip
        return
    _separate_kernels(b, model, shape.batch * heads, queries, keys, qk_dim, v_dim, saved, prefix)


def _product_format(b: BlockBuilder) -> str:
    """Fused kernels multiply in bf16 where the linear layers are in a narrow floating format, whatever the cache stores."""
    return "bf16" if b.numerics.compute in NARROW else b.numerics.compute


def _separate_kernels(
    b: BlockBuilder,
    model: Model,
    groups: Numeric,
    queries: Numeric,
    keys: Numeric,
    qk_dim: Numeric,
    v_dim: Numeric,
    saved: tuple[str, ...],
    prefix: str,
) -> None:
    """Scores, softmax, dropout and context as kernels of their own, which keep the scores (Korthikanti, section 4.1)."""
    width, compute = b.width, b.numerics.compute

    def product(m: Numeric, n: Numeric, k: Numeric) -> Matmul:
        return Matmul(m, n, k, groups, compute, width, width, width)

    elements = groups * queries * keys
    raw = b.tensor(f"{prefix}scores", elements)
    label = prefix or "attention."
    b.add(
        Operator(
            f"{label}scores", (product(queries, keys, qk_dim),),
            (product(queries, qk_dim, keys), product(keys, qk_dim, queries)), (), 0, saved, (raw,), saved, core=True,
        )
    )  # fmt: skip
    # the scores themselves are not needed again: the backward pass of softmax needs its output alone
    weights = b.tensor(f"{prefix}softmax", elements)
    size = elements * width
    softmax = Elementwise(size, size, SOFTMAX_FLOPS * elements)
    b.add(
        Operator(
            f"{label}softmax", (softmax,), (Elementwise(2 * size, size, SOFTMAX_FLOPS * elements),), (), 0,
            (raw,), (weights,), (weights,), core=True,
        )
    )  # fmt: skip
    if model.dropout:
        weights = elementwise(
            b, f"{label}dropout", (weights,), f"{prefix}softmax.dropped", elements, mask=elements, core=True
        )
    out = b.tensor(f"{prefix}context", groups * queries * v_dim)
    b.add(
        Operator(
            f"{label}weighted_values", (product(queries, v_dim, keys),),
            (product(queries, keys, v_dim), product(keys, v_dim, queries)), (), 0,
            (weights, *saved), (out,), (weights, *saved), core=True,
        )
    )  # fmt: skip


def _encoder_length(shape: Shape) -> Numeric:
    return shape.context if shape.phase == "decode" else shape.sequence
