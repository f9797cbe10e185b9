"""Time of one iteration of one rank: of a whole replica, or of the layers of a pipeline stage.

Linear layers, norms, collectives and the head depend only on how many tokens (or sequences) an iteration holds: they
are priced for a page of token counts in one pass and looked up. Attention depends on contexts and is priced for each
iteration, or for a whole run of decode steps at once.

Where attention is data-parallel, the ranks of a stage hold as many tokens each, as equal shares of the same traffic do, and
the experts see those of all of them. With captured CUDA graphs an iteration is as long as that of the next captured count
of tokens; what runs eagerly takes no less than the host needs to issue its operators.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from simulator.cost import BOUNDS, CostModel
from simulator.graph import (
    Attention,
    Block,
    Collective,
    Elementwise,
    Matmul,
    ModelGraph,
    Numerics,
    Partition,
    Shape,
    Work,
    build,
)
from simulator.graph.head import LOGIT_BYTES
from simulator.serving.accounts import (
    BUBBLE,
    EXCHANGE,
    FETCH,
    FLOPS,
    HOST,
    PAGE,
    SIZE,
    TRAFFIC,
    Account,
    Charges,
    PageTable,
    charge_one,
    charge_page,
    charges,
)
from simulator.serving.attention_work import attentions, sized, slopes, together
from simulator.serving.experts import EXCHANGE_UNITS, ROUTED, Experts, cut
from simulator.serving.iteration import Steps
from simulator.serving.kv_compression import CacheChange
from simulator.serving.layout import Layout
from simulator.serving.quantisation import Scheme, paired_tile, products
from simulator.serving.workload import Floats, Integers
from simulator.specs import OPERATOR_CLASSES, MemroofError, Model, OperatorClass, Span
from simulator.strategy import Bottleneck

ReduceKernel = Literal["library", "pull", "push"]
ACTIVATION_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of a quantised input element, with the scales of 16 elements in NVFP4."""

SHARED_INPUT, GATE = "moe.shared.up", "moe.router"
"""Operators whose input is quantised for others, and that no recipe quantises."""
SHARED = frozenset((SHARED_INPUT, "moe.shared.activation", "moe.shared.down"))
BESIDE = 256
"""Tokens of an iteration up to which shared experts have a stream of their own (vLLM's threshold of its shared experts' stream;
SGLang's dual stream goes up to 1,024, TensorRT-LLM's as far as graphs are captured)."""


class StepPricer:
    """Prices iterations for a model on one rank of a tensor-parallel group; an :class:`~simulator.serving.iteration.Pricer`.

    Parameters
    ----------
    model : Model
        A decoder.
    numerics : Numerics
        Formats.
    tensor_parallel : int
        Ranks of the group.
    span : Span
        What the group spans.
    cost : CostModel
        Prices of operators.
    host : float
        Host time of an iteration that is not hidden [s].
    all_reduce : str
        Kernel of all-reduces over the group: ``library``, ``pull`` or ``push``.
    wide_ends : bool
        Whether embedding and logits stay as wide as activations where layers are quantised.
    layout : Layout, optional
        How attention and experts are cut, where that is more than tensor parallelism.
    layers : range, optional
        Layers of a pipeline stage; all if absent. The first stage has the embedding, the last the head.
    captured : tuple of int, optional
        Counts of tokens that CUDA graphs are captured for: an iteration runs in the next larger, and eagerly where there is
        none. If absent, everything is captured as it is.
    scheme : Scheme, optional
        How linear layers are quantised, where formats alone do not say it.
    change : CacheChange, optional
        What becomes of the KV cache, where it does not hold all keys and values.
    generates : bool
        Whether the head gives logits; else states are pooled.
    unquantized : tuple of str
        Operators whose products stay in 16 bits where the others are narrower.

    Raises
    ------
    MemroofError
        If the model has no such operator.
    """

    def __init__(
        self,
        model: Model,
        numerics: Numerics,
        tensor_parallel: int,
        span: Span,
        cost: CostModel,
        host: float,
        *,
        all_reduce: ReduceKernel = "library",
        wide_ends: bool = True,
        layout: Layout | None = None,
        layers: range | None = None,
        captured: tuple[int, ...] | None = None,
        scheme: Scheme | None = None,
        change: CacheChange | None = None,
        generates: bool = True,
        unquantized: tuple[str, ...] = (),
    ) -> None:
        self.model, self.numerics, self.cost, self.span, self.host = model, numerics, cost, span, host
        self.all_reduce, self.wide_ends = all_reduce, wide_ends
        self.scheme, self.change, self.generates = scheme, change, generates
        self.layout = layout or Layout(tensor_parallel, tensor_span=span)
        self.layers = range(model.num_hidden_layers) if layers is None else layers
        self.captured = None if captured is None else np.array(sorted(captured), np.int64)
        self.partition = Partition(tensor_parallel)
        self.experts = Experts(model, numerics, self.layout, cost, self.layers) if self.layout.apart else None
        self.unquantized = frozenset(unquantized)
        self._kept_wide = self.unquantized | {GATE}
        prefill, decode = self._graph(Shape(1, 2, 2, "prefill")), self._graph(Shape(1, 1, 3, "decode"))
        self._shared = _names(prefill) & _names(decode)
        if unknown := self.unquantized - _names(prefill) - _names(decode):
            known = ", ".join(sorted(name for name in _names(prefill) if name.startswith("attention.")))
            raise MemroofError(
                f"unquantized: {model.name} has no {min(unknown)!r}; its attention has {known}"
            )
        self._prefill_attention, self._decode_attention = attentions(prefill), attentions(decode)
        self._decode_slopes = {attention: slopes(attention) for attention in self._decode_attention}
        self._tokens = PageTable(
            lambda n: self._priced(self._layers("prefill", n, True)) + self._shared_experts(n)
        )
        self._heads = PageTable(lambda n: self._priced(self._head(n)))
        self._prefill_only = PageTable(lambda n: self._priced(self._layers("prefill", n, False)))
        self._decode_only = PageTable(lambda n: self._priced(self._layers("decode", n, False)))
        self._routed = PageTable(lambda n: self._priced(self._experts_of(n)))
        self._sent = PageTable(
            lambda n: self._exchanged(n, low_latency=self.layout.exchange == "low-latency")
        )
        self._sent_low = PageTable(lambda n: self._exchanged(n, low_latency=True))
        self._nothing = np.zeros(SIZE)
        self._expands = bool(_names(prefill) - self._shared)
        self._absorbs = bool(_names(decode) - self._shared)

    def decode(self, contexts: Integers, steps: int, queries: int = 1) -> Steps:
        """Price ``steps`` iterations of the same sequences, whose contexts grow by a token in each.

        Each sequence has ``queries`` tokens in every iteration, all of which are sampled after.
        """
        if queries != 1:
            return self._verify(contexts, steps, queries)
        batch = len(contexts)
        if self.layout.overlap and batch > 1:
            half = contexts[::2]
            fixed, sent = self._fixed(len(half), len(half), 0, len(half)), self._exchange(len(half), 0)
            return self._two_halves(fixed, tuple(self._decode_steps(half, steps)), sent, steps, 0)
        fixed = self._fixed(batch, batch, 0, batch) + self._exchange(self._padded(batch), 0)
        return self._issued(fixed, tuple(self._decode_steps(contexts, steps)), steps, batch)

    def _verify(self, contexts: Integers, steps: int, queries: int) -> Steps:
        tokens = len(contexts) * queries
        fixed = self._fixed(tokens, tokens, 0, tokens) + self._exchange(self._padded(tokens), 0)
        return self._issued(fixed, tuple(self._decode_steps(contexts, steps, queries)), steps, tokens)

    def mixed(
        self, new: Integers, cached: Integers, contexts: Integers, sampled: int, queries: int = 1
    ) -> Steps:
        """Price an iteration of prompt pieces (``new`` tokens after ``cached``) beside decodes after ``contexts``."""
        if queries != 1 and len(contexts):
            tokens, keys = int(new.sum()) + len(contexts) * queries, cached + new
            fixed = self._fixed(tokens, sampled, int(keys.sum()), len(contexts) * queries)
            self._charge_attention(fixed, new, keys, contexts[:0])
            varying = tuple(self._decode_steps(contexts, 1, queries))
            return self._issued(fixed + self._exchange(self._padded(tokens), len(new)), varying, 1, tokens)
        if self.layout.overlap:
            new, cached = _half_of(new, cached)
            contexts, sampled = contexts[::2], (sampled + 1) // 2
        tokens, keys = int(new.sum()) + len(contexts), cached + new
        fixed = self._fixed(tokens, sampled, int(keys.sum()), len(contexts))
        self._charge_attention(fixed, new, keys, contexts)
        if self.layout.overlap:
            return self._two_halves(fixed, (), self._exchange(tokens, len(new)), 1, len(new))
        return self._issued(fixed + self._exchange(self._padded(tokens), len(new)), (), 1, tokens)

    def _charge_attention(self, fixed: Floats, new: Integers, keys: Integers, contexts: Integers) -> None:
        batch = len(contexts)
        for attention, count in self._prefill_attention.items() if len(new) else ():
            work = together(attention, new, keys)
            charge_one(fixed, self.cost.price(work), count)
            fixed[FLOPS] += work.flops * count
            fixed[TRAFFIC] += work.bytes * count
        for attention, count in self._decode_attention.items() if batch else ():
            seen = float(np.minimum(contexts + 1, attention.window).mean())
            charge_one(fixed, self.cost.price(sized(attention, batch, 1, seen)), count)
            for place, offset, slope in self._decode_slopes[attention]:
                fixed[place] += (batch * count) * (offset + slope * seen)

    def _issued(self, fixed: Floats, varying: Charges, steps: int, tokens: int) -> Steps:
        """Add up the parts; where no captured graph holds the tokens, the host's time to issue operators is the least."""
        seconds = np.full(steps, float(fixed[:FLOPS].sum()))
        for part, values in varying:
            if part < FLOPS:
                seconds = seconds + values
        if self._eager(tokens):
            waited = np.maximum(self._issue_time - seconds, 0.0)
            seconds = seconds + waited
            varying = (*varying, (HOST, waited))
        return Steps(seconds, fixed, varying)

    def _two_halves(self, fixed: Floats, varying: Charges, sent: Floats, steps: int, prompts: int) -> Steps:
        """Two half batches: one computes while the other's tokens are exchanged, layer by layer, so that the longer binds.

        Makespan of two jobs that alternate between two stages, of L layers each: L·max(2c, 2d) + min(c, d), c and d a
        layer's computing and exchange. Normal kernels take their multiprocessors from the products.
        """
        normal = self.layout.exchange == "normal" or (self.layout.exchange == "auto" and prompts)
        slower = 1.0
        if normal:
            units = float(self.cost.device.compute.units)
            slower = units / (units - EXCHANGE_UNITS)
        compute = np.full(steps, float(fixed[:FLOPS].sum()))
        for part, values in varying:
            if part < FLOPS:
                compute = compute + values
        compute, exchange = compute * slower, float(sent[:FLOPS].sum())
        seconds = 2.0 * np.maximum(compute, exchange) + np.minimum(compute, exchange) / len(self.layers)
        charged = fixed.copy()
        charged[:FLOPS] *= slower
        both = tuple((part, values * (2.0 * slower if part < FLOPS else 2.0)) for part, values in varying)
        return Steps(seconds, 2.0 * charged, (*both, (EXCHANGE, seconds - 2.0 * compute)))

    def _exchange(self, tokens: int, prompts: int) -> Floats:
        if self.experts is None or not tokens:
            return self._nothing
        return (self._sent_low if self.layout.exchange == "auto" and not prompts else self._sent)[tokens]

    def _eager(self, tokens: int) -> bool:
        """Whether no captured graph holds an iteration of so many tokens."""
        return self.captured is not None and (not len(self.captured) or tokens > int(self.captured[-1]))

    def _padded(self, tokens: int) -> int:
        """Tokens of the captured graph that an iteration runs in; as many as it has where there is none."""
        if self.captured is None or self._eager(tokens):
            return tokens
        return int(self.captured[np.searchsorted(self.captured, tokens)])

    @cached_property
    def _issue_time(self) -> float:
        """What the host needs to issue the operators of an iteration one by one [s]."""
        graph = self._graph(Shape(1, 1, 3, "decode"))
        operators = sum(
            count * sum(1 for op in block.operators if op.forward) for block, count in graph.all_blocks
        )
        return operators * float(self.cost.kernels.constants["training"]["eager_operator"])

    def account(self, vector: Floats) -> Account:
        """Read an account: seconds by operator class and by bottleneck."""
        table = vector[:FLOPS].reshape(len(OPERATOR_CLASSES), len(BOUNDS))
        by_class: dict[OperatorClass, float] = {
            name: float(row.sum()) for name, row in zip(OPERATOR_CLASSES, table, strict=True) if row.any()
        }
        host = OPERATOR_CLASSES.index("host")
        kernels = np.delete(table, host, axis=0).sum(axis=0).tolist()
        experts, fetched = float(vector[EXCHANGE]), float(vector[FETCH])
        link: Bottleneck = "network" if len(self.span.tiers) > 1 else "tensor-parallel link"
        named: list[tuple[Bottleneck, float]] = [
            ("compute", kernels[0]), ("memory", kernels[1]), (link, kernels[2] - experts - fetched), ("latency", kernels[3]),
            ("host", float(table[host].sum())), ("expert-parallel link", experts), ("host link", fetched),
            ("bubble", float(vector[BUBBLE])),
        ]  # fmt: skip
        return Account(
            by_class, {n: s for n, s in named if s > 0.0}, float(vector[FLOPS]), float(vector[TRAFFIC])
        )

    def graph(self) -> ModelGraph:
        """The graph of one rank for one token."""
        return self._graph(Shape(1, 1, 0, "prefill"))

    @property
    def weight_bytes(self) -> float:
        """Weights of one rank [B]."""
        graph = self.graph()
        ends = sum(float(block.parameters) for block in self._ends(graph))
        if not self.generates and self._last:
            ends -= sum(float(op.parameters) for op in graph.head.operators if op.name == "logits")
        layers = sum(
            float(block.parameters) * count for block, count in zip(graph.blocks, graph.counts, strict=True)
        )
        if self.experts is not None:
            cut_alike = sum(
                float(block.expert_parameters) * count
                for block, count in zip(graph.blocks, graph.counts, strict=True)
            )
            layers += self.experts.parameters - cut_alike
        stored = self.numerics.weight_bytes
        kept = sum(
            float(operator.parameters) * count
            for block, count in zip(graph.blocks, graph.counts, strict=True)
            for operator in block.operators
            if operator.name in self._kept_wide
        )
        return (
            layers * stored
            + kept * max(2.0 - stored, 0.0)
            + ends * (max(stored, self.numerics.activation_bytes) if self.wide_ends else stored)
        )

    def workspace_bytes(self, tokens: int, sequences: int) -> float:
        """Activations alive at once in the largest iteration: ``tokens`` in the layers, ``sequences`` at the head [B]."""
        layers = self._graph(Shape(1, tokens, 0, "prefill"))
        blocks = (layers.embedding, *layers.blocks)
        largest = max(block.live_bytes(entering=True) for block in blocks)
        if not self._last:
            return largest
        head = self._graph(Shape(sequences, 1, 0, "prefill")).head
        gathered = sequences * self.model.vocab_size * LOGIT_BYTES if self.partition.tensor != 1 else 0.0
        return max(largest, head.live_bytes(entering=True) + gathered)

    def _fixed(self, tokens: int, sampled: int, keys: int, decoding: int) -> Floats:
        run = self._padded(tokens)
        fixed = self._tokens[run] + self._heads[sampled]
        if self.experts is not None:
            fixed = fixed + self._routed[run]
        if self._expands and keys:
            fixed = fixed + self._prefill_only[keys]
        if self._absorbs and decoding:
            fixed = fixed + self._decode_only[self._padded(decoding) if decoding == tokens else decoding]
        fixed[HOST] += self.host
        return fixed

    def _decode_steps(self, contexts: Integers, steps: int, queries: int = 1) -> list[tuple[int, Floats]]:
        batch = len(contexts)
        grown = np.arange(float(queries), steps + float(queries))
        mean = (float(contexts.sum()) + batch * grown) / batch
        found: list[tuple[int, Floats]] = []
        for attention, count in self._decode_attention.items():
            keys: Floats = mean
            if np.isfinite(attention.window) and contexts.max() + steps + queries - 1 > attention.window:
                keys = np.minimum(contexts[:, None] + grown, attention.window).mean(axis=0)
            found += charges(self.cost.price(sized(attention, batch, queries, keys)), count, steps)
            lines = self._decode_slopes[attention] if queries == 1 else slopes(attention, queries)
            for place, offset, slope in lines:
                found.append((place, (batch * count) * (offset + slope * keys)))
        return found

    def _graph(self, shape: Shape) -> ModelGraph:
        graph = build(self.model, shape, self.partition, self.numerics)
        if self.change is not None and self.change.changes:
            graph = self.change.applied(graph, prefill=shape.phase == "prefill")
        return cut(graph, self.layers)

    @property
    def _pairs_units(self) -> bool:
        """Whether the device multiplies 4-bit numbers with two units a tile: Blackwell with HBM, not its workstation chips."""
        device = self.cost.device
        return device.architecture == "blackwell" and "hbm" in device.memory

    @property
    def _last(self) -> bool:
        """Whether these layers end with the head."""
        return self.layers.stop == self.model.num_hidden_layers

    def _ends(self, graph: ModelGraph) -> tuple[Block, ...]:
        """Embedding and head, as far as they are here."""
        return (graph.embedding,) * (not self.layers.start) + (graph.head,) * self._last

    def _experts_of(self, tokens: Floats) -> Iterable[tuple[Work, int]]:
        """Work of routed experts, and the sum of their outputs where all ranks have the same tokens."""
        if self.experts is None:
            return
        graph = self.experts.graph(1.0)
        yield from ((_narrowed(work), count) for work, count in self.experts.works(tokens))
        if self.layout.data == 1:
            size = tokens * self.model.hidden_size * self.numerics.activation_bytes
            for block, count in zip(graph.blocks, graph.counts, strict=True):
                if any(operator.name in ROUTED for operator in block.operators):
                    yield Collective("all-reduce", "tensor", size), count

    def _exchanged(self, tokens: Floats, *, low_latency: bool) -> Floats:
        table = np.zeros((PAGE, SIZE))
        if self.experts is not None:
            for cost, count in self.experts.exchanges(tokens, low_latency=low_latency):
                # all of it is one bound, so that what stays exposed can be told apart
                table[:, EXCHANGE] += np.asarray(cost.time) * count
        return table

    def _layers(self, phase: Any, tokens: Floats, shared: bool) -> Iterable[tuple[Work, int]]:
        """Work of embedding and layers that depends on the count of tokens alone, of operators of both phases or one."""
        shape = Shape(1, tokens, 0, "prefill") if phase == "prefill" else Shape(tokens, 1, 0, "decode")
        for block, count in self._graph(shape).all_blocks[bool(self.layers.start) : -1]:
            for operator in block.operators:
                if self.experts is not None and operator.name in ROUTED:
                    continue
                if (operator.name in self._shared) == shared:
                    left_out: tuple[type[Work], ...] = (Attention,)
                    if operator.name in SHARED:
                        # partial sums of shared and routed experts are reduced together, with those of the routed ones
                        together = (Collective,) if self.layout.data == 1 else ()
                        left_out = (Attention, Matmul, Elementwise, *together)
                    works = (work for work in operator.forward if not isinstance(work, left_out))
                    yield from (
                        (kernel, count) for work in works for kernel in self._kernels(work, operator.name)
                    )

    def _shared_experts(self, tokens: Floats) -> Floats:
        """Price shared experts: with few tokens they run on a stream of their own beside the routed ones.

        Both take as long as the longer of them, and as their memory traffic together.
        """
        table = np.zeros((PAGE, SIZE))
        for block, count in self._graph(Shape(1, tokens, 0, "prefill")).all_blocks:
            own = [op for op in block.operators if op.name in SHARED]
            if not own:
                continue
            kernels = [
                kernel
                for operator in own
                for work in operator.forward
                if isinstance(work, Matmul | Elementwise)
                for kernel in self._kernels(work, operator.name)
            ]
            costs = [(kernel, self.cost.price(kernel)) for kernel in kernels]
            routed = [
                self.cost.price(_narrowed(work))
                for operator in block.operators
                if operator.name in ROUTED
                for work in operator.forward
                if not isinstance(work, Collective)
            ]
            alone = sum(np.asarray(cost.time) for _, cost in costs)
            beside = sum(np.asarray(cost.time) for cost in routed)
            traffic = sum(np.asarray(cost.memory) for cost in (*routed, *(cost for _, cost in costs)))
            exposed = np.maximum(np.maximum(alone - beside, traffic - beside), 0.0) / alone
            share = np.where(tokens <= BESIDE, np.minimum(exposed, 1.0), 1.0)
            for work, cost in costs:
                charge_page(table, replace(cost, time=cost.time * share), work.flops, work.bytes, count)
        return table

    def _kernels(self, work: Work, operator: str) -> tuple[Work, ...]:
        if operator in self._kept_wide:
            return (self._widened(work),)
        if self.scheme is not None and isinstance(work, Matmul):
            return products(work, self.scheme, self.cost)
        if not isinstance(work, Matmul) or work.format != "fp4" or work.grouped:
            return (_narrowed(work),)
        size = work.m * work.k * work.count
        # each thread loads 16 bytes (vllm-project/vllm, csrc/quantization/fp4/nvfp4_quant_kernels.cu)
        quantise = Elementwise(2.0 * size, ACTIVATION_BYTES["fp4"] * size, chained=True)
        if self._pairs_units:
            work = replace(work, tile=paired_tile(work.m), split_k=False)
        # the shared experts' input is quantised for the routed ones
        return (_narrowed(work),) if operator == SHARED_INPUT else (quantise, _narrowed(work))

    def _head(self, sequences: Floats) -> Iterable[tuple[Work, int]]:
        """Norm and logits of the sequences that sample, the gather of the logits, and softmax with sampling."""
        if not self._last:
            return
        unused = ("loss",) if self.generates else ("logits", "loss")
        for operator in self._graph(Shape(sequences, 1, 0, "prefill")).head.operators:
            if operator.name not in unused:
                # engines quantise layers alone
                yield from ((self._widened(work) if self.wide_ends else work, 1) for work in operator.forward)
        if not self.generates:
            return
        logits = sequences * self.model.vocab_size * LOGIT_BYTES
        yield Collective("all-gather", "tensor", logits), 1
        yield Elementwise(2.0 * logits, logits), 1

    def _widened(self, work: Work) -> Work:
        """Return a product in 16 bits."""
        if isinstance(work, Matmul) and self.numerics.weight_bytes < 2.0:
            return replace(work, format="bf16", left_bytes=2.0, right_bytes=2.0)
        return work

    def _priced(self, works: Iterable[tuple[Work, int]]) -> Floats:
        table = np.zeros((PAGE, SIZE))
        for work, count in works:
            if isinstance(work, Collective):
                if work.axis == "tensor" and self.span.size > 1:
                    work = replace(work, kernel=self.all_reduce)
                    charge_page(table, self.cost.price(work, self.span), 0.0, 0.0, count)
            else:
                charge_page(table, self.cost.price(work), work.flops, work.bytes, count)
        return table


def _narrowed(work: Work) -> Work:
    """Read the input of a product in 8 or 4 bits as it is quantised by the norm, activation or attention before it.

    Engines fuse the quantisation to 8 bits into these kernels (vLLM's and TensorRT-LLM's fusion passes); that to 4 bits with
    scales of 16 elements is a kernel of its own.
    """
    if isinstance(work, Matmul) and work.format in ACTIVATION_BYTES:
        return replace(work, left_bytes=ACTIVATION_BYTES[work.format])
    return work


def _half_of(new: Integers, cached: Integers) -> tuple[Integers, Integers]:
    """Return the larger half of prompt pieces; a single piece is cut in the middle, and its later half sees the most."""
    if len(new) != 1:
        return new[::2], cached[::2]
    return (new + 1) // 2, cached + new // 2


def _names(graph: ModelGraph) -> set[str]:
    return {op.name for block in (graph.embedding, *graph.blocks) for op in block.operators}
