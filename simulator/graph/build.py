"""From a model's dimensions to its graph: decoder, encoder and encoder-decoder transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.graph.attention import cross_attention, latent_attention, self_attention
from simulator.graph.experts import moe_mlp
from simulator.graph.graph import Block, ModelGraph, Numerics, Operator, Partition, Shape
from simulator.graph.head import output_head
from simulator.graph.layers import BlockBuilder, dropout_add, elementwise, linear, mlp, norm, norm_has_bias
from simulator.graph.separate import separate
from simulator.graph.work import Collective, CollectiveKind, Gather, Numeric
from simulator.specs.errors import MemroofError
from simulator.specs.model import Model


def build(
    model: Model,
    shape: Shape,
    partition: Partition = Partition(),
    numerics: Numerics = Numerics(),
    *,
    fused_attention: bool = True,
    fused_loss: bool = True,
    wide_loss: bool = True,
    joined_projections: bool = True,
) -> ModelGraph:
    """Build the graph of one rank's share of a model.

    Parameters
    ----------
    model : Model
        Checked dimensions.
    shape : Shape
        Batch, sequence and context [tokens]; numbers or arrays that broadcast together.
    partition : Partition
        Tensor- and expert-parallel degrees and sequence parallelism; numbers or arrays.
    numerics : Numerics
        Formats of products and storage.
    fused_attention : bool
        FlashAttention-like kernels, or scores, softmax and dropout as separate kernels.
    fused_loss : bool
        Cross entropy in one kernel each way, or conversion, maximum, exponentials, sums and their gradients as kernels
        of their own.
    wide_loss : bool
        Whether a fused loss keeps an fp32 copy of the logits (Megatron-Core's fusion), or converts them on the way and keeps
        them in 16 bits (compiled losses, Liger, Transformer Engine's).
    joined_projections : bool
        Queries, keys and values, and gate and up, in one product each, or each projection in one of its own.

    Returns
    -------
    ModelGraph
        Embedding, distinct blocks, the order of layers, and head.

    Raises
    ------
    MemroofError
        If sequences are cut where attention has no kernels for it, or experts otherwise than what surrounds them where
        tensor-parallel ranks hold the same tokens.
    """
    _check(model, shape, partition, fused_attention)
    build_layers = {"decoder": _decoder, "encoder": _encoder, "encoder-decoder": _encoder_decoder}[
        model.family
    ]
    blocks, layers = build_layers(model, shape, partition, numerics, fused_attention)
    tokens = _of_rank(_decoder_tokens(model, shape), partition)
    embedding = _embedding(model, tokens, partition, numerics)
    head = output_head(model, shape, tokens, partition, numerics, fused_loss, wide_loss or not fused_loss)
    if not joined_projections:
        blocks = tuple(separate(block) for block in blocks)
    return ModelGraph(model.name, embedding, blocks, layers, head, numerics)


def _check(model: Model, shape: Shape, partition: Partition, fused_attention: bool) -> None:
    if partition.cuts_context:
        if not fused_attention:
            raise MemroofError(
                "context parallelism needs fused attention: separate kernels see whole sequences"
            )
        if model.family == "encoder-decoder" or shape.phase != "forward":
            raise MemroofError("context parallelism cuts the sequences of one stack of layers in training")
    if (
        partition.expert_axis != "tensor"
        and not partition.sequence_parallel
        and np.any(np.asarray(partition.tensor) > 1)
    ):
        raise MemroofError(
            "experts cut otherwise than the layers around them need sequence parallelism: without it all tensor-parallel "
            "ranks would send the same tokens"
        )


Layers = tuple[tuple[Block, ...], tuple[int, ...]]


def _decoder(model: Model, shape: Shape, partition: Partition, numerics: Numerics, fused: bool) -> Layers:
    variants = [(_is_moe(model, i), _window(model, i)) for i in range(model.num_hidden_layers)]
    distinct = list(dict.fromkeys(variants))
    blocks = tuple(
        _block(
            model,
            shape,
            partition,
            numerics,
            fused,
            moe=moe,
            window=window,
            causal=True,
            name=_name(moe, window),
        )
        for moe, window in distinct
    )
    return blocks, tuple(distinct.index(variant) for variant in variants)


def _encoder(model: Model, shape: Shape, partition: Partition, numerics: Numerics, fused: bool) -> Layers:
    block = _block(
        model, replace(shape, phase="forward"), partition, numerics, fused,
        moe=False, window=np.inf, causal=False, name="encoder layer",
    )  # fmt: skip
    return (block,), (0,) * model.num_hidden_layers


def _encoder_decoder(
    model: Model, shape: Shape, partition: Partition, numerics: Numerics, fused: bool
) -> Layers:
    encoder_shape = replace(shape, phase="forward", context=0)
    target = 1 if shape.phase == "decode" else (shape.target or 1)
    decoder_shape = replace(shape, sequence=target, context=shape.context if shape.phase == "decode" else 0)
    variants: list[tuple[str, bool]] = [
        ("encoder", _is_moe(model, i)) for i in range(model.num_encoder_layers)
    ]
    variants += [("decoder", _is_moe(model, i)) for i in range(model.num_hidden_layers)]
    distinct = list(dict.fromkeys(variants))
    blocks = tuple(
        _block(
            model, encoder_shape if side == "encoder" else decoder_shape, partition, numerics, fused,
            moe=moe, window=np.inf, causal=side == "decoder", name=f"{side} {_name(moe, np.inf)}",
            cross=shape if side == "decoder" else None,
        )
        for side, moe in distinct
    )  # fmt: skip
    if shape.phase == "decode":  # the encoder ran in the prefill: its weights stay, its work is done
        blocks = tuple(
            replace(block, operators=tuple(replace(op, forward=()) for op in block.operators))
            if side == "encoder"
            else block
            for block, (side, _) in zip(blocks, distinct, strict=True)
        )
    return blocks, tuple(distinct.index(variant) for variant in variants)


def _block(
    model: Model,
    shape: Shape,
    partition: Partition,
    numerics: Numerics,
    fused: bool,
    *,
    moe: bool,
    window: float,
    causal: bool,
    name: str,
    cross: Shape | None = None,
) -> Block:
    tokens = _of_rank(shape.batch * shape.sequence, partition)
    b = BlockBuilder(name, tokens, model.hidden_size, partition, numerics)
    b.tensor("input", tokens * model.hidden_size / b.cut)
    sublayer = _Sublayers(b, model)
    entered = sublayer.enter("input", "attention")
    if model.mla:
        kv_width = latent_attention(b, model, model.mla, shape, entered, "attention.out")
    else:
        kv_width = self_attention(
            b, model, shape, entered, "attention.out", fused=fused, window=window, causal=causal
        )
    if model.parallel_block:
        return _finish_parallel(b, model, entered, kv_width, window)
    stream = sublayer.leave("attention.out", "input", "attention")
    if cross is not None:
        entered = sublayer.enter(stream, "cross")
        kv_width = kv_width + cross_attention(b, model, cross, entered, "cross.out", fused=fused)
        stream = sublayer.leave("cross.out", stream, "cross")
    entered = sublayer.enter(stream, "mlp")
    if moe and model.moe:
        moe_mlp(b, model, model.moe, entered, "mlp.out", skew=partition.expert_skew)
    else:
        mlp(
            b, "mlp", entered, "mlp.out", model.intermediate_size,
            gated=model.gated_mlp, activation=model.activation, bias=model.mlp_bias,
        )  # fmt: skip
    sublayer.leave("mlp.out", stream, "mlp")
    return b.build(kv_width=kv_width, kv_window=window)


class _Sublayers:
    """Where a sublayer's norms and residual stand: before (pre), after (post) or both (sandwich)."""

    def __init__(self, b: BlockBuilder, model: Model) -> None:
        self.b, self.model, self.bias = b, model, norm_has_bias(model)

    def enter(self, source: str, name: str) -> str:
        if self.model.norm_placement == "post":
            return source
        return norm(
            self.b, f"{name}.norm", source, f"{name}.norm.out", self.model.normalization, bias=self.bias
        )

    def leave(self, source: str, residual: str, name: str) -> str:
        placement, kind = self.model.norm_placement, self.model.normalization
        if placement == "sandwich":
            source = norm(self.b, f"{name}.post_norm", source, f"{name}.post_norm.out", kind, bias=self.bias)
        out = dropout_add(
            self.b, f"{name}.residual", source, residual, f"{name}.residual.out", dropout=self.model.dropout
        )
        if placement == "post":
            out = norm(self.b, f"{name}.norm", out, f"{name}.norm.out", kind, bias=self.bias)
        return out


def _finish_parallel(b: BlockBuilder, model: Model, entered: str, kv_width: Numeric, window: float) -> Block:
    shared = model.parallel_block_norms == 1
    source = entered
    if not shared:
        source = norm(b, "mlp.norm", "input", "mlp.norm.out", model.normalization, bias=norm_has_bias(model))
    mlp(
        b, "mlp", source, "mlp.out", model.intermediate_size, gated=model.gated_mlp, activation=model.activation,
        bias=model.mlp_bias, gathers=not shared,
    )  # fmt: skip
    sources = ("attention.out", "mlp.out", "input")
    elementwise(b, "residual", sources, "output", b.tokens * b.hidden / b.cut, flops=3.0)
    return b.build(kv_width=kv_width, kv_window=window)


def _embedding(model: Model, tokens: Numeric, partition: Partition, numerics: Numerics) -> Block:
    b = BlockBuilder("embedding", tokens, model.hidden_size, partition, numerics.wide)
    width = model.embedding_size or model.hidden_size
    b.tensor("input", tokens, 8.0)
    tables = model.vocab_size * width / b.tp
    if model.position == "learned":
        tables = tables + (model.max_position_embeddings + model.position_offset) * model.hidden_size
    if model.position == "relative":
        # one table of buckets x heads for each stack, held by its first layer (T5)
        stacks = 2 if model.num_encoder_layers else 1
        tables = tables + stacks * model.relative_buckets * model.num_attention_heads
    tables = tables + model.type_vocab_size * model.hidden_size
    b.tensor("rows", tokens * width / b.cut)
    reduced = tokens * width * b.width
    look_up = (Gather(tokens, width * b.width),)
    kind: CollectiveKind = "reduce-scatter" if partition.sequence_parallel else "all-reduce"
    exchange = (Collective(kind, "tensor", reduced),)
    b.add(
        Operator("embedding", (*look_up, *exchange), (), look_up, tables, ("input",), ("rows",), ("input",))
    )
    out = "rows"
    if width != model.hidden_size:
        out = linear(b, "embedding.projection", out, "projected", width, model.hidden_size)
    if model.embedding_norm:
        out = norm(b, "embedding.norm", out, "normed", model.normalization, bias=norm_has_bias(model))
    if model.dropout:
        elements = tokens * model.hidden_size / b.cut
        elementwise(b, "embedding.dropout", (out,), "dropped", elements, mask=elements)
    return b.build()


def _is_moe(model: Model, layer: int) -> bool:
    moe = model.moe
    if moe is None or layer < moe.first_dense_layers:
        return False
    return (
        layer - moe.first_dense_layers
    ) % moe.moe_layer_frequency == moe.moe_layer_offset % moe.moe_layer_frequency


def _window(model: Model, layer: int) -> float:
    window = model.sliding_window or model.attention_chunk_size
    if window is None:
        return np.inf
    pattern = model.sliding_window_pattern
    return np.inf if pattern and (layer + 1) % pattern == 0 else float(window)


def _name(moe: bool, window: float) -> str:
    kind = "MoE layer" if moe else "layer"
    return kind if np.isinf(window) else f"{kind}, window {window:.0f}"


def _of_rank(tokens: Numeric, partition: Partition) -> Numeric:
    return tokens / partition.context if partition.cuts_context else tokens


def _decoder_tokens(model: Model, shape: Shape) -> Numeric:
    if model.family == "encoder-decoder":
        return shape.batch * (1 if shape.phase == "decode" else (shape.target or 1))
    return shape.batch * shape.sequence
