"""From a scenario to what a replica is: its GPUs, formats, limits, prices and memory; illegal ones are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import peak_flops
from simulator.graph import Numerics, Shape, build
from simulator.serving.caching import NOTHING, Caching, make_cache, make_caching
from simulator.serving.extras import ExtendedPricer
from simulator.serving.kv_cache import KVCache
from simulator.serving.layout import Layout, heads_allow, make_layout, stages
from simulator.serving.pipeline import PipelinePricer
from simulator.serving.scheduler import Policy
from simulator.serving.speculative import SpeculativePricer
from simulator.serving.step_time import StepPricer
from simulator.serving.techniques import (
    Techniques,
    adapted_requests,
    cache_change,
    check_techniques,
    make_techniques,
    scheme_of,
    technique_numerics,
)
from simulator.serving.workload import Floats, Requests, draw_requests
from simulator.specs import Hardware, MemroofError, Model, ServingScenario, ServingStrategy
from simulator.strategy import Setup

SCALE_BYTES: Mapping[str, float] = {"fp4": 1.0 / 16.0, "int4": 2.5 / 128.0}
"""Of a weight: NVFP4's 8-bit scale of 16 elements; a 16-bit scale and a 4-bit zero of 128 (AWQ, GPTQ)."""


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """One replica, ready to run.

    Attributes
    ----------
    strategy : ServingStrategy
        As asked for.
    replicas : int
        Equal replicas of ``layout.gpus`` GPUs.
    layout : Layout
        How a replica is cut.
    requests : Requests
        What this replica is sent.
    policy : Policy
        Limits of the scheduler.
    pricer : StepPricer, PipelinePricer, ExtendedPricer or SpeculativePricer
        Iteration times.
    cache : KVCache
        What sequences hold of one GPU.
    usable : float
        Bytes of one GPU that the engine may use [B].
    resident : mapping of str to float
        What is there besides the KV cache, by category [B].
    caching : Caching
        Prefix cache, and the tiers that blocks move to.
    """

    strategy: ServingStrategy
    replicas: int
    layout: Layout
    requests: Requests
    policy: Policy
    pricer: StepPricer | PipelinePricer | ExtendedPricer | SpeculativePricer
    cache: KVCache
    usable: float
    resident: Mapping[str, float]
    caching: Caching = NOTHING

    def frontend(self, requests: Requests) -> Floats:
        """Time between client and scheduler of each request [s]."""
        return np.asarray(self.policy.round_trip + self.policy.prompt_token * requests.prompt, float)

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.layout.gpus

    @property
    def shares(self) -> int:
        """Equal shares of the requests, of which one is simulated: groups of ranks that attend together."""
        return self.replicas * self.layout.data

    @property
    def needed(self) -> float:
        """Bytes without which the longest request cannot be served [B]."""
        return sum(self.resident.values()) + float(self.cache.size(self.requests.longest))


def make_plan(setup: Setup) -> ReplicaPlan:
    """Plan one replica of a serving scenario.

    Raises
    ------
    MemroofError
        If the scenario is of another kind or asks for what cannot be: see :func:`check`.
    """
    scenario = setup.scenario
    if not isinstance(scenario, ServingScenario):
        raise MemroofError(f"scenario {scenario.name!r} is of kind {scenario.kind!r}, not 'serving'")
    strategy, hardware = scenario.strategy, setup.hardware
    check(strategy, setup.model, hardware)
    requests = adapted_requests(draw_requests(scenario.workload), strategy)
    check_lengths(requests, strategy, setup.model)
    layout = make_layout(strategy, setup.model, hardware)
    replicas = min(hardware.size // layout.gpus, len(requests))
    return plan_replica(setup, scenario, layout, replicas, requests.share(replicas * layout.data))


def plan_replica(
    setup: Setup, scenario: ServingScenario, layout: Layout, replicas: int, requests: Requests
) -> ReplicaPlan:
    """Plan one of equal replicas that gets these requests; nothing is checked."""
    strategy, hardware, constants = scenario.strategy, setup.hardware, setup.cost.calibration.host
    numerics = technique_numerics(_numerics(strategy), strategy, setup.model)
    hidden = 0.0 if strategy.schedule_ahead else constants.step
    host = hidden if strategy.host_overhead is None else strategy.host_overhead
    pricers = _kept_stages(setup, strategy, layout, numerics, float(host or 0.0))
    beside = _kept_techniques(setup, strategy, layout, numerics, pricers)
    policy = Policy(
        strategy.max_batch, strategy.max_batched_tokens * layout.pipeline, strategy.chunked_prefill,
        strategy.batching == "static", 0.0 if strategy.kv_layout == "contiguous" else strategy.watermark,
        strategy.schedule_ahead, float(scenario.workload.think_time or 0.0) + float(strategy.frontend_latency or 0.0),
        strategy.iteration, strategy.order, strategy.priority_preemption, strategy.preemption == "swap",
        strategy.overlap_transfers, float(strategy.frontend_latency or 0.0),
        frontend_token(strategy, setup), strategy.receive_interval,
        *((strategy.batch_wait.steps, strategy.batch_wait.token_share) if strategy.batch_wait else ()),
    )  # fmt: skip
    sequences = min(policy.max_batch, len(requests))
    tokens = min(strategy.max_batched_tokens, int((requests.prompt + requests.output).sum()))
    usable = float(hardware.memory.capacity * strategy.memory_utilization)

    def fill(stage: StepPricer) -> tuple[KVCache, dict[str, float]]:
        resident = {
            "weights": stage.weight_bytes,
            "activations": stage.workspace_bytes(tokens, sequences),
            "context": float(constants.context_bytes or 0.0),
            **beside.resident,
            **beside.slots(stage.graph(), sequences),
        }
        graph = beside.cache_graph(stage.graph())
        return make_cache(strategy, setup.model, graph, usable - sum(resident.values())), resident

    # all stages keep the same sequences: the one that holds the fewest tokens binds
    cache, resident = min(
        (fill(stage) for stage in dict.fromkeys(pricers)), key=lambda filled: (filled[0].tokens, -sum(filled[1].values()))
    )  # fmt: skip
    pricer = beside.pricer if len(pricers) == 1 else PipelinePricer(pricers)
    caching = make_caching(strategy, hardware, setup.cost.calibration, cache, layout.gpus)
    return ReplicaPlan(strategy, replicas, layout, requests, policy, pricer, cache, usable, resident, caching)


def frontend_token(strategy: ServingStrategy, setup: Setup) -> float:
    """Time of the front end for each token of a prompt [s]; none where no front end is asked for."""
    return float(setup.cost.calibration.host.prompt_token or 0.0) if strategy.frontend_latency else 0.0


def _kept_stages(
    setup: Setup, strategy: ServingStrategy, layout: Layout, numerics: Numerics, host: float
) -> tuple[StepPricer, ...]:
    """Return the pricers of an earlier run, tables and all, where nothing that they rest on is another object."""
    rests_on = (setup.model, setup.cost, setup.hardware, strategy)
    kept = setup.memo.get(id(strategy))
    if kept is None or any(then is not now for then, now in zip(kept[0], rests_on, strict=True)):
        kept = setup.memo[id(strategy)] = (rests_on, _stages(setup, strategy, layout, numerics, host))
    pricers: tuple[StepPricer, ...] = kept[1]
    return pricers


def _kept_techniques(
    setup: Setup,
    strategy: ServingStrategy,
    layout: Layout,
    numerics: Numerics,
    pricers: tuple[StepPricer, ...],
) -> Techniques:
    """Return the techniques of an earlier run where the pricers that they stand beside are the same."""
    key = ("techniques", id(strategy))
    kept = setup.memo.get(key)
    if kept is None or kept[0] is not pricers[0]:
        kept = setup.memo[key] = (pricers[0], make_techniques(setup, strategy, layout, numerics, pricers[0]))
    techniques: Techniques = kept[1]
    return techniques


def _stages(
    setup: Setup, strategy: ServingStrategy, layout: Layout, numerics: Numerics, host: float
) -> tuple[StepPricer, ...]:
    """Return a pricer for each pipeline stage; stages with as many layers of the same kinds share one."""
    model = setup.model
    if layout.pipeline > 1:
        graph = build(model, Shape(1, 1, 0, "prefill"))
        kinds = graph.layers
    else:
        kinds = ()
    found: dict[object, StepPricer] = {}
    pricers: list[StepPricer] = []
    for layers in stages(model.num_hidden_layers, layout.pipeline):
        ends = (layers.start == 0, layers.stop == model.num_hidden_layers)
        key = (ends, tuple(sorted(kinds[layers.start : layers.stop])))
        if key not in found:
            found[key] = StepPricer(
                model, numerics, layout.tensor, layout.tensor_span, setup.cost, host, all_reduce=strategy.all_reduce,
                wide_ends=strategy.weight_bits is None, layout=layout, layers=layers, captured=strategy.cuda_graphs,
                scheme=scheme_of(strategy), change=cache_change(strategy, setup, numerics),
                generates=strategy.endpoint == "generate", unquantized=strategy.unquantized,
            )  # fmt: skip
        pricers.append(found[key])
    return tuple(pricers)


def check(strategy: ServingStrategy, model: Model, hardware: Hardware) -> None:
    """Refuse what cannot be served.

    Raises
    ------
    MemroofError
        For a model that does not decode, a tensor-parallel degree that heads or GPUs do not allow, a format that the
        device lacks, or a token budget below the batch.
    """
    tensor = strategy.tensor_parallel
    if model.family == "encoder-decoder" or (model.family == "encoder" and strategy.endpoint == "generate"):
        raise MemroofError(
            f"{model.name} is an {model.family}: serving needs a model of family decoder, which generates"
        )
    if not heads_allow(model, tensor):
        heads = f"{model.num_attention_heads} attention heads and {model.kv_heads} KV heads"
        raise MemroofError(f"tensor_parallel {tensor} does not divide the {heads} of {model.name}")
    peak_flops(hardware.device, strategy.precision)
    check_techniques(strategy, model, hardware)
    if strategy.max_batched_tokens < strategy.max_batch:
        raise MemroofError(
            f"max_batched_tokens ({strategy.max_batched_tokens}) is below max_batch ({strategy.max_batch}): "
            "an iteration must hold one token of each sequence"
        )


def _numerics(strategy: ServingStrategy) -> Numerics:
    numerics = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    stored = numerics.weight_bytes + SCALE_BYTES.get(strategy.weight_precision or strategy.precision, 0.0)
    if strategy.weight_bits is not None:
        stored = strategy.weight_bits / 8.0
    return replace(numerics, weight_bytes=stored)


def check_lengths(requests: Requests, strategy: ServingStrategy, model: Model) -> None:
    """Refuse requests that are longer than the model's positions, or than what the strategy can hold at once."""
    longest = requests.longest + 1
    retrieved = strategy.block_retrieval
    # distant blocks are all at one distance, so that no more positions are told apart than are seen at once
    seen = retrieved.positions if retrieved else longest
    if min(longest, seen) > model.max_position_embeddings:
        raise MemroofError(
            f"a request of {longest} tokens exceeds the {model.max_position_embeddings} positions of {model.name}; "
            "lower the lengths or give them a 'maximum'"
        )
    reserved = strategy.reserved_tokens
    if reserved is not None and longest > reserved:
        raise MemroofError(f"reserved_tokens ({reserved}) must hold the longest request ({longest} tokens)")
    if strategy.kv_layout == "contiguous" and not strategy.priority_preemption:
        longest = int(requests.prompt.max())  # nobody is computed again with what has been generated
    if not strategy.chunked_prefill and longest > strategy.max_batched_tokens:
        raise MemroofError(
            f"without chunked_prefill max_batched_tokens ({strategy.max_batched_tokens}) must hold the longest request "
            f"({longest} tokens)"
        )
