"""Time of one iteration of one tensor-parallel rank.

Linear layers, norms, collectives and the head depend only on how many tokens (or sequences) an iteration holds: they
are priced for a page of token counts in one pass and looked up. Attention depends on contexts and is priced for each
iteration, or for a whole run of decode steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from simulator.cost import BOUNDS, Cost, CostModel
from simulator.graph import (
    Attention,
    Block,
    Collective,
    Elementwise,
    Matmul,
    ModelGraph,
    Numeric,
    Numerics,
    Operator,
    Partition,
    Shape,
    Work,
    build,
)
from simulator.graph.build import LOGIT_BYTES
from simulator.serving.iteration import Steps
from simulator.serving.workload import Floats, Integers
from simulator.specs import OPERATOR_CLASSES, Model, OperatorClass, Span
from simulator.strategy import Bottleneck

ReduceKernel = Literal["library", "pull", "push"]

ACTIVATION_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of a quantised input element, with the scales of 16 elements in NVFP4."""
PAGE = 512
"""Token counts that are priced in one pass."""
FLOPS = len(OPERATOR_CLASSES) * len(BOUNDS)
"""Place of FLOPs in an account, after the seconds by operator class and bound; memory traffic comes next."""
TRAFFIC = FLOPS + 1
HOST = OPERATOR_CLASSES.index("host") * len(BOUNDS) + BOUNDS.index("latency")
_SIZE = TRAFFIC + 1


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of a run by operator class and by what binds, FLOPs and bytes of memory traffic of one GPU."""

    by_class: dict[OperatorClass, float]
    by_bottleneck: dict[Bottleneck, float]
    flops: float
    traffic: float

    @property
    def seconds(self) -> float:
        """All of it [s]."""
        return sum(self.by_class.values())


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
    ) -> None:
        self.model, self.numerics, self.cost, self.span, self.host = model, numerics, cost, span, host
        self.all_reduce, self.wide_ends = all_reduce, wide_ends
        self.partition = Partition(tensor_parallel)
        prefill, decode = self._graph(Shape(1, 2, 2, "prefill")), self._graph(Shape(1, 1, 3, "decode"))
        self._shared = _names(prefill) & _names(decode)
        self._prefill_attention, self._decode_attention = _attentions(prefill), _attentions(decode)
        self._decode_slopes = {attention: _slopes(attention) for attention in self._decode_attention}
        self._tokens = _Table(lambda n: self._priced(self._layers("prefill", n, True)))
        self._heads = _Table(lambda n: self._priced(self._head(n)))
        self._prefill_only = _Table(lambda n: self._priced(self._layers("prefill", n, False)))
        self._decode_only = _Table(lambda n: self._priced(self._layers("decode", n, False)))
        self._expands = bool(_names(prefill) - self._shared)
        self._absorbs = bool(_names(decode) - self._shared)

    def decode(self, contexts: Integers, steps: int) -> Steps:
        """Price ``steps`` iterations of the same sequences, whose contexts grow by a token in each."""
        batch = len(contexts)
        fixed = self._fixed(batch, batch, 0, batch)
        varying = self._decode_steps(contexts, steps)
        seconds = np.full(steps, float(fixed[:FLOPS].sum()))
        for part, values in varying:
            if part < FLOPS:
                seconds = seconds + values
        return Steps(seconds, fixed, tuple(varying))

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, sampled: int) -> Steps:
        """Price an iteration of prompt pieces (``new`` tokens after ``cached``) beside decodes after ``contexts``."""
        batch, keys = len(contexts), cached + new
        fixed = self._fixed(int(new.sum()) + batch, sampled, int(keys.sum()), batch)
        for attention, count in self._prefill_attention.items():
            work = _together(attention, new, keys)
            _charge_one(fixed, self.cost.price(work), count)
            fixed[FLOPS] += work.flops * count
            fixed[TRAFFIC] += work.bytes * count
        for attention, count in self._decode_attention.items() if batch else ():
            seen = float(np.minimum(contexts + 1, attention.window).mean())
            _charge_one(fixed, self.cost.price(_sized(attention, batch, 1, seen)), count)
            for place, offset, slope in self._decode_slopes[attention]:
                fixed[place] += (batch * count) * (offset + slope * seen)
        return Steps(np.array([fixed[:FLOPS].sum()]), fixed)

    def account(self, vector: Floats) -> Account:
        """Read an account: seconds by operator class and by bottleneck."""
        table = vector[:FLOPS].reshape(len(OPERATOR_CLASSES), len(BOUNDS))
        by_class: dict[OperatorClass, float] = {
            name: float(row.sum()) for name, row in zip(OPERATOR_CLASSES, table, strict=True) if row.any()
        }
        host = OPERATOR_CLASSES.index("host")
        kernels = np.delete(table, host, axis=0).sum(axis=0).tolist()
        link: Bottleneck = "network" if len(self.span.tiers) > 1 else "tensor-parallel link"
        named: list[tuple[Bottleneck, float]] = [
            ("compute", kernels[0]), ("memory", kernels[1]), (link, kernels[2]), ("latency", kernels[3]),
            ("host", float(table[host].sum())),
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
        if not self.wide_ends:
            return float(graph.weight_bytes)
        ends = sum(float(op.parameters) for block in (graph.embedding, graph.head) for op in block.operators)
        narrowed = max(0.0, self.numerics.activation_bytes - self.numerics.weight_bytes)
        return float(graph.weight_bytes) + ends * narrowed

    def workspace_bytes(self, tokens: int, sequences: int) -> float:
        """Activations alive at once in the largest iteration: ``tokens`` in the layers, ``sequences`` at the head [B]."""
        layers = self._graph(Shape(1, tokens, 0, "prefill"))
        blocks = (layers.embedding, *layers.blocks)
        head = self._graph(Shape(sequences, 1, 0, "prefill")).head
        gathered = sequences * self.model.vocab_size * LOGIT_BYTES if self.partition.tensor != 1 else 0.0
        return max(*(_alive(block) for block in blocks), _alive(head) + gathered)

    def _fixed(self, tokens: int, sampled: int, keys: int, decoding: int) -> Floats:
        fixed = self._tokens[tokens] + self._heads[sampled]
        if self._expands and keys:
            fixed = fixed + self._prefill_only[keys]
        if self._absorbs and decoding:
            fixed = fixed + self._decode_only[decoding]
        fixed[HOST] += self.host
        return fixed

    def _decode_steps(self, contexts: Integers, steps: int) -> list[tuple[int, Floats]]:
        batch = len(contexts)
        grown = np.arange(1.0, steps + 1.0)
        mean = (float(contexts.sum()) + batch * grown) / batch
        charges: list[tuple[int, Floats]] = []
        for attention, count in self._decode_attention.items():
            keys: Floats = mean
            if np.isfinite(attention.window) and contexts.max() + steps > attention.window:
                keys = np.minimum(contexts[:, None] + grown, attention.window).mean(axis=0)
            charges += _charges(self.cost.price(_sized(attention, batch, 1, keys)), count, steps)
            for place, offset, slope in self._decode_slopes[attention]:
                charges.append((place, (batch * count) * (offset + slope * keys)))
        return charges

    def _graph(self, shape: Shape) -> ModelGraph:
        return build(self.model, shape, self.partition, self.numerics)

    def _layers(self, phase: Any, tokens: Floats, shared: bool) -> Iterable[tuple[Work, int]]:
        """Work of embedding and layers that depends on the count of tokens alone, of operators of both phases or one."""
        shape = Shape(1, tokens, 0, "prefill") if phase == "prefill" else Shape(tokens, 1, 0, "decode")
        for block, count in self._graph(shape).all_blocks[:-1]:
            for operator in block.operators:
                if (operator.name in self._shared) == shared:
                    works = (work for work in operator.forward if not isinstance(work, Attention))
                    yield from ((_narrowed(work), count) for work in works)

    def _head(self, sequences: Floats) -> Iterable[tuple[Work, int]]:
        """Norm and logits of the sequences that sample, the gather of the logits, and softmax with sampling."""
        for operator in self._graph(Shape(sequences, 1, 0, "prefill")).head.operators:
            if operator.name != "loss":
                yield from ((self._widened(work), 1) for work in operator.forward)
        logits = sequences * self.model.vocab_size * LOGIT_BYTES
        yield Collective("all-gather", "tensor", logits), 1
        yield Elementwise(2.0 * logits, logits), 1

    def _widened(self, work: Work) -> Work:
        """Return a product of the head in 16 bits: engines quantise layers alone."""
        if isinstance(work, Matmul) and self.wide_ends and self.numerics.weight_bytes < 2.0:
            return replace(work, format="bf16", right_bytes=2.0)
        return work

    def _priced(self, works: Iterable[tuple[Work, int]]) -> Floats:
        table = np.zeros((PAGE, _SIZE))
        for work, count in works:
            if isinstance(work, Collective):
                if work.axis == "tensor" and self.span.size > 1:
                    work = replace(work, kernel=self.all_reduce)
                    _charge_page(table, self.cost.price(work, self.span), 0.0, 0.0, count)
            else:
                _charge_page(table, self.cost.price(work), work.flops, work.bytes, count)
        return table


def _narrowed(work: Work) -> Work:
    """Read the input of a product in 8 or 4 bits as it is quantised by the norm, activation or attention before it.

    Engines fuse the quantisation into these kernels (vLLM's and TensorRT-LLM's fusion passes).
    """
    if isinstance(work, Matmul) and work.format in ACTIVATION_BYTES:
        return replace(work, left_bytes=ACTIVATION_BYTES[work.format])
    return work


class _Table:
    """Rows of accounts by token count, priced a page at a time when first asked for."""

    def __init__(self, price: Callable[[Floats], Floats]) -> None:
        self._price = price
        self._pages: dict[int, Floats] = {}

    def __getitem__(self, count: int) -> Floats:
        page, row = divmod(count, PAGE)
        if page not in self._pages:
            numbers = np.arange(page * PAGE, (page + 1) * PAGE, dtype=float)
            table = self._price(np.maximum(numbers, 1.0))
            if not page:
                table[0] = 0.0
            self._pages[page] = table
        prices: Floats = self._pages[page][row]
        return prices


def _names(graph: ModelGraph) -> set[str]:
    return {op.name for block in (graph.embedding, *graph.blocks) for op in block.operators}


def _attentions(graph: ModelGraph) -> dict[Attention, int]:
    found: dict[Attention, int] = {}
    for block, count in zip(graph.blocks, graph.counts, strict=True):
        for work in block.works():
            if isinstance(work, Attention):
                found[work] = found.get(work, 0) + count
    return found


def _together(attention: Attention, new: Integers, keys: Integers) -> Attention:
    """Prompt pieces of several sequences as one kernel: as many equal pieces with the same query-key pairs in all."""
    count = len(new)
    if count == 1:
        return _sized(attention, 1, int(new[0]), int(keys[0]))
    queries, reach = float(new.mean()), float(keys.mean())
    if not np.isfinite(attention.window):
        pairs = float(np.mean(new * (keys - new) + new * (new + 1) / 2.0))
        reach = pairs / queries + (queries - 1.0) / 2.0
    return _sized(attention, count, queries, reach)


def _sized(a: Attention, batch: Numeric, queries: Numeric, keys: Numeric) -> Attention:
    # several times as fast as dataclasses.replace, and called for each iteration
    return Attention(
        batch, a.heads, a.kv_heads, queries, keys, a.qk_dim, a.v_dim, a.kv_width, a.causal, a.window, a.decode,
        a.backward, a.format, a.kv_bytes, a.activation_bytes, a.stores,
    )  # fmt: skip


def _slopes(attention: Attention) -> tuple[tuple[int, float, float], ...]:
    """FLOPs and bytes of one decode query as lines over the positions that it sees: (place, offset, slope)."""
    one, two = _sized(attention, 1, 1, 1.0), _sized(attention, 1, 1, 2.0)
    points = ((FLOPS, float(one.flops), float(two.flops)), (TRAFFIC, float(one.bytes), float(two.bytes)))
    return tuple((place, 2.0 * first - second, second - first) for place, first, second in points)


def _charge_one(account: Floats, cost: Cost, count: int) -> None:
    parts = (cost.compute, cost.memory, cost.link, cost.latency)
    account[_place(cost) + parts.index(max(parts))] += cost.time * count


def _charge_page(table: Floats, cost: Cost, flops: Numeric, traffic: Numeric, count: int) -> None:
    rows = len(table)
    table[np.arange(rows), _place(cost) + _bound(cost, rows)] += cost.time * count
    table[:, FLOPS] += flops * count
    table[:, TRAFFIC] += traffic * count


def _charges(cost: Cost, count: int, steps: int) -> list[tuple[int, Floats]]:
    time = np.full(steps, cost.time) if np.ndim(cost.time) == 0 else np.asarray(cost.time)
    time = time * count
    bound = _bound(cost, steps)
    first = int(bound[0])
    if (bound == first).all():
        return [(_place(cost) + first, time)]
    return [(_place(cost) + i, np.where(bound == i, time, 0.0)) for i in np.unique(bound).tolist()]


def _place(cost: Cost) -> int:
    return OPERATOR_CLASSES.index(cost.operator_class) * len(BOUNDS)


def _bound(cost: Cost, rows: int) -> Integers:
    """Index of the longest part, row by row; the first of them where they are equal."""
    longest: Any = cost.compute
    index = np.zeros(rows, np.int64)
    for place, part in enumerate((cost.memory, cost.link, cost.latency), start=1):
        if isinstance(part, np.ndarray) or part > 0.0:
            above = part > longest
            index = np.where(above, place, index)
            longest = np.where(above, part, longest)
    return index


def _alive(block: Block) -> float:
    """Largest sum of tensors that are alive at once while a block runs forward: made, and still to be read [B]."""
    operators: tuple[Operator, ...] = block.operators
    last: dict[str, int] = {}
    first: dict[str, int] = {block.input: 0}
    for index, operator in enumerate(operators):
        for name in (*operator.inputs, *operator.outputs):
            first.setdefault(name, index)
            last[name] = index
    return max(
        sum(float(block.tensors[n].size) for n in last if first[n] <= index <= last[n])
        for index in range(len(operators))
    )
