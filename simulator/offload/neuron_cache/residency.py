"""What lies in memory through a decode step, and what flash holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.offload.neuron_cache.misses import mapped_misses
from simulator.offload.neuron_cache.plan import NeuronBytes, Plan, neuron_bytes, read_sizes
from simulator.offload.weights import LayerWeights
from simulator.specs.neuron_cache_scenario import Reads

SETTLING = 4
"""Times that a cache which fills the memory is shrunk by what its reads need."""
SLACK = 1.01
"""Buffers over what an average token reads of a layer: room for the last of these times."""
PAGE = 4096.0
"""Bytes of a page of memory, the least that is given out."""


@dataclass(frozen=True)
class Residency:
    """Bytes by category, what each layer's neurons come to, and what plain ways miss.

    Attributes
    ----------
    held : mapping of str to float
        Bytes in memory by category.
    stored : float
        Bytes in flash: the model, with padding.
    neurons : mapping of LayerWeights to NeuronBytes
        Empty for schemes without a cache of neurons.
    misses : mapping of LayerWeights to float
        With mapped weights: share of a layer's touched bytes that is read.
    table_misses : float
        Bytes of embedding and head that a token reads.
    """

    held: Mapping[str, float]
    stored: float
    neurons: Mapping[LayerWeights, NeuronBytes]
    misses: Mapping[LayerWeights, float]
    table_misses: float

    def missed_share(self, layer: LayerWeights) -> float:
        """Return the share of a layer's touched bytes that mapped weights read."""
        return self.misses[layer]

    @property
    def weights_held(self) -> float:
        """Bytes of weights in memory."""
        return sum(size for name, size in self.held.items() if name not in ("KV cache", "buffers"))


def reside(plan: Plan) -> Residency:
    """Return what a scheme keeps in memory."""
    if plan.scheme.mapped:
        return _mapped(plan)
    if plan.scheme.dense:
        return _dense(plan)
    return _neurons(plan)


def _neurons(plan: Plan) -> Residency:
    weights, width = plan.weights, plan.width
    cache, reads = plan.scheme.cache, plan.scheme.reads or Reads()
    assert cache is not None
    held = {
        "attention": weights.fixed * width,
        "embedding and head": (weights.embedding + weights.own_head) * width,
        "predictor": sum(map(plan.predictor_elements, weights.layers)) * plan.predictor_width,
        "KV cache": plan.cache_bytes(),
    }
    every = weights.neuron_elements * width
    if cache.share is not None:
        room = cache.share * every
    elif cache.size is not None:
        room = cache.size + cache.hot * every
    else:
        room = max(0.0, plan.memory - sum(held.values()))
    neurons, buffers = _cached(plan, room)
    if cache.share is None and cache.size is None and cache.policy != "window":
        # the reads of a layer need room too, the more the fewer neurons are kept
        for _ in range(SETTLING):
            neurons, buffers = _cached(plan, max(0.0, room - buffers - PAGE))
    found = [neurons[layer] for layer in weights.layers]
    held["pinned neurons"] = sum(each.hot * each.stored for each in found)
    held["cached neurons"] = sum(each.kept * each.stored for each in found)
    held["buffers"] = buffers
    padded = sum(layer.neurons * sum(read_sizes(reads, layer, width)[0]) for layer in weights.layers)
    return Residency(
        {name: size for name, size in held.items() if size},
        plan.model_bytes - every + padded,
        neurons,
        {},
        0.0,
    )


def _cached(plan: Plan, room: float) -> tuple[dict[LayerWeights, NeuronBytes], float]:
    """Return each layer's neurons where all of them share some bytes, and the bytes of one layer's reads, a little rounded up."""
    weights = plan.weights
    neurons = {
        layer: neuron_bytes(plan, layer, room * layer.neuron_elements / weights.neuron_elements)
        for layer in dict.fromkeys(weights.layers)
    }
    return neurons, SLACK * max(each.missed * (each.first + each.rest) for each in neurons.values())


def _mapped(plan: Plan) -> Residency:
    weights, width = plan.weights, plan.width
    mapped = plan.scheme.mapped
    assert mapped is not None
    cache = plan.cache_bytes()
    room = min(plan.model_bytes, max(0.0, plan.memory - cache))
    kinds = list(dict.fromkeys(weights.layers))
    parts = [(weights.head * width, 1.0)]
    for layer in kinds:
        times = weights.layers.count(layer) * width
        parts.append((times * layer.fixed, 1.0))
        parts.append((times * layer.neuron_elements, layer.chosen))
    shares = mapped_misses(parts, room, mapped.replacement)
    misses = {layer: _blend(layer, shares[1 + 2 * i], shares[2 + 2 * i]) for i, layer in enumerate(kinds)}
    held = {"page cache": room, "KV cache": cache}
    return Residency(held, plan.model_bytes, {}, misses, weights.head * width * shares[0])


def _blend(layer: LayerWeights, fixed: float, neurons: float) -> float:
    return (layer.fixed * fixed + layer.chosen * layer.neuron_elements * neurons) / layer.used


def _dense(plan: Plan) -> Residency:
    weights, width = plan.weights, plan.width
    dense = plan.scheme.dense
    assert dense is not None
    away = 1.0 - dense.resident
    largest = max(layer.used for layer in weights.layers) * width * away
    held = {
        "resident weights": plan.model_bytes * dense.resident,
        "KV cache": plan.cache_bytes(),
        "buffers": largest * (2.0 if dense.overlap else 1.0),
    }
    # a token reads a row of the embedding; a scheme that knows nothing of that loads the table
    tables = (weights.embedding + weights.own_head) * width * away
    return Residency({name: size for name, size in held.items() if size}, plan.model_bytes, {}, {}, tables)
