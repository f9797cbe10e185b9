"""What is generated, where experts live and who computes them; illegal combinations are refused here, by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.graph import FORMAT_BYTES, Axis, ModelGraph, Numerics, Partition, Shape, build
from simulator.offload.columns import Rows
from simulator.offload.expert_cache.prices import ExpertPrices, Layer, channel_of, price_layers
from simulator.offload.expert_cache.routing import Replay, Router
from simulator.offload.tiers import DRAM, GPU, Channel, Tiers, find_tiers
from simulator.specs import MemroofError, Processor, Span
from simulator.specs.expert_cache_scenario import (
    ExpertCacheScenario,
    ExpertCacheStrategy,
    ExpertCacheWorkload,
)
from simulator.strategy import Setup

STEPS = 24
"""Decode steps of each request that are simulated; of longer outputs they are spread evenly over the contexts."""
BUFFERS = 2
"""Experts in flight to the accelerator or computed outside a slot: one is filled while the other is used."""


@dataclass(frozen=True, slots=True)
class Near:
    """Processors that compute experts in the memory that these lie in."""

    name: str
    device: Processor
    count: int
    channel: Channel
    """From the memory to them; its rate is what they sustain together."""


@dataclass(frozen=True)
class Plan:
    """Requests, layers with their prices, tiers, slots."""

    name: str
    strategy: ExpertCacheStrategy
    workload: ExpertCacheWorkload
    layers: tuple[tuple[Layer, ...], tuple[Layer, ...]]
    """Of the prefill, and of decode steps: embedding, layers and head in order."""
    experts: ExpertPrices
    tiers: Tiers
    fetch: Channel
    """From where experts live to the accelerator."""
    back: Channel
    near: Near | None
    moe_layers: int
    num_experts: int
    per_token: int
    tokens: tuple[int, ...]
    """Tokens of a sequence that each MoE layer sees in the prefill."""
    decoding: tuple[bool, ...]
    """Whether each MoE layer takes part in decode steps."""
    contexts: Rows
    """Tokens cached before each simulated decode step."""
    other_weights: float
    """Weights on each accelerator that are no routed expert's [B]."""
    kv_bytes: float
    workspace: float
    activation_bytes: float
    """Hidden state of a token [B]."""
    typical: ModelGraph
    """A decode step in the middle of the output (the prefill where there is none): whose kernels say how sure times are."""
    spans: dict[Axis, Span]
    encoder_layers: int

    @property
    def expert_bytes(self) -> float:
        """One expert on one accelerator [B]."""
        return self.whole_expert_bytes / self.strategy.tensor_parallel

    @property
    def whole_expert_bytes(self) -> float:
        """One expert [B]."""
        return self.experts.parameters * self.experts.numerics.weight_bytes

    @property
    def all_experts(self) -> int:
        """Routed experts of all layers."""
        return self.moe_layers * self.num_experts

    @property
    def buffers(self) -> int:
        """Experts that GPU memory has room for beside the slots."""
        if self.strategy.misses in ("home", "substitute"):
            return 0
        return self.num_experts if self.strategy.loads == "whole-layer" else BUFFERS

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Experts of each MoE layer that GPU memory has slots for."""
        strategy = self.strategy
        if strategy.policy == "none":
            return (0,) * self.moe_layers
        share = strategy.cached
        if share is None:
            free = self.tiers.pools[GPU].capacity - self.other_weights - self.kv_bytes - self.workspace
            free -= self.buffers * self.expert_bytes
            share = min(1.0, max(0.0, free / (self.all_experts * self.expert_bytes)))
        if strategy.policy == "layers":
            whole = int(share * self.moe_layers + 1e-9)
            return (self.num_experts,) * whole + (0,) * (self.moe_layers - whole)
        each, more = divmod(int(share * self.all_experts + 1e-9), self.moe_layers)
        return tuple(each + (layer < more) for layer in range(self.moe_layers))

    @property
    def cached_share(self) -> float:
        """Share of all routed experts that have a slot."""
        return sum(self.slots) / self.all_experts

    def router(self) -> Router | Replay:
        """Return a new source of routing, from the beginning."""
        routing = self.strategy.routing
        if routing.trace is not None:
            return Replay(routing.trace, self.moe_layers, self.num_experts)
        return Router(
            self.moe_layers, self.num_experts, self.per_token, skew=routing.skew, reuse=routing.reuse,
            seed=routing.seed,
        )  # fmt: skip


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its model and hardware, and price it.

    Raises
    ------
    MemroofError
        For a scenario of another kind, a model without routed experts, a home that the machine lacks or that does not
        compute where it should, or more accelerators than there are.
    """
    scenario = setup.scenario
    if not isinstance(scenario, ExpertCacheScenario):
        raise MemroofError(f"an expert cache cannot run a {scenario.kind} scenario of another method")
    strategy, workload, model = scenario.strategy, scenario.workload, setup.model
    if model.moe is None:
        raise MemroofError(f"an expert cache needs a mixture of experts; {model.name} has none")
    degree = strategy.tensor_parallel
    if degree > setup.hardware.size or setup.hardware.nodes != 1:
        raise MemroofError(
            f"strategy.tensor_parallel: {setup.hardware.name} has {setup.hardware.ranks_per_node} accelerators on each of "
            f"{setup.hardware.nodes} nodes; found {degree}, expected as many or fewer of one node"
        )
    tiers = find_tiers(setup.hardware, setup.cost.calibration, strategy.pinned)
    if strategy.experts not in tiers.pools:
        raise MemroofError(
            f"strategy.experts: {setup.hardware.name} has no {strategy.experts}; it has {', '.join(tiers.pools)}"
        )
    near = _near(setup, tiers, strategy)
    fetch, back = (
        _shared(setup, tiers, pair, strategy) for pair in ((strategy.experts, GPU), (GPU, strategy.experts))
    )
    numerics = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    widths = {key: getattr(strategy, key) for key in ("weight_precision", "expert_precision")}
    for key, held in widths.items():
        if held is not None and FORMAT_BYTES[held] > FORMAT_BYTES[strategy.precision]:
            raise MemroofError(f"strategy.{key}: {held} is wider than the products' {strategy.precision}")
    stored = FORMAT_BYTES[strategy.expert_precision or strategy.precision]
    issue = _issue_time(setup, strategy)
    experts = ExpertPrices(model, replace(numerics, weight_bytes=stored), setup.cost, issue, degree)
    steps = min(workload.output - 1, STEPS)
    contexts = workload.prompt + np.linspace(0.0, max(workload.output - 2, 0), max(steps, 1)).round()
    partition = Partition(tensor=degree)
    spans: dict[Axis, Span] = {"tensor": setup.hardware.span(degree), "expert": Span(())}
    joined = strategy.execution == "captured"
    target = 1 if model.family == "encoder-decoder" else None
    first = build(
        model, Shape(workload.batch, workload.prompt, 0, "prefill", target), partition, numerics,
        joined_projections=joined,
    )  # fmt: skip
    later_shape = Shape(workload.batch, 1, contexts, "decode")
    if model.family == "encoder-decoder":
        later_shape = replace(later_shape, sequence=workload.prompt)
    later = build(model, later_shape, partition, numerics, joined_projections=joined)
    middle = replace(later_shape, context=float(contexts[len(contexts) // 2]))
    typical = build(model, middle, partition, numerics, joined_projections=joined) if steps else first
    layers = (
        tuple(price_layers(first, setup.cost, spans, 1, issue)),
        tuple(price_layers(later, setup.cost, spans, len(contexts), issue)),
    )
    tokens, decoding = _tokens(first, workload)
    matrices = experts.parameters * model.moe.num_experts / degree
    moe_layers = len(tokens)
    others = float(first.parameters) - moe_layers * matrices
    held = float(first.kv_bytes(workload.prompt + workload.output)) * workload.batch
    return Plan(
        scenario.name, strategy, workload, layers, experts, tiers, fetch, back, near, moe_layers,
        model.moe.num_experts, model.moe.num_experts_per_tok, tokens, decoding, contexts,
        others * numerics.weight_bytes, held, max(block.live_bytes() for block, _ in first.all_blocks),
        model.hidden_size * numerics.activation_bytes, typical, spans,
        model.num_encoder_layers,
    )  # fmt: skip


def _issue_time(setup: Setup, strategy: ExpertCacheStrategy) -> float:
    """Return the host time of an operator [s]; 0 where kernels are captured."""
    if strategy.execution == "captured":
        return 0.0
    if strategy.issue_time is not None:
        return strategy.issue_time
    return float(setup.cost.kernels.constants["training"]["eager_operator"])


def _tokens(graph: ModelGraph, workload: ExpertCacheWorkload) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    tokens, decoding = [], []
    encodes = any(block.name.startswith("encoder") for block in graph.blocks)
    for index in graph.layers:
        block = graph.blocks[index]
        if any(op.expert for op in block.operators):
            decoder = not encodes or block.name.startswith("decoder")
            tokens.append(1 if encodes and decoder else workload.prompt)
            decoding.append(decoder)
    return tuple(tokens), tuple(decoding)


def _near(setup: Setup, tiers: Tiers, strategy: ExpertCacheStrategy) -> Near | None:
    """Return what computes in the memory that experts lie in; None where nothing is to."""
    if strategy.misses not in ("home", "balanced"):
        return None
    efficiency = setup.cost.calibration.transfer.efficiency or 1.0
    if strategy.experts == DRAM:
        if tiers.host is None:
            raise MemroofError(
                f"strategy.misses: {setup.hardware.name} has no CPU with DRAM of its own; use 'fetch'"
            )
        host = tiers.host
        return Near("cpu", host.device, host.count, host.channel)
    stores = tiers.pools[strategy.experts].stores
    owners = [e for store in stores for e in setup.hardware.machine.engines if e.name == store.owner]
    if len(owners) < len(stores):
        raise MemroofError(
            f"strategy.misses: nothing computes in the {strategy.experts} of {setup.hardware.name}; use 'fetch'"
        )
    links = [
        (
            f"{strategy.experts} ports" if len(stores) > 1 else stores[0].read.name,
            sum(s.read.bandwidth for s in stores),
        )
    ]
    return Near("near-data", owners[0].device, len(owners), channel_of("near-data", links, efficiency))


def _shared(setup: Setup, tiers: Tiers, pair: tuple[str, str], strategy: ExpertCacheStrategy) -> Channel:
    """Return what the first of some accelerators gets of a channel when all copy at once, each over its own."""
    channel, ranks = tiers.channels[pair], strategy.tensor_parallel
    if ranks > 1:
        others = [find_tiers(setup.hardware, setup.cost.calibration, 1.0, rank) for rank in range(1, ranks)]
        crossing = Counter(link for each in (tiers, *others) for link in each.channels[pair].links)
        links = tuple((name, width / crossing[name, width]) for name, width in channel.links)
        efficiency = channel.rate / min(width for _, width in channel.links)
        channel = replace(channel, links=links, rate=min(width for _, width in links) * efficiency)
    return replace(channel, rate=min(channel.rate, strategy.copy_rate or channel.rate))
