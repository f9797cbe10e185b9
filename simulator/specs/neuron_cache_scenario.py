"""Decode from flash with a cache of neurons in DRAM, as written; plain ways of reading a model that does not fit beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Bytes, Hertz, Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share

SHARED = (
    "precision",
    "weight_precision",
    "weight_group",
    "kv_precision",
    "memory",
    "dense_processor",
    "memory_efficiency",
)
"""Keys that a baseline takes over from the strategy where it does not write them."""
SHARED_NEURONS = ("neurons", "predictor", "sparse_processor", "sparse_efficiency")
"""Further ones, of a baseline with a cache of neurons."""


class OnDeviceWorkload(Spec):
    """One sequence that is generated."""

    prompt: Positive
    output: Positive
    """Tokens; a decode step is priced at the context in the middle of them."""


class Reuse(Spec):
    """One measured point of how neurons repeat from token to token."""

    window: Positive
    """Tokens whose neurons are kept."""
    new: Fraction
    """Share of a layer's neurons that a token needs and none of those tokens did."""


class Hottest(Spec):
    """One measured point of how activations concentrate on few neurons."""

    share: Fraction
    """Of the neurons, the most frequent ones."""
    activations: Fraction
    """Share of all activations that fall on them."""


class Neurons(Spec):
    """Which neurons of a layer (of an expert, where there are any) a token needs, by measured statistics.

    Frequencies follow min(1, c / rank^exponent); one of ``reuse``, ``hottest`` and ``exponent`` says how steep that is.
    """

    active: Fraction
    """Share that a token needs, by the predictor where there is one."""
    reuse: Reuse | None = None
    hottest: Hottest | None = None
    exponent: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    dispersion: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0
    """Standard deviation, over tokens, of the logarithm of what misses the cache: topics change in bursts."""

    @model_validator(mode="after")
    def _one_law(self) -> Neurons:
        given = [key for key in ("reuse", "hottest", "exponent") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise PydanticCustomError(
                "scenario", "needs one of 'reuse', 'hottest' or 'exponent'; found {found}", {"found": found}
            )
        if self.reuse and self.reuse.new > self.active:
            raise PydanticCustomError("scenario", "'reuse.new' exceeds 'active': what is new is active too")
        if self.hottest and self.hottest.activations < self.hottest.share:
            raise PydanticCustomError(
                "scenario", "'hottest.activations' is below 'hottest.share'; the hottest have more"
            )
        return self


class Predictor(Spec):
    """A low-rank network in each layer that says which neurons a token needs: hidden to ``rank``, ``rank`` to neurons."""

    rank: Positive
    processor: str | None = None
    """Component that runs it; the dense one if absent."""
    precision: NumberFormat | None = None
    """Of its weights; the model's if absent."""


class NeuronCache(Spec):
    """Which neurons stay in DRAM."""

    hot: Share = 0.0
    """Share of the neurons that is pinned, the most frequent ones; computed whole, active or not."""
    policy: Literal["window", "lru", "static"] = "window"
    """Of the others: those of the last tokens, the least recently needed leaves first, or the most frequent ones for good."""
    window: Natural | None = None
    """With policy window: tokens whose neurons are kept; 0 keeps none."""
    size: Bytes | None = None
    """With lru and static: bytes of the cache, the hot ones apart; what ``memory`` leaves if neither this nor share is given."""
    share: Fraction | None = None
    """With lru and static: the same as a share of the neurons, the hot ones included."""
    miss_rate: Share | None = None
    """Share of the neurons that a token needs which was measured to miss; by the neurons' statistics if absent."""

    @model_validator(mode="after")
    def _belongs(self) -> NeuronCache:
        if self.policy == "window":
            if self.window is None:
                raise PydanticCustomError(
                    "scenario", "policy 'window' needs 'window', the tokens whose neurons are kept"
                )
            if self.size is not None or self.share is not None:
                raise PydanticCustomError(
                    "scenario", "'size' and 'share' belong to policies 'lru' and 'static'"
                )
        elif self.window is not None:
            raise PydanticCustomError("scenario", "'window' belongs to policy 'window'")
        if self.size is not None and self.share is not None:
            raise PydanticCustomError("scenario", "needs 'size' or 'share', not both")
        if self.share is not None and self.share < self.hot:
            raise PydanticCustomError("scenario", "'share' is below 'hot', which it includes")
        return self


class Reads(Spec):
    """How neurons lie in flash and are read."""

    bundled: bool = True
    """The rows of gate, up and down of a neuron side by side, read at once; false: each matrix by itself."""
    block: Bytes | None = None
    """Reads are multiples of this (4 KiB of UFS); the neuron's own bytes if absent."""
    phases: Annotated[int, Field(ge=1, le=2)] = 1
    """2: the gate's part of a bundle first, the rest only if the gate lets the neuron pass."""
    passing: Fraction = 0.8
    """With two phases: share of the neurons read that the gate lets pass."""
    outstanding: Positive = 32
    """Requests in flight: reader threads."""
    clock: Hertz | None = None
    """Of the core that issues the requests, where the device was measured at several; the fastest if absent."""

    @model_validator(mode="after")
    def _belongs(self) -> Reads:
        if self.phases == 2 and not self.bundled:
            raise PydanticCustomError("scenario", "two phases are of a bundle; set bundled: true")
        if self.phases == 1 and "passing" in self.model_fields_set:
            raise PydanticCustomError("scenario", "'passing' decides nothing with one phase")
        return self


class Pipeline(Spec):
    """What overlaps within a layer."""

    clusters: Positive
    """Parts that the neurons which are read come in: each is computed while the next is read."""


class Management(Spec):
    """Keeping a dense matrix of cached neurons: evicted rows are filled from the end, new ones appended."""

    rate: ByteRate
    """DRAM traffic that this reaches, reads and writes together."""


class Mapped(Spec):
    """Weights mapped into memory (mmap): what is not in the page cache is read by page faults."""

    readahead: Bytes
    """Bytes that a fault reads (Linux: 128 KiB by default)."""
    faults: Positive = 1
    """Faults in flight: threads that touch pages at once."""
    replacement: Literal["lru", "random", "locked"] = "lru"
    """What stays in the page cache: the last touched (nothing survives a scan that is larger than it), a random part, or
    a part that is locked."""


class DenseReads(Spec):
    """All weights are used for each token; what is not resident is read in large sequential requests."""

    resident: Share
    """Share of the model's bytes that stays in DRAM."""
    block: Bytes | None = None
    """Bytes of a request; as large as the device likes if absent."""
    outstanding: Positive = 32
    overlap: bool = False
    """Whether the next layer is read while one is computed."""


class Scheme(Spec):
    """Where weights are for a decode step; one of ``neurons``, ``mapped`` and ``dense`` says how."""

    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of activations and products."""
    weight_precision: NumberFormat | None = None
    weight_group: Positive | None = None
    """Weights that share a 16-bit scale (32 in Q4_0 of llama.cpp); none if absent."""
    kv_precision: NumberFormat | None = None
    memory: Bytes | None = None
    """DRAM that may be used; all of it if absent."""
    dense_processor: str | None = None
    """Component that computes attention, head and pinned neurons; the accelerator if absent."""
    sparse_processor: str | None = None
    """Component that computes the other neurons; the dense one if absent."""
    memory_efficiency: Fraction | None = None
    """Share of a processor's DRAM bandwidth that products with one row reach; by its kind if absent."""
    sparse_efficiency: Fraction | None = None
    """The same for products with rows picked by neuron; as for the others if absent."""
    layer_overhead: Seconds = 0.0
    """Time of a layer in which nothing computes or is read: the software picks rows and waits for processors."""

    neurons: Neurons | None = None
    predictor: Predictor | None = None
    cache: NeuronCache | None = None
    reads: Reads | None = None
    pipeline: Pipeline | None = None
    """None: reading, management and computation of a layer one after the other."""
    management: Management | None = None
    mapped: Mapped | None = None
    dense: DenseReads | None = None

    @property
    def way(self) -> str:
        """Which of the three."""
        return "mapped" if self.mapped else "dense" if self.dense else "neurons"

    @model_validator(mode="after")
    def _one_way(self) -> Scheme:
        given = [key for key in ("cache", "mapped", "dense") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise PydanticCustomError(
                "scenario",
                "needs one of 'cache' (of neurons), 'mapped' or 'dense'; found {found}",
                {"found": found},
            )
        if given != ["cache"]:
            for key in (
                "neurons",
                "predictor",
                "reads",
                "pipeline",
                "management",
                "sparse_processor",
                "sparse_efficiency",
            ):
                if getattr(self, key) is not None:
                    raise PydanticCustomError("scenario", "'{key}' belongs to 'cache'", {"key": key})
        if self.management and self.cache and self.cache.policy == "static":
            raise PydanticCustomError(
                "scenario", "'management' decides nothing with a static cache: it never changes"
            )
        return self


class NeuronCacheStrategy(Scheme):
    """The way that is asked about, and others to compare it with."""

    method: Literal["neuron-cache"] = "neuron-cache"
    baselines: dict[str, Scheme] = {}
    """Other ways by name; what a baseline leaves out of precisions, memory, processors, neurons and predictor is as in the
    strategy."""

    def baseline(self, name: str) -> Scheme:
        """Return a baseline with what it takes over from the strategy."""
        scheme = self.baselines[name]
        keys = (*SHARED, *(SHARED_NEURONS if scheme.cache else ()))
        taken = {key: getattr(self, key) for key in keys if key not in scheme.model_fields_set}
        return scheme.model_copy(update=taken)

    @model_validator(mode="after")
    def _names(self) -> NeuronCacheStrategy:
        for name in self.baselines:
            if not name.isidentifier():
                raise PydanticCustomError(
                    "scenario", "baseline {name!r}: a name has letters, digits and '_'", {"name": name}
                )
        return self


class NeuronCacheScenario(OffloadScenario):
    """Decode a model whose weights lie in flash."""

    grows: ClassVar[Mapping[str, str]] = {"prompt": "workload.prompt"}
    workload: OnDeviceWorkload
    strategy: NeuronCacheStrategy
