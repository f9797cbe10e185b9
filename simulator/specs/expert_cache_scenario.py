"""Generation of an MoE model whose routed experts lie outside GPU memory, as written: cache, prefetch, what a miss does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share

CachePolicy = Literal["lru", "lfu", "decay", "static", "predicted", "layers", "none"]
Home = Literal["dram", "cxl", "nvme"]
Misses = Literal["fetch", "home", "balanced", "substitute"]
Loads = Literal["at-gate", "in-turn", "whole-layer"]
Execution = Literal["captured", "eager"]


class ExpertCacheWorkload(Spec):
    """Requests that are served one batch after another."""

    prompt: Positive
    output: Positive
    batch: Positive = 1
    """Sequences of a request that are generated together."""
    requests: Annotated[int, Field(ge=1, le=64)] = 3
    """Batches that are simulated, each with routing of its own; a batch before them fills the cache."""


class Routing(Spec):
    """Which experts tokens go to."""

    skew: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Exponent of Zipf's law over the experts of a layer; 0: equally popular."""
    reuse: Share = 0.0
    """Probability that a token keeps an expert of the token before it, over what independent draws give."""
    hit_rate: Share | None = None
    """Share of a step's experts that are resident, given instead of found by a cache policy."""
    trace: str | None = None
    """CSV of recorded routing (columns token, layer, expert), replayed instead of draws."""
    seed: Natural = 0


class Prefetch(Spec):
    """A predictor of the experts of layers ahead, whose experts are fetched at low priority."""

    accuracy: Share
    """Share of a token's experts that it names right; it names as many as the router does."""
    lead: Positive = 1
    """MoE layers ahead of the one whose input it reads."""
    latency: Seconds = 0.0
    """Of a prediction, on the CPU and beside the accelerator."""


class PredictedSet(Spec):
    """A set of experts chosen for several prompts (eMoE)."""

    accuracy: Share
    """Share of the set that are the experts used most; the others are any."""
    prompts: Positive = 1
    """Prompts for which it is kept."""


class ExpertCacheStrategy(Spec):
    """Where experts live, what is cached, and what happens when a token needs one that is not there."""

    method: Literal["expert-cache"]
    experts: Home = "dram"
    """Where all routed experts lie."""
    cached: Share | None = None
    """Share of each layer's experts that has a slot in GPU memory; as many as fit if absent."""
    policy: CachePolicy | None = None
    """lru, lfu, decay (a decaying count of uses), static (the most popular), predicted (a set for several prompts), layers (all
    experts of the first layers, none of the others), none; lru if absent."""
    decay: Share | None = None
    """Of policy decay: what a score keeps from one step to the next."""
    predicted: PredictedSet | None = None
    misses: Misses = "fetch"
    """fetch; home: computed where the expert lies (CPUs, or the processor of a memory device); balanced: those with most tokens
    fetched and the others computed at home, both at once; substitute: a resident expert takes its place."""
    loads: Loads = "at-gate"
    """at-gate: all missing experts of a layer as soon as they are known; in-turn: each when its turn to be computed comes;
    whole-layer: every absent expert of a layer, used or not."""
    order: Literal["ready", "index"] = "ready"
    """Experts of a layer: resident ones, then as they arrive; or by number."""
    prefetch: Prefetch | None = None
    chunks: Positive = 3
    """Copies that an expert is moved in, its matrices; a copy under way is not interrupted."""
    copy_rate: ByteRate | None = None
    """Most that a copy reaches where its memory is pageable or moved by page faults; what pinned memory reaches if absent."""
    execution: Execution = "captured"
    """captured: kernels follow one another; eager: the host issues operators one by one, and each expert's own."""
    issue_time: Seconds | None = None
    """Of execution eager: host time of an operator; the calibration's (eager training on servers) if absent."""
    tensor_parallel: Positive = 1
    """Accelerators that every layer and every expert is cut over; each fetches its part over its own link."""
    precision: Literal["fp32", "fp16", "bf16"] = "bf16"
    expert_precision: NumberFormat | None = None
    weight_precision: NumberFormat | None = None
    """Of all other weights."""
    kv_precision: NumberFormat | None = None
    pinned: Fraction = 1.0
    """Share of a tier's capacity that may be used."""
    routing: Routing = Routing()
    baseline: dict[str, Any] | None = None
    """What another strategy does otherwise (null: nothing of the kind), which is run too and compared with."""

    def alternative(self) -> ExpertCacheStrategy:
        """Return the strategy that ``baseline`` describes."""
        own = {name: getattr(self, name) for name in self.model_fields_set if name != "baseline"}
        merged = {**own, **(self.baseline or {})}
        return ExpertCacheStrategy.model_validate(
            {name: value for name, value in merged.items() if value is not None}
        )

    @model_validator(mode="after")
    def _compares(self) -> ExpertCacheStrategy:
        if self.baseline is not None:
            if "baseline" in self.baseline:
                raise PydanticCustomError("scenario", "'baseline' has no baseline of its own")
            try:
                self.alternative()
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in ("baseline", *first["loc"]))
                raise PydanticCustomError(
                    "scenario", "{message}", {"message": f"{where}: {first['msg']}"}
                ) from error
        return self

    @model_validator(mode="after")
    def _decides(self) -> ExpertCacheStrategy:
        given = self.routing.hit_rate is not None
        for wrong, message in (
            (given and (self.policy is not None or self.routing.reuse or self.routing.trace is not None),
             "routing.hit_rate stands for a cache policy and for locality: leave out 'policy', 'reuse' and 'trace'"),
            (self.routing.trace is not None and bool(self.routing.skew or self.routing.reuse),
             "routing.trace says which experts are used: leave out 'skew' and 'reuse'"),
            ((self.policy == "decay") != (self.decay is not None), "'decay' belongs to policy decay, and policy decay needs it"),
            ((self.policy == "predicted") != (self.predicted is not None),
             "'predicted' belongs to policy predicted, and policy predicted needs it"),
            (self.policy == "none" and self.cached is not None, "policy none keeps no expert: leave out 'cached'"),
            (self.prefetch is not None and self.misses != "fetch", "'prefetch' needs misses: fetch"),
            (self.prefetch is not None and (given or self.policy in ("static", "predicted", "layers", "none")),
             "'prefetch' needs a cache that takes what arrives: policy lru, lfu or decay"),
            (self.issue_time is not None and self.execution != "eager", "'issue_time' belongs to execution: eager"),
            (self.prefetch is not None and self.loads != "at-gate", "'prefetch' needs loads: at-gate"),
            (self.loads == "whole-layer" and (self.misses != "fetch" or self.policy not in ("layers", "none")),
             "loads: whole-layer needs misses: fetch and policy layers or none"),
            (self.misses != "fetch" and self.loads != "at-gate", "'loads' needs misses: fetch"),
            (self.loads == "in-turn" and self.order == "ready" and "order" in self.model_fields_set,
             "loads: in-turn takes experts by number: leave out 'order'"),
            (self.misses == "substitute" and self.policy == "none", "misses: substitute needs resident experts"),
            (self.misses in ("home", "balanced") and self.experts == "nvme",
             "experts on nvme have no processor: use misses: fetch"),
        ):  # fmt: skip
            if wrong:
                raise PydanticCustomError("scenario", "{message}", {"message": message})
        return self


class ExpertCacheScenario(OffloadScenario):
    """Generate with an MoE model whose routed experts live outside GPU memory, with a cache of them in it."""

    grows: ClassVar[Mapping[str, str]] = {"batch": "workload.batch", "prompt": "workload.prompt"}
    workload: ExpertCacheWorkload
    strategy: ExpertCacheStrategy
