"""The head of a model: final norms, logits and the loss, fused or as kernels of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.graph.graph import Block, Numerics, Operator, Partition, Shape
from simulator.graph.layers import BlockBuilder, accumulated, linear, norm, norm_has_bias
from simulator.graph.work import Collective, Elementwise, Matmul, Numeric
from simulator.specs.model import Model

LOGIT_BYTES = 4.0
"""Logits and the loss are kept in fp32 (Korthikanti et al. 2022, section 4.3)."""


def output_head(
    model: Model,
    shape: Shape,
    tokens: Numeric,
    partition: Partition,
    numerics: Numerics,
    fused_loss: bool,
    wide: bool,
) -> Block:
    """The last block: final norms and pooler where the model has them, projection to the vocabulary, and the loss.

    ``tokens`` counts rows in training, where every position has a logit; a serving pass has one row per request of
    ``shape.batch``. ``fused_loss`` and ``wide`` are ``build``'s ``fused_loss`` and ``wide_loss``.
    """
    training = shape.phase == "forward"
    rows = tokens if training else shape.batch
    b = BlockBuilder("head", rows, model.hidden_size, partition, numerics.wide)
    b.tensor("input", rows * model.hidden_size / b.cut)
    source = "input"
    bias = norm_has_bias(model)
    stacks = 2 if model.num_encoder_layers else 1
    if model.final_norm:
        for stack in range(stacks):
            name = "encoder.final_norm" if stack else "final_norm"
            source = norm(b, name, source, f"normed{stack}", model.normalization, bias=bias)
    if model.pooler:
        linear(
            b, "pooler", source, "pooled", model.hidden_size, model.hidden_size, bias=True, rows=shape.batch
        )
    if model.lm_head_transform:
        source = linear(
            b, "head.transform", source, "transformed", model.hidden_size, model.hidden_size, bias=True
        )
        source = norm(b, "head.norm", source, "transformed.norm", model.normalization, bias=True)
    width = model.embedding_size or model.hidden_size
    if width != model.hidden_size:
        source = linear(b, "head.projection", source, "narrowed", model.hidden_size, width)
    _logits(b, model, source, width, rows, partition, fused_loss, wide)
    return b.build()


def _logits(
    b: BlockBuilder,
    model: Model,
    source: str,
    width: int,
    rows: Numeric,
    partition: Partition,
    fused_loss: bool,
    wide: bool,
) -> None:
    vocabulary, compute = model.vocab_size / b.tp, b.numerics.compute
    elements = rows * vocabulary
    logits = b.tensor("logits", elements)

    def product(m: Numeric, n: Numeric, k: Numeric, right: float, out: float) -> Matmul:
        return Matmul(m, n, k, 1, compute, b.width, right, out)

    weight = b.numerics.weight_bytes
    full = rows * width * b.width
    scattered = partition.sequence_parallel
    gather = (Collective("all-gather", "tensor", full),) if scattered else ()
    again = tuple(replace(work, hidden_by="input-gradient") for work in gather)
    reduce = Collective(
        "reduce-scatter" if scattered else "all-reduce", "tensor", full, hidden_by="weight-gradient"
    )
    parameters = (0 if model.tie_word_embeddings else vocabulary * width) + (
        vocabulary if model.lm_head_bias else 0
    )
    b.add(
        Operator(
            "logits", (*gather, product(rows, vocabulary, width, weight, LOGIT_BYTES if fused_loss and wide else b.width)),
            (product(rows, width, vocabulary, weight, b.width), reduce),
            (*again, *accumulated(b, width, vocabulary, rows)), parameters, (source,), (logits,), (source,),
        )
    )  # fmt: skip
    b.tensor("loss", rows, 4.0)
    # vocabulary-parallel cross entropy: maximum, sum of exponentials and the target's logit are reduced
    statistics = Collective("all-reduce", "tensor", 3.0 * rows * 4.0)
    if fused_loss:
        _fused_loss(b, logits, elements, statistics, wide=wide)
    else:
        _separate_loss(b, logits, elements, statistics)


def _fused_loss(
    b: BlockBuilder, logits: str, elements: Numeric, statistics: Collective, *, wide: bool
) -> None:
    """Two readings (maximum; exponentials and their sum) and a writing of probabilities if ``wide``, then one of each."""
    full = elements * (LOGIT_BYTES if wide else b.width)
    kept = b.tensor("probabilities", elements, LOGIT_BYTES) if wide else logits
    forward = Elementwise(2.0 * full, full if wide else 0.0, 5.0 * elements)
    backward = Elementwise(full, full, 2.0 * elements)
    outputs = ("loss", kept) if wide else ("loss",)
    b.add(Operator("loss", (forward, statistics), (backward,), (), 0, (logits,), outputs, (kept,)))


def _separate_loss(b: BlockBuilder, logits: str, elements: Numeric, statistics: Collective) -> None:
    """Kernels of their own, as Megatron-LM's ``vocab_parallel_cross_entropy`` and PyTorch's cross entropy have them.

    Conversion to fp32, maximum, difference, exponential, sum and quotient forward; product with the loss's gradient and
    conversion backward, in fp32. Where the vocabulary is cut, ranks exchange statistics between kernels, so that differences and
    exponentials are tensors of their own too.
    """
    full, half = elements * LOGIT_BYTES, elements * b.width
    cut = np.asarray(b.tp) > 1
    between: Numeric = elements * np.where(cut, 1.0, 0.0) if np.ndim(cut) else elements * float(cut)
    converted = b.tensor("logits.fp32", elements, LOGIT_BYTES)
    differences = b.tensor("differences", between, LOGIT_BYTES)
    exponentials = b.tensor("exponentials", between, LOGIT_BYTES)
    probabilities = b.tensor("probabilities", elements, LOGIT_BYTES)

    def add(
        name: str,
        forward: Elementwise,
        backward: tuple[Elementwise, ...],
        inputs: tuple[str, ...],
        output: str,
        *saves: str,
    ) -> None:
        reduced = (statistics,) if name == "loss.softmax" else ()
        b.add(Operator(name, (forward, *reduced), backward, (), 0, inputs, (output,), saves))

    add("loss.conversion", Elementwise(half, full), (Elementwise(full, half),), (logits,), converted)
    add(
        "loss.difference",
        Elementwise(2.0 * full, full, 2.0 * elements, kernels=2),
        (),
        (converted,),
        differences,
    )
    add("loss.exponential", Elementwise(full, full, elements), (), (differences,), exponentials)
    add(
        "loss.softmax", Elementwise(2.0 * full, full, 2.0 * elements, kernels=2),
        (Elementwise(full, full, 2.0 * elements),), (converted, differences, exponentials), probabilities, probabilities,
    )  # fmt: skip
    nothing = Elementwise(0.0, 0.0, kernels=0)
    add("loss", nothing, (nothing,), (probabilities,), "loss")
