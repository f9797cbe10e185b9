"""What each layer costs and holds: seconds in prefill and in every decode step, bytes of weights, cache and workspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.cost import ALONE, CostModel, peak_flops, stream_time
from simulator.graph import Attention, Block, Operator, Shape, Work, build
from simulator.offload.columns import COLUMNS, Price, Rows
from simulator.offload.tiers import Host
from simulator.offload.zigzag.formats import Formats
from simulator.specs import MemroofError, Model, ZigzagWorkload

WIDENED_BYTES = 4.0
"""Bytes of a value in fp32."""
WIDENED_PASSES = 3.0
"""Passes of fp32 values over the DRAM: the line that a store misses is read (write-allocate), then written, then read again."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is streamed and computed at once: the embedding, a layer or the head, for one GPU batch."""

    name: str
    weights: float
    """Bytes that computing it needs (of a tied head: the table, which the embedding keeps)."""
    stored: float
    """Bytes that it keeps for itself."""
    prefill: Price
    """One row."""
    before: Price
    """Decode steps up to the attention core; of a unit without a cache: all of it."""
    attention: Price
    """The attention core of decode steps, for the sequences that attend on the accelerator."""
    after: Price
    host: Price | None
    """The attention core on the CPU, for the other sequences; None where nothing attends there."""
    host_bytes: Rows
    """DRAM traffic of that in each decode step [B]."""
    query_bytes: float
    """Queries of one decode step of a sequence [B]."""
    output_bytes: float
    """Attention output of one decode step of a sequence [B]."""
    token_bytes: float
    """Cache of one token of one sequence [B]."""
    window: float
    """Tokens of a sequence that the cache keeps at most."""
    workspace: tuple[float, float]
    """Most bytes of tensors alive at once, in prefill and in decode."""

    @property
    def decode(self) -> Price:
        """Decode steps on the accelerator alone."""
        return self.before + self.attention + self.after

    def cache_bytes(self, tokens: float) -> float:
        """Cache of one sequence of ``tokens`` [B]."""
        return self.token_bytes * min(tokens, self.window)


def price_units(
    model: Model,
    workload: ZigzagWorkload,
    formats: Formats,
    cost: CostModel,
    *,
    fused: bool,
    host: Host | None,
    host_share: float,
    widened: bool,
    split: bool = False,
) -> tuple[tuple[Unit, ...], tuple[int, ...]]:
    """Return the distinct units of a model, and their order: embedding, layers, head.

    Parameters
    ----------
    model, workload : Model, ZigzagWorkload
        What is generated.
    formats : Formats
        Of products, and of weights and cache as they are stored.
    cost : CostModel
        Of the accelerator.
    fused : bool
        Whether prefill attention is one kernel.
    host : Host, optional
        The CPUs; needed where ``host_share`` is above 0.
    host_share : float
        Share of the sequences whose decode attention the CPUs compute.
    widened : bool
        Whether the CPUs write the cache in fp32 before they use it.
    split : bool
        Whether attention and MLP of a layer are two units.
    """
    numerics = formats.numerics
    batch, steps = workload.batch, workload.output - 1
    contexts = workload.prompt + np.arange(max(steps, 1), dtype=np.float64)
    prefill = build(
        model, Shape(batch, workload.prompt, 0, "prefill"), numerics=numerics, fused_attention=fused
    )
    decode = build(model, Shape(batch, 1, contexts, "decode"), numerics=numerics)
    pricing = _Pricing(cost, formats, host, host_share, widened, batch, workload.prompt, contexts)
    table = model.vocab_size * (model.embedding_size or model.hidden_size) if model.tie_word_embeddings else 0
    parts = [
        list(zip(cut_layer(first), cut_layer(later), strict=True)) if split else [(first, later)]
        for first, later in zip(prefill.blocks, decode.blocks, strict=True)
    ]
    units = [pricing.unit(prefill.embedding, decode.embedding, 0.0)]
    starts = []
    for pairs in parts:
        starts.append(range(len(units), len(units) + len(pairs)))
        units += [pricing.unit(first, later, 0.0) for first, later in pairs]
    units.append(pricing.unit(prefill.head, decode.head, table * formats.weight_bytes))
    layers = [index for layer in prefill.layers for index in starts[layer]]
    return tuple(units), (0, *layers, len(units) - 1)


def cut_layer(block: Block) -> tuple[Block, ...]:
    """Return a layer as its attention and its MLP; as it is, where it has no cache or no MLP behind its attention."""
    cores = [i for i, operator in enumerate(block.operators) if operator.core]
    later = range(cores[-1] + 1, len(block.operators)) if cores and np.any(block.kv_width) else range(0)
    place = next((i for i in later if block.operators[i].name.startswith(("mlp.", "moe."))), None)
    if place is None:
        return (block,)
    first, second = block.operators[:place], block.operators[place:]
    between = next(name for name in second[0].inputs)
    attention = replace(block, name=f"{block.name} attention", operators=first)
    return attention, replace(block, name=f"{block.name} MLP", operators=second, input=between, kv_width=0)


class _Pricing:
    def __init__(
        self,
        cost: CostModel,
        formats: Formats,
        host: Host | None,
        share: float,
        widened: bool,
        batch: int,
        prompt: int,
        contexts: Rows,
    ) -> None:
        self.cost, self.formats, self.host, self.share, self.widened = cost, formats, host, share, widened
        self.batch, self.prompt, self.contexts, self.steps = batch, prompt, contexts, len(contexts)

    def unit(self, first: Block, later: Block, borrowed: float) -> Unit:
        """Price a unit; of a tied head, ``borrowed`` bytes are the embedding's."""
        formats, batch = self.formats, self.batch
        parameters, values = float(later.parameters), float(later.kv_width)
        stored, token = parameters * formats.weight_bytes, values * formats.kv_bytes
        before, core, after = _split(later.operators) if token else (later.operators, (), ())
        attention = [work for work in _works(core) if isinstance(work, Attention)]
        on_gpu = _scaled(_works(core), 1.0 - self.share)
        on_host = _scaled(attention, self.share)
        host, traffic = self._host(on_host) if on_host else (None, np.zeros(self.steps))
        window = float(later.kv_window)
        weights = formats.expand_weights(parameters + borrowed / formats.weight_bytes)
        cached = batch * values * np.minimum(self.contexts, window)
        prompted, added = batch * values * self.prompt, batch * values
        # expanded copies live while the unit runs: its weights, and the cache of the batch that is attended to
        extra = formats.expanded_weights(parameters + borrowed / formats.weight_bytes)
        held = (
            first.live_bytes() + extra,
            later.live_bytes() + extra + formats.expanded_cache(float(np.max(cached))),
        )
        return Unit(
            later.name, stored + borrowed, stored,
            self._price([*weights, *_works(first.operators), *formats.narrow_cache(prompted)], 1),
            self._price([*weights, *_works(before)], self.steps),
            self._price([*formats.expand_cache(cached), *on_gpu], self.steps),
            self._price([*_works(after), *formats.narrow_cache(added)], self.steps), host, traffic,
            sum(float(w.heads * w.queries * w.qk_dim * w.activation_bytes) for w in attention),
            sum(float(w.heads * w.queries * w.v_dim * w.activation_bytes) for w in attention),
            token, window, held,
        )  # fmt: skip

    def _price(self, works: Sequence[Work], steps: int) -> Price:
        total = self.cost.total(works, ALONE)
        return _price({**total.by_bound, **total.by_class}, steps)

    def _host(self, works: list[Attention]) -> tuple[Price, Rows]:
        """Roofline of attention on the CPUs, over the DRAM that the cache lies in."""
        host = self.host
        if host is None:
            raise MemroofError("attention on the CPU needs a CPU that is wired to DRAM")
        time: Any = np.zeros(self.steps)
        traffic: Any = np.zeros(self.steps)
        for work in works:
            peak = host.count * peak_flops(host.device, "fp32" if self.widened else work.format, matrix=False)
            cache = _row(work.cache_bytes, self.steps)
            read = host_traffic(cache, work.kv_bytes, widened=self.widened)
            parts = stream_time(
                read, work.flops, peak=peak, bandwidth=host.channel.rate, memory_efficiency=1.0, base_latency=0.0,
            )  # fmt: skip
            time, traffic = time + parts.time, traffic + read
        rows = np.zeros((self.steps, len(COLUMNS)))
        # the bottleneck and the operator class bear the same name
        rows[:, [i for i, column in enumerate(COLUMNS) if column == "host"]] = time[:, None]
        return Price(rows), traffic


def host_traffic(cache: Any, kv_bytes: float, *, widened: bool) -> Any:
    """Return the DRAM traffic of attention on the CPU over ``cache`` bytes of keys and values [B].

    Read once where the kernel is fused; where values are widened first, each is read in its own width, written in fp32 (which
    reads the line first: ordinary stores allocate, Intel 64 and IA-32 Architectures Optimization Reference Manual, section on
    non-temporal stores) and read again.
    """
    return cache * (1.0 + WIDENED_PASSES * WIDENED_BYTES / kv_bytes) if widened else cache


def _split(
    operators: tuple[Operator, ...],
) -> tuple[tuple[Operator, ...], tuple[Operator, ...], tuple[Operator, ...]]:
    """Cut a block at its attention core."""
    places = [i for i, operator in enumerate(operators) if operator.core]
    first, last = places[0], places[-1] + 1
    return operators[:first], operators[first:last], operators[last:]


def _works(operators: Iterable[Operator]) -> list[Work]:
    return [work for operator in operators for work in operator.forward]


def _scaled(works: Iterable[Any], share: float) -> list[Any]:
    """Attention over a share of the sequences."""
    if share <= 0.0:
        return []
    return [
        replace(work, batch=work.batch * share) if isinstance(work, Attention) else work for work in works
    ]


def _price(parts: Mapping[Any, Any], steps: int) -> Price:
    rows = np.zeros((steps, len(COLUMNS)))
    for name, seconds in parts.items():
        if name in COLUMNS:  # a single accelerator waits for no link of its own
            rows[:, COLUMNS.index(name)] = seconds
    return Price(rows)


def _row(value: Any, steps: int) -> Rows:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (steps,))
