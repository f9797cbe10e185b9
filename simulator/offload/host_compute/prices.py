"""What each layer of a pass costs, on the accelerators and on the CPUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from simulator.cost import Parts, host_product_time
from simulator.graph import (
    Attention,
    Block,
    Matmul,
    ModelGraph,
    Operator,
    Partition,
    Shape,
    Work,
    build,
)
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Price
from simulator.offload.host_compute.experts import Load, held, hits, host_load
from simulator.offload.host_compute.plan import Plan
from simulator.specs import MemroofError

ROUTED = ("moe.dispatch", "moe.up", "moe.activation", "moe.down", "moe.combine")
"""Operators of the routed experts, by the beginning of their names."""
SHARED = "moe.shared"
AFTER = ("moe.add", "mlp.residual", "mlp.post_norm")
"""What follows the experts of a layer."""
REGIONS = 3
"""Parallel regions of a layer's routed experts on CPUs: gate and up together, activation and its cast, down and the sum
over experts."""
ROUTE_BYTES = 8.0
"""Expert and weight of one of a token's experts."""


@dataclass(frozen=True, slots=True)
class HostWork:
    """Work of the CPUs: seconds alone, bytes of DRAM that it reads [B], FLOP."""

    time: float
    size: float
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerPrice:
    """One layer (or the embedding, or the head) in one pass."""

    name: str
    before: Price
    """On the accelerators, up to the experts; all of it where there are none."""
    shared: Price
    routed: Price
    """The share of the routed experts on the accelerators; all of them where weights are streamed."""
    after: Price
    now: HostWork | None
    """Routed experts on CPUs whose output this layer waits for; of a layer on CPUs, all of it."""
    later: HostWork | None
    """Those that the next layer waits for."""
    streamed: float
    """Weights that come in from DRAM, on all accelerators together [B]."""
    sent: float
    """Inputs of the experts on CPUs [B]."""
    returned: float
    """Their outputs [B]."""
    whole: bool
    """Whether the CPUs compute all of it."""


@dataclass(frozen=True, slots=True)
class PassPrice:
    """The layers of one pass, embedding first and head last, and the tensors that it holds on an accelerator [B]."""

    layers: tuple[LayerPrice, ...]
    workspace: float
    hidden: float
    """Hidden states between two layers [B]."""


def price_pass(plan: Plan, shape: Shape) -> PassPrice:
    """Price a pass through all layers."""
    partition = Partition(tensor=plan.tensor_parallel)
    on_gpu = build(plan.model, shape, partition, numerics=plan.on_gpu)
    on_host = build(plan.model, shape, numerics=plan.on_host)
    pricing = _Pricing(plan, shape)
    layers = [pricing.end(on_gpu, on_host, first=True)]
    moe = 0
    known: dict[tuple[int, float, bool], LayerPrice] = {}
    for number, index in enumerate(on_gpu.layers):
        here = pricing.here(moe)
        has_experts = any(op.expert for op in on_gpu.blocks[index].operators)
        last = number == len(on_gpu.layers) - 1
        key = (index, here if has_experts else 0.0, last)
        if number < plan.host_layers:
            key = (-1 - index, 0.0, False)
        if key not in known:
            known[key] = (
                pricing.on_cpus(on_host.blocks[index], on_gpu.blocks[index])
                if number < plan.host_layers
                else pricing.layer(on_gpu.blocks[index], on_host.blocks[index], here, last=last)
            )
        layers.append(known[key])
        moe += has_experts
    layers.append(pricing.end(on_gpu, on_host, first=False))
    workspace = max(block.live_bytes() for block, _ in on_gpu.all_blocks) if plan.place.accelerators else 0.0
    return PassPrice(tuple(layers), workspace, pricing.hidden)


class _Pricing:
    def __init__(self, plan: Plan, shape: Shape) -> None:
        self.plan, self.shape = plan, shape
        self.tokens = float(shape.batch) * float(shape.sequence)
        self.hidden = self.tokens * plan.model.hidden_size * plan.on_gpu.activation_bytes
        moe = plan.model.moe
        self.moe = moe
        self.moe_layers = 0
        if moe is not None:
            graph = build(plan.model, Shape(1, 1, 1, "decode"), numerics=plan.on_gpu)
            self.moe_layers = sum(
                any(op.expert for op in graph.blocks[index].operators) for index in graph.layers
            )
        self.streams = plan.strategy.prefill == "streamed" and shape.phase == "prefill"
        self.launch = plan.strategy.launches * plan.strategy.launch_time / plan.model.num_hidden_layers

    def here(self, layer: int) -> float:
        """Share of the experts of the n-th layer that has any which lie on the accelerators."""
        strategy = self.plan.strategy
        return held(strategy.expert_placement or "uniform", strategy.gpu_experts, layer, self.moe_layers)

    def end(self, on_gpu: ModelGraph, on_host: ModelGraph, *, first: bool) -> LayerPrice:
        """Embedding or head: where the first or the last layer is."""
        plan = self.plan
        count = plan.model.num_hidden_layers
        name = "embedding" if first else "head"
        cpus = plan.host_layers > 0 if first else plan.host_layers == count
        block = (on_host if cpus else on_gpu).embedding if first else (on_host if cpus else on_gpu).head
        if cpus:
            return self.in_place(block)
        price = self.price(block.operators)
        return LayerPrice(name, price, _nothing(), _nothing(), _nothing(), None, None, 0.0, 0.0, 0.0, False)

    def layer(self, block: Block, host_block: Block, here: float, *, last: bool) -> LayerPrice:
        """A layer whose routed experts, if it has any, lie here and there."""
        routed = [op for op in block.operators if op.name.startswith(ROUTED)]
        shared = [op for op in block.operators if op.name.startswith(SHARED)]
        after = [op for op in block.operators if op.name.startswith(AFTER)] if routed else []
        apart = {op.name for op in (*routed, *shared, *after)}
        before = self.price([op for op in block.operators if op.name not in apart], launched=True)
        strategy = self.plan.strategy
        if not routed or self.moe is None:
            return LayerPrice(
                block.name, before, _nothing(), _nothing(), _nothing(), None, None, 0.0, 0.0, 0.0, False
            )
        if strategy.placement == "layers":
            everything = self.price([*shared, *routed, *after])
            return LayerPrice(
                block.name, before, _nothing(), everything, _nothing(), None, None, 0.0, 0.0, 0.0, False
            )
        hit = hits(strategy.expert_placement or "uniform", here, strategy.expert_skew, self.moe.num_experts)
        all_here = self.price(routed)
        stored = self.expert_bytes(host_block) * (1.0 - here)
        if self.streams:
            return LayerPrice(
                block.name, before, self.price(shared), all_here, self.price(after), None, None, stored, 0.0,
                0.0, False,
            )  # fmt: skip
        load = host_load(self.tokens, self.moe.num_experts_per_tok, self.moe.num_experts, here, hit)
        delayed = 0.0
        if self.shape.phase == "decode" and not last and load.copies:
            delayed = min(strategy.deferred_experts * self.tokens / load.copies, 1.0 - 1e-9)
        now = self.experts(load, 1.0 - delayed, called=True)
        later = self.experts(load, delayed, called=False) if delayed else None
        sent = self.hidden + self.tokens * self.moe.num_experts_per_tok * ROUTE_BYTES
        some = load.copies > 0.0
        return LayerPrice(
            block.name, before, self.price(shared), Price(all_here.rows * hit), self.price(after),
            now if some else None, later, 0.0, sent * some, self.hidden * some, False,
        )  # fmt: skip

    def experts(self, load: Load, share: float, *, called: bool) -> HostWork:
        """Return a share of the routed experts on the CPUs, each with all of its tokens."""
        plan, moe = self.plan, self.moe
        assert moe is not None
        matrices = 3 if plan.model.gated_mlp else 2
        weights = matrices * plan.model.hidden_size * moe.moe_intermediate_size
        flops = 2.0 * load.copies * share * weights
        size = load.active * share * weights * plan.on_host.weight_bytes
        size += load.copies * share * 2.0 * (plan.model.hidden_size + moe.moe_intermediate_size) * 2.0
        parts = host_product_time(
            flops, size, load.rows, plan.kernels, plan.sockets, rate=plan.rate, operators=REGIONS
        )
        return HostWork(float(parts.time) + called * plan.kernels.call_latency, size, flops)

    def expert_bytes(self, block: Block) -> float:
        """Weights of all routed experts of a layer as they lie in DRAM [B]."""
        return (
            sum(float(op.parameters) for op in block.operators if op.expert) * self.plan.on_host.weight_bytes
        )

    def on_cpus(self, block: Block, on_gpu: Block) -> LayerPrice:
        """A layer that the CPUs compute as a whole, or whose weights are streamed to an accelerator for a prompt."""
        plan = self.plan
        if self.streams:
            size = float(block.parameters) * plan.on_host.weight_bytes
            return LayerPrice(
                block.name, _nothing(), _nothing(), self.price(on_gpu.operators), _nothing(), None, None, size,
                0.0, 0.0, False,
            )  # fmt: skip
        return self.in_place(block)

    def in_place(self, block: Block) -> LayerPrice:
        """A layer, the embedding or the head on the CPUs."""
        works = [work for op in block.operators for work in op.forward]
        parts = [self.host_parts(work) for work in works]
        time = sum(float(np.max(part.time)) for part in parts)
        size = sum(float(np.max(_traffic(work))) for work in works)
        flops = sum(float(np.max(work.flops)) for work in works)
        return LayerPrice(
            block.name, _nothing(), _nothing(), _nothing(), _nothing(), HostWork(time, size, flops), None, 0.0,
            0.0, 0.0, True,
        )  # fmt: skip

    def host_parts(self, work: Work) -> Parts:
        """One work on all sockets: products by their kernels, attention and the rest by a roofline."""
        plan = self.plan
        kernels, sockets, rate = plan.kernels, plan.sockets, plan.rate
        if isinstance(work, Matmul):
            return host_product_time(work.flops, _traffic(work), work.m, kernels, sockets, rate=rate)
        attends = isinstance(work, Attention)
        plain = kernels.model_copy(
            update={
                "memory_efficiency": plan.host.calibration.decode_attention.memory_efficiency
                if attends
                else 1.0,
                "vector_efficiency": plan.host.calibration.attention.peak_efficiency if attends else 1.0,
                "matrix_efficiency": None,
                "exposed": 0.0,
            }
        )
        return host_product_time(work.flops, _traffic(work), 1.0, plain, sockets, rate=rate)

    def price(self, operators: Iterable[Operator], *, launched: bool = False) -> Price:
        """Seconds of some operators on the accelerators, no shorter than their launches where those are not captured."""
        total = self.plan.cost.total((work for op in operators for work in op.forward), self.plan.spans)
        row = np.zeros(len(COLUMNS))
        for name, seconds in (*total.by_bound.items(), *total.by_class.items()):
            column = "host link" if str(name).endswith("link") else str(name)
            if column not in COLUMNS:
                raise MemroofError(f"no column for time bound by {name}")
            row[list(COLUMNS).index(column)] += float(np.max(seconds))
        if launched:
            idle = self.launch - float(row[: len(BOTTLENECKS)].sum())
            if idle > 0.0:
                row[COLUMNS.index("latency")] += idle
                row[len(COLUMNS) - 1 - COLUMNS[::-1].index("host")] += idle
        return Price(row[None, :])


def _traffic(work: Work) -> float:
    """Bytes of DRAM that a work reads and writes; of caches and weights, what it needs [B]."""
    return float(np.max(work.bytes))


def _nothing() -> Price:
    return Price(np.zeros((1, len(COLUMNS))))
