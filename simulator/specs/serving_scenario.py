"""A serving scenario as written: its requests, and how a replica batches, caches and is cut over GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Bytes, Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.scenario_base import Fraction, HardwareChoice, ScenarioBase, Share
from simulator.specs.serving_fleet import Fleet, Pool
from simulator.specs.serving_techniques import (
    BlockRetrieval,
    CacheBudget,
    ContextCompression,
    ExpertAdapters,
    LowRankAdapters,
    MultimodalEncoder,
    Quantization,
    Rematerialization,
    Speculation,
    technique_problems,
)
from simulator.specs.serving_workload import ServingWorkload

CAPTURED = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Counts of tokens that vLLM captures by default (cudagraph_capture_sizes of its configuration)."""


class PrefixCaching(Spec):
    """Blocks of finished requests are kept and found again by the requests that begin alike; least recently used go first."""

    dram: Bytes | None = None
    """DRAM of a node, shared by its accelerators, that blocks move to when accelerator memory needs the room; none if absent."""
    nvme: Bytes | None = None
    """The same on its drives, after DRAM."""


class BatchWait(Spec):
    """Prompts wait beside decodes until there are enough of them (TensorRT-LLM's batch_wait options)."""

    steps: Positive
    """Decode steps that they wait at most (batch_wait_timeout_iters)."""
    token_share: Fraction = 1.0
    """Tokens of an iteration over ``max_batched_tokens`` at which they go (batch_wait_max_tokens_ratio)."""


class ServingStrategy(Spec):
    """How a replica batches, keeps its KV cache and is cut over GPUs."""

    batching: Literal["continuous", "static"] = "continuous"
    """continuous: requests come and go between iterations; static: a batch runs until its longest output is done."""
    tensor_parallel: Positive = 1
    """GPUs that attention is cut over, and everything else where nothing below says otherwise."""
    pipeline_parallel: Positive = 1
    """Stages of a replica; as many micro-batches are in flight, of ``max_batched_tokens`` each."""
    attention_data_parallel: Positive = 1
    """Groups of ``tensor_parallel`` GPUs that attend to requests of their own while all of them share the experts; batch limits
    are those of a group."""
    expert_parallel: Positive = 1
    """Places that the experts of a layer are dealt out to; each expert is cut over the GPUs of its place."""
    expert_exchange: Literal["collective", "normal", "low-latency", "auto"] = "collective"
    """How tokens of data-parallel attention get to experts and back: gathered and reduced by the communication library, or by
    dispatch and combine kernels (DeepEP); auto: low-latency ones where nothing but decodes runs."""
    expert_nodes: Positive | None = None
    """Nodes that the experts of one token lie in at most (node-limited routing), for normal kernels across nodes."""
    dual_batch_overlap: bool = False
    """Two half batches: one computes while the other's tokens are exchanged."""
    routing_skew: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Exponent of the power law of the experts' loads; 0: tokens go to experts uniformly."""
    redundant_experts: Natural = 0
    """Copies of the busiest experts of each layer, over all places."""
    expert_placement: Literal["random", "balanced"] = "random"
    """balanced: experts and their copies are placed by load (DeepSeek's load balancer)."""
    expert_locality: Share | None = None
    """Share of a token's experts that lie where the token is, after tokens and experts are grouped (Speculative MoE); by chance
    one over ``expert_parallel``."""
    cuda_graphs: tuple[Positive, ...] | None = None
    """Counts of tokens that CUDA graphs are captured for: an iteration runs in the next larger one, and beyond the largest its
    operators are issued one by one. ``true`` for vLLM's sizes up to 512, ``false`` for none; if absent, as if each count were
    captured."""
    precision: Literal["fp32", "fp16", "bf16", "fp8", "fp4"] = "bf16"
    """Format of matrix products; activations between them are kept in 16 bit below fp32."""
    weight_precision: NumberFormat | None = None
    """Format that weights are stored in; ``precision`` if absent."""
    weight_bits: Annotated[float, Field(gt=0.0, le=64.0)] | None = None
    """Mean bits of a stored weight over the whole model (embedding, logits and scales among them), for mixed formats such
    as Q4_K_M; if absent, those of the format, with embedding and logits in 16 bit where layers are quantised."""
    kv_precision: NumberFormat | None = None
    """Format that keys and values are stored in; 16 bit of ``precision`` if absent."""
    kv_group: Positive | None = None
    """Elements of the cache that share a scale and an offset of 16 bits each; one for a tensor if absent."""
    unquantized: tuple[str, ...] = ()
    """Operators (``attention.q_a``) whose products stay in 16 bits, as quantised checkpoints exclude some modules."""
    quantization: Quantization | None = None
    """Scheme of quantised weights and activations of linear layers, with scales and what un-scaling costs; none if absent."""
    endpoint: Literal["generate", "embed", "rerank"] = "generate"
    """embed, rerank: prompts alone, whose last state or mean is returned, or scored; outputs and decodes fall away."""
    speculation: Speculation | None = None
    """Tokens are drafted and verified together."""
    lora: LowRankAdapters | None = None
    """Low-rank adapters, of which requests ask for one each."""
    expert_adapters: ExpertAdapters | None = None
    """Fine-tuned experts beside the model's."""
    kv_rematerialization: Rematerialization | None = None
    """Keys and values are computed again from the layer's cached input."""
    kv_budget: CacheBudget | None = None
    """Positions that layers keep at most."""
    context_compression: ContextCompression | None = None
    """Prompts are compressed by an encoder."""
    multimodal: MultimodalEncoder | None = None
    """An encoder makes part of each prompt."""
    block_retrieval: BlockRetrieval | None = None
    """Distant blocks of the cache are in DRAM and fetched where they matter."""
    logits: Literal["last", "all"] = "last"
    """Positions of prompts whose logits are computed: the last, or all of a chunk, kept in the model's format and in fp32, as
    Hugging Face models return them."""
    max_batch: Positive = 256
    """Sequences that run at once."""
    max_batched_tokens: Positive = 8192
    """Token budget of one iteration."""
    chunked_prefill: bool = True
    """Prompts are cut to fill the token budget; false: whole prompts."""
    iteration: Literal["mixed", "prefill-first", "decode-first"] | None = None
    """mixed: prompts beside decodes (Orca; Sarathi with chunks); prefill-first: prompts alone, decodes wait; decode-first:
    prompts wait until nothing decodes. If absent, mixed with chunks, else prefill-first."""
    order: Literal["fcfs", "priority", "shortest-prompt"] = "fcfs"
    """Who is admitted next: the first that came, the lowest number of ``priority``, the shortest prompt."""
    receive_interval: Positive = 1
    """Decode steps between two looks at who has arrived; after prompts, and when idle, the engine looks at once (SGLang's
    scheduler_recv_interval)."""
    batch_wait: BatchWait | None = None
    """Prompts are collected before they interrupt decodes; none wait if absent."""
    priority_preemption: bool = False
    """A waiting request that finds no room takes that of running ones with a higher number of ``priority``."""
    kv_layout: Literal["paged", "contiguous", "virtual", "joined"] = "paged"
    """paged: blocks of ``block_size`` tokens; contiguous: each request reserves ``reserved_tokens``; virtual: contiguous
    addresses whose pages of ``page_size`` are mapped on demand (vAttention); joined: two tensors a layer and sequence, joined
    with each chunk's in new ones, as Hugging Face models do, from an allocator that keeps the old ones (PyTorch)."""
    block_size: Positive = 16
    """Tokens of a KV block, of the paged layout."""
    reserved_tokens: Positive | None = None
    """Tokens that the contiguous layout reserves for each request; the model's positions if absent."""
    page_size: Bytes | None = None
    """Bytes of a physical page of the virtual layout, each of one layer's keys or values: 64 KiB to 2 MiB; 2 MiB if absent."""
    mapping_latency: Seconds | None = None
    """Time to map one page that is not hidden behind computing, of the virtual layout; hidden if absent."""
    prefix_cache: PrefixCaching | None = None
    """What requests have in common is computed once (block hashes, radix tree); ``true`` for accelerator memory alone."""
    memory_utilization: Fraction = 0.9
    """Share of GPU memory that the engine may use."""
    watermark: Share = 0.01
    """Share of the KV cache that admission of a request leaves to those that run."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What becomes of the latest request when blocks run out: its cache is dropped and computed again, or moved to DRAM."""
    swap_space: Bytes | None = None
    """DRAM of a node, shared by its accelerators, for swapped requests; all of it if absent."""
    overlap_transfers: bool = True
    """Blocks that come from or go to DRAM and drives are copied while the iteration that needs them computes, layer by layer;
    false: before it."""
    schedule_ahead: bool = True
    """The next iteration is put together while one runs (asynchronous or overlap scheduling, the default of vLLM, SGLang and
    TensorRT-LLM since 2025): its host time is hidden, and a request that arrives meanwhile waits for one iteration more."""
    host_overhead: Seconds | None = None
    """CPU time of an iteration that is not hidden; if absent, the class constant, or none where it is scheduled ahead."""
    all_reduce: Literal["library", "pull", "push"] = "pull"
    """Kernel of all-reduces up to some megabytes inside a machine: the engine's own, which reads its peers' memory (vLLM,
    SGLang) or writes flagged data to them (TensorRT-LLM), or the communication library's."""
    frontend_latency: Seconds | None = None
    """From a client to the scheduler and back (HTTP, de-tokenising), beside what each token of a prompt takes (tokenising and
    copies: ``host.prompt_token`` of the calibration); none if absent."""

    @field_validator("cuda_graphs", mode="before")
    @classmethod
    def _captured(cls, value: Any) -> Any:
        if value in (False, "false"):
            return ()
        return CAPTURED if value in (True, "true") else value

    @field_validator("prefix_cache", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        if value in (False, "false"):
            return None
        return {} if value in (True, "true") else value

    @model_validator(mode="after")
    def _scheduling(self) -> ServingStrategy:
        if problem := next(self._meaningless(), None):
            raise PydanticCustomError("scenario", "{message}", {"message": problem})
        return self

    def _meaningless(self) -> Iterator[str]:
        """Name options that the others leave nothing to decide."""
        yield from technique_problems(self)
        given = self.model_fields_set
        cache, swap = self.prefix_cache, self.preemption == "swap"
        if self.batching == "static":
            for name in ("iteration", "prefix_cache", "kv_layout", "priority_preemption"):
                if name in given and getattr(self, name) not in (None, False, "paged"):
                    yield f"'{name}' has no meaning with batching 'static', whose batches reserve all they need"
            if swap:
                yield "preemption 'swap' has no meaning with batching 'static', which never preempts"
            if self.batch_wait or self.receive_interval > 1:
                name = "batch_wait" if self.batch_wait else "receive_interval"
                yield f"'{name}' has no meaning with batching 'static', which lets nobody in while it runs"
        if self.iteration == "decode-first" and (self.batch_wait or self.receive_interval > 1):
            name = "batch_wait" if self.batch_wait else "receive_interval"
            yield f"'{name}' has no meaning with iteration 'decode-first', whose prompts wait for all decodes"
        if self.dual_batch_overlap and self.attention_data_parallel == 1:
            yield "'dual_batch_overlap' hides an exchange: it needs 'attention_data_parallel' above 1"
        if self.dual_batch_overlap and self.cuda_graphs is not None:
            yield "'cuda_graphs' has no meaning with 'dual_batch_overlap', whose halves are captured as they are"
        if self.expert_placement == "balanced" and not self.routing_skew:
            yield "expert_placement 'balanced' has no meaning without 'routing_skew': all experts are equal"
        if self.redundant_experts and self.expert_placement != "balanced":
            yield "'redundant_experts' are placed by load: they need expert_placement 'balanced'"
        if self.expert_locality is not None and self.expert_exchange == "collective":
            yield "'expert_locality' needs an expert_exchange that sends tokens to their experts, not 'collective'"
        if self.expert_nodes is not None and self.expert_exchange not in ("normal", "auto"):
            yield "'expert_nodes' belongs to expert_exchange 'normal'"
        if self.priority_preemption and self.order != "priority":
            yield "'priority_preemption' needs order 'priority'"
        if self.priority_preemption and self.iteration == "decode-first":
            yield "'priority_preemption' has no meaning with iteration 'decode-first', which lets decodes end"
        if cache and self.kv_layout != "paged":
            yield f"'prefix_cache' shares blocks: it needs kv_layout 'paged', not '{self.kv_layout}'"
        if cache and cache.nvme and not cache.dram:
            yield "'prefix_cache.nvme' is filled from DRAM: it needs 'prefix_cache.dram'"
        if self.kv_layout == "contiguous" and (swap or "watermark" in given):
            name = "preemption 'swap'" if swap else "'watermark'"
            yield f"{name} has no meaning with kv_layout 'contiguous', which reserves all that a request needs"
        if self.kv_layout == "joined" and (swap or self.block_retrieval):
            name = "preemption 'swap'" if swap else "'block_retrieval'"
            yield f"{name} moves blocks, which kv_layout 'joined' does not have"
        for name, layout in (
            ("block_size", "paged"), ("reserved_tokens", "contiguous"), ("page_size", "virtual"),
            ("mapping_latency", "virtual"),
        ):  # fmt: skip
            if getattr(self, name) is not None and name in given and self.kv_layout != layout:
                yield f"'{name}' belongs to kv_layout '{layout}'"
        if self.logits == "all" and self.endpoint != "generate":
            yield f"logits 'all' has no meaning with endpoint '{self.endpoint}', which has no logits"
        if self.swap_space is not None and not swap:
            yield "'swap_space' belongs to preemption 'swap'"
        if "overlap_transfers" in given and not (swap or (cache and cache.dram)):
            yield "'overlap_transfers' needs transfers: preemption 'swap' or 'prefix_cache.dram'"


class ServiceObjective(Spec):
    """What a request must be given to count as served well, and the share of requests that must be."""

    time_to_first_token: Seconds | None = None
    time_per_output_token: Seconds | None = None
    """Mean over the tokens after the first; an answer of one token has none and holds it."""
    end_to_end: Seconds | None = None
    share: Fraction = 0.9
    """Share of the requests that must hold all bounds at once."""

    @model_validator(mode="after")
    def _bounded(self) -> ServiceObjective:
        if not self.bounds:
            raise PydanticCustomError("scenario", "needs one of {names}", {"names": ", ".join(_BOUNDS)})
        if not all(self.bounds.values()):
            raise PydanticCustomError("scenario", "a bound must be above 0")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by latency [s]."""
        found = {name: getattr(self, name) for name in _BOUNDS}
        return {name: float(bound) for name, bound in found.items() if bound is not None}


_BOUNDS = ("time_to_first_token", "time_per_output_token", "end_to_end")


class ServingScenario(ScenarioBase):
    """Serve a model."""

    kind: Literal["serving"]
    workload: ServingWorkload
    strategy: ServingStrategy = ServingStrategy()
    slo: ServiceObjective | None = None
    """Service-level objective by request; ``limit`` bounds percentiles instead."""
    fleet: Fleet | None = None
    """Replicas behind a router, all simulated; if absent, equal replicas take requests in turn and one of them is simulated."""

    @property
    def all_limits(self) -> Mapping[str, str]:
        """Limits as written, and the objective's share of requests."""
        return {**self.limit, "slo_attainment": f"> {self.slo.share * 100:g} %"} if self.slo else self.limit

    @property
    def pool_hardware(self) -> tuple[HardwareChoice | None, ...]:
        """Hardware of each pool of the fleet."""
        return tuple(pool.hardware for pool in self.fleet.all_pools) if self.fleet else ()

    @model_validator(mode="after")
    def _pools(self) -> ServingScenario:
        if self.fleet and (self.strategy.context_compression or self.strategy.endpoint != "generate"):
            name = "endpoint" if self.strategy.endpoint != "generate" else "context_compression"
            raise PydanticCustomError(
                "scenario", "{message}", {"message": f"'{name}' is not simulated in a fleet"}
            )
        if self.fleet:
            for number, pool in enumerate(self.fleet.all_pools, start=1):
                try:
                    self.of_pool(pool)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    message = f"pool {pool.name or number}: strategy.{where}: {first['msg'].lower()}"
                    raise PydanticCustomError("scenario", "{message}", {"message": message}) from None
        return self

    def of_pool(self, pool: Pool) -> ServingScenario:
        """Return the scenario of one pool's replicas, without a fleet.

        Raises
        ------
        ValueError
            If its options are not those of a strategy.
        """
        given = {name: getattr(self.strategy, name) for name in self.strategy.model_fields_set}
        strategy = ServingStrategy.model_validate({**given, **pool.strategy})
        changed = {"strategy": strategy, "fleet": None, "hardware": pool.hardware or self.hardware}
        return self.model_copy(update=changed)
