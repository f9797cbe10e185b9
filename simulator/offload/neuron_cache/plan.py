"""What a decode step reads, keeps and computes: bytes by layer, from a scheme and a model; illegal ones are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES, Numerics
from simulator.offload.flash import Flash, find_flash
from simulator.offload.neuron_cache.activity import Activity, activity_of
from simulator.offload.processors import Worker, find_worker
from simulator.offload.tiers import GPU, Tiers, find_tiers, limited, single
from simulator.offload.weights import LayerWeights, ModelWeights, check_positions, weight_width, weights_of
from simulator.specs import MemroofError, NeuronCacheScenario
from simulator.specs.neuron_cache_scenario import Reads, Scheme
from simulator.strategy import Setup


@dataclass(frozen=True, slots=True)
class Plan:
    """A decode step of one sequence.

    Attributes
    ----------
    name : str
    scheme : Scheme
        As written.
    weights : ModelWeights
    width : float
        Bytes of a weight, its part of a scale included.
    tiers, flash : Tiers, Flash
    dense, sparse, predicting : Worker
        What computes attention and pinned neurons, the other neurons, and the predictor.
    context : float
        Tokens in the cache of keys and values.
    kv_bytes : float
        Bytes of an element of that cache.
    longest : int
        Tokens in it at the end.
    overhead : float
        Seconds of software in each layer.
    """

    name: str
    scheme: Scheme
    weights: ModelWeights
    width: float
    tiers: Tiers
    flash: Flash
    dense: Worker
    sparse: Worker
    predicting: Worker
    context: float
    kv_bytes: float
    longest: int
    overhead: float

    @property
    def memory(self) -> float:
        """DRAM that may be used [B]."""
        return self.tiers.pools[GPU].capacity

    @property
    def model_bytes(self) -> float:
        """The whole model as it is stored [B]."""
        return self.weights.elements * self.width

    def cache_bytes(self) -> float:
        """Keys and values when the last token is made [B]."""
        return self.longest * sum(layer.kv_width for layer in self.weights.layers) * self.kv_bytes

    def attention_bytes(self, layer: LayerWeights) -> float:
        """What the part of a layer that every token uses streams: weights, keys and values [B]."""
        return layer.fixed * self.width + self.context * layer.kv_width * self.kv_bytes

    def predictor_elements(self, layer: LayerWeights) -> float:
        """Weights of a layer's predictors, one for each expert."""
        rank = self.scheme.predictor.rank if self.scheme.predictor else 0
        return float(rank) * (layer.experts * layer.width + layer.neurons)

    @property
    def predictor_width(self) -> float:
        """Bytes of a weight of the predictor."""
        given = self.scheme.predictor.precision if self.scheme.predictor else None
        return FORMAT_BYTES[given] if given else self.width


def make_plan(setup: Setup, scheme: Scheme) -> Plan:
    """Check a scheme against its model and hardware.

    Raises
    ------
    MemroofError
        For a model that does not decode, more than one accelerator, no flash, a processor that is not there or on
        another memory, or more memory than there is.
    """
    scenario, model = setup.scenario, setup.model
    if not isinstance(scenario, NeuronCacheScenario):
        raise MemroofError(f"neuron-cache cannot run a {scenario.kind} scenario")
    if model.family != "decoder":
        raise MemroofError(f"neuron-cache decodes with decoders; {model.name} is an {model.family}")
    if scheme.cache and scheme.neurons is None:
        raise MemroofError(
            "strategy.neurons: missing; a cache of neurons needs to know which of them a token needs"
        )
    single(setup.hardware)
    workload = scenario.workload
    check_positions(model, workload.prompt + workload.output)
    tiers = limited(
        find_tiers(setup.hardware, setup.cost.calibration, 1.0), setup.hardware.name, scheme.memory
    )
    weight = scheme.weight_precision or scheme.precision
    numerics = Numerics.of(scheme.precision, scheme.weight_precision, scheme.kv_precision)
    hardware, share = setup.hardware, scheme.memory_efficiency
    dense = find_worker(hardware, scheme.dense_processor, scheme.precision, efficiency=share)
    sparse_name = scheme.sparse_processor or scheme.dense_processor
    sparse_share = scheme.sparse_efficiency or share
    sparse = find_worker(hardware, sparse_name, scheme.precision, efficiency=sparse_share)
    chosen = scheme.predictor.processor if scheme.predictor else None
    predicting = find_worker(hardware, chosen or scheme.dense_processor, scheme.precision, efficiency=share)
    return Plan(
        scenario.name, scheme, weights_of(model, numerics), weight_width(weight, scheme.weight_group), tiers,
        find_flash(tiers, hardware.machine), dense, sparse, predicting, workload.prompt + workload.output / 2.0,
        numerics.kv_bytes, workload.prompt + workload.output, scheme.layer_overhead,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NeuronBytes:
    """How the neurons of one layer are kept, read and computed, for an average token.

    Attributes
    ----------
    hot, kept : float
        Neurons that are pinned, and others that the cache holds.
    needed : float
        Neurons that a token needs, those of the pinned ones left out.
    missed : float
        Of these, neurons that are read.
    dense : float
        Bytes that the pinned ones take to compute: all of those in the chosen experts.
    sparse : float
        Bytes of a needed neuron that are computed.
    stored : float
        Bytes of a neuron in memory.
    first, rest : float
        Bytes that are read of a missed neuron at once, and once its gate has let it pass.
    first_rate, rest_rate : float
        Of these reads [B/s].
    active : float
        Neurons that a token needs, pinned ones too.
    """

    hot: float
    kept: float
    needed: float
    missed: float
    dense: float
    sparse: float
    stored: float
    first: float
    rest: float
    first_rate: float
    rest_rate: float
    active: float

    @property
    def miss_rate(self) -> float:
        """Share of the neurons which a token needs that the memory lacks."""
        return self.missed / self.active


def neuron_bytes(plan: Plan, layer: LayerWeights, room: float) -> NeuronBytes:
    """Return what becomes of a layer's neurons.

    Parameters
    ----------
    plan : Plan
        Of a scheme with a cache of neurons.
    layer : LayerWeights
    room : float
        Bytes that this layer's neurons may take in memory, the pinned ones included; for policies that need it.
    """
    scheme = plan.scheme
    assert scheme.cache is not None and scheme.neurons is not None  # or make_plan had refused it
    cache, reads = scheme.cache, scheme.reads or Reads()
    inside = activity_of(scheme.neurons)
    activity = inside.thinned(layer.chosen)
    size = layer.rows * layer.width * plan.width
    count = float(layer.neurons)
    share = min(1.0, max(cache.hot, room / (count * size)))
    kept, missed = _cached(activity, cache.policy, cache.window, cache.hot, share)
    needed = activity.active - activity.covered(cache.hot)
    if cache.miss_rate is not None:
        missed = min(needed, cache.miss_rate * activity.active)
    passing = reads.passing if reads.phases == 2 else 1.0
    (first, rest), requests = read_sizes(reads, layer, plan.width)
    span = count * (first + rest)
    rates = [plan.flash.scattered(request, span, reads.outstanding, reads.clock) for request in requests]
    gate = size / layer.rows
    return NeuronBytes(
        cache.hot * count, kept * count, needed * count, missed * count, cache.hot * count * layer.chosen * size,
        gate + passing * (size - gate), size, first, rest * passing, rates[0], rates[-1], activity.active * count,
    )  # fmt: skip


def read_sizes(
    reads: Reads, layer: LayerWeights, width: float
) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Return the bytes that are read of a neuron at first and after its gate has let it pass, and those of each request.

    Unbundled, each row is a request; a bundle is one, or with two phases the gate's row and the others, in whole blocks.
    """
    row = layer.width * width

    def padded(size: float) -> float:
        return math.ceil(size / reads.block - 1e-9) * reads.block if reads.block else size

    if not reads.bundled:
        return (layer.rows * padded(row), 0.0), (padded(row),)
    whole = padded(layer.rows * row)
    if reads.phases == 1:
        return (whole, 0.0), (whole,)
    first = padded(row)
    return (first, whole - first), (first, whole - first)


def _cached(
    activity: Activity, policy: str, window: int | None, hot: float, share: float
) -> tuple[float, float]:
    """Return the shares of the neurons that a cache holds beside the hot ones, and that a token misses."""
    if policy == "static":
        return share - hot, activity.active - activity.covered(share)
    age = float(window or 0) if policy == "window" else activity.window_of(share - hot, hot)
    if math.isinf(age):
        return 1.0 - hot, 0.0
    return activity.kept(age, hot), activity.new(age, hot)
