"""What the catalog's entries come to: one line for a list, derived figures for ``memroof show``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from simulator.report.layout import quantity
from simulator.specs import (
    Calibration,
    Catalog,
    Cluster,
    Graph,
    LinkType,
    Machine,
    MeasuredLayers,
    MemoryDevice,
    MemroofError,
    Model,
    Node,
    Processor,
    Scenario,
)

_LINE = 90
"""Characters of a description in a list."""
_HEADLINE_FORMATS = ("bf16", "fp16", "tf32", "fp32")


@dataclass(frozen=True, slots=True)
class Fact:
    """A derived figure: key for data, label for people, value [SI of the dimension]."""

    key: str
    label: str
    value: float
    dimension: str

    def __str__(self) -> str:
        return quantity(self.value, self.dimension)


def entry(catalog: Catalog, kind: str, name: str) -> Any:
    """Return a checked entry of the catalog by kind; for a scenario its references are checked as well.

    Raises
    ------
    MemroofError
        If there is no such entry, or its file is not right.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "device": catalog.device,
        "link": catalog.link,
        "node": catalog.node,
        "cluster": catalog.cluster,
        "model": catalog.model,
        "layers": catalog.layers,
        "graph": catalog.graph,
        "scenario": catalog.scenario,
        "calibration": lambda stem: _calibration(catalog, stem),
    }
    return readers[kind](name)


def one_line(catalog: Catalog, kind: str, name: str) -> tuple[str, ...]:
    """Return the cells of an entry's row in a list: its name and the facts that tell it from its neighbours."""
    item = entry(catalog, kind, name)
    if isinstance(item, Processor):
        return (name, item.kind, *_processor_cells(item))
    if isinstance(item, MemoryDevice):
        rates = f"read {quantity(item.read_bandwidth, 'bytes/s')}, write {quantity(item.write_bandwidth, 'bytes/s')}"
        return name, item.kind, quantity(item.capacity, "bytes"), rates, item.technology
    if isinstance(item, LinkType):
        return name, item.technology, quantity(item.bandwidth, "bytes/s"), quantity(item.latency, "seconds")
    if isinstance(item, Node):
        parts = (f"{part.count} x {part.device}" for part in item.components.values() if part.device)
        return name, ", ".join(parts)
    if isinstance(item, Cluster):
        return name, ", ".join(f"{group.count} x {group.node}" for group in item.groups)
    if isinstance(item, Model):
        return _model_cells(name, item)
    if isinstance(item, MeasuredLayers):
        count, weights = _layer_sums(item)
        return name, f"{count} layers", quantity(weights, "bytes"), f"measured on {item.device}"
    if isinstance(item, Graph):
        counts = (f"{item.nodes:,} nodes", f"{item.edges:,} edges")
        return name, *counts, f"{item.features} features", f"{item.train_nodes:,} for training"
    if isinstance(item, Calibration):
        return name, shorten(item.source, _LINE, placeholder=" ...")
    return _scenario_cells(name, item)


def derived(catalog: Catalog, kind: str, name: str) -> list[Fact]:
    """Return what follows from an entry's figures; empty where nothing does."""
    item = entry(catalog, kind, name)
    if isinstance(item, Processor):
        return _processor_facts(item)
    if isinstance(item, MemoryDevice):
        fill = item.capacity / item.read_bandwidth
        return [Fact("read_time", "time to read all of it", fill, "seconds")]
    if isinstance(item, Model):
        return _model_facts(item)
    if isinstance(item, MeasuredLayers):
        count, weights = _layer_sums(item)
        return [
            Fact("layers", "layers", count, "count"),
            Fact("weights", "weights and buffers", weights, "bytes"),
            Fact("largest_forward", "largest micro-batch forward", item.micro_batches.forward[-1], "count"),
            Fact(
                "largest_backward", "largest micro-batch backward", item.micro_batches.backward[-1], "count"
            ),
        ]
    if isinstance(item, Graph):
        return [
            Fact("mean_degree", "edges of a node, mean", item.edges / item.nodes, "count"),
            Fact("feature_bytes", "features in 32 bits", 4.0 * item.features * item.nodes, "bytes"),
        ]
    if isinstance(item, Node):
        return _machine_facts(catalog.machine(item.name))
    if isinstance(item, Cluster):
        counts = [(group.count, catalog.machine(group.node)) for group in item.groups]
        accelerators = sum(count * len(machine.ranks) for count, machine in counts)
        return [
            Fact("nodes", "nodes", sum(count for count, _ in counts), "count"),
            Fact("accelerators", "accelerators", accelerators, "count"),
        ]
    return []


def _layer_sums(item: MeasuredLayers) -> tuple[int, float]:
    weights = sum(layer.count * (layer.weights + layer.buffers) for layer in item.layers)
    return sum(layer.count for layer in item.layers), weights


def _calibration(catalog: Catalog, name: str) -> Calibration:
    from simulator.specs import validate
    from simulator.specs.source import read_document

    return validate(read_document(catalog.file("calibration", name)), Calibration)


def _peak(device: Processor) -> tuple[str, float]:
    for table in (device.compute.matrix, device.compute.vector):
        for number_format in _HEADLINE_FORMATS:
            if number_format in table:
                return number_format, table[number_format]
    return next(iter(device.compute.vector.items()))


def _processor_cells(device: Processor) -> tuple[str, ...]:
    number_format, peak = _peak(device)
    main = next(iter(device.memory.values()), None)
    memory = (quantity(main.capacity, "bytes"), quantity(main.bandwidth, "bytes/s")) if main else ("-", "-")
    return (*memory, f"{quantity(peak, 'FLOP/s')} {number_format}", quantity(device.power.limit, "watts"))


def _processor_facts(device: Processor) -> list[Fact]:
    main = next(iter(device.memory.values()), None)
    if main is None:
        return []
    peaks = {**device.compute.vector, **device.compute.matrix}
    facts = [
        Fact(
            f"ridge_{number_format}",
            f"FLOP per byte at the ridge, {number_format}",
            peak / main.bandwidth,
            "ratio",
        )
        for number_format, peak in peaks.items()
    ]
    return [
        *facts,
        Fact("read_time", "time to read all of its memory", main.capacity / main.bandwidth, "seconds"),
    ]


def _model_cells(name: str, model: Model) -> tuple[str, ...]:
    kind = "MoE " + model.family if model.moe else model.family
    experts = f"{model.moe.num_experts} experts, {model.moe.num_experts_per_tok} used" if model.moe else ""
    facts = {fact.key: fact for fact in _model_facts(model)}
    parameters = quantity(facts["parameters"].value / 1e9, "ratio") + " B"
    layers = model.num_hidden_layers + model.num_encoder_layers
    kv = (
        f"KV {facts['kv_bytes_per_token'].value:,.0f} B/token"
        if "kv_bytes_per_token" in facts
        else "no KV cache"
    )
    return name, kind, parameters, f"{layers} layers", f"hidden {model.hidden_size}", kv, experts


def _model_facts(model: Model) -> list[Fact]:
    from simulator.graph import Numerics, Shape, build

    numerics = Numerics.of("bf16")
    graph = build(model, Shape(1, 1, 1, phase="decode"), numerics=numerics)
    facts = [Fact("parameters", "parameters", float(graph.parameters), "count")]
    if model.parameters is not None:
        facts.append(
            Fact("published_parameters", "parameters, as published", model.parameters.value, "count")
        )
    facts.append(Fact("weight_bytes", "weights in 16 bit", float(graph.weight_bytes), "bytes"))
    facts.append(Fact("decode_flops", "FLOP a generated token (no context)", float(graph.flops()), "FLOP"))
    kv = float(graph.kv_bytes(1))
    if kv and model.family != "encoder":
        facts.append(Fact("kv_bytes_per_token", "KV cache a token, bytes in 16 bit", kv, "count"))
        longest = float(graph.kv_bytes(model.max_position_embeddings))
        facts.append(
            Fact(
                "kv_bytes_longest", f"KV cache of {model.max_position_embeddings:,} tokens", longest, "bytes"
            )
        )
    return facts


def _machine_facts(machine: Machine) -> list[Fact]:
    facts = [Fact("accelerators", "accelerators", len(machine.ranks), "count")]
    for tier in dict.fromkeys(store.tier for store in machine.stores):
        capacity = sum(store.capacity for store in machine.tier(tier))
        facts.append(Fact(f"capacity_{tier}", f"{tier}, all together", capacity, "bytes"))
    target = machine.ranks[0].memory
    for tier in dict.fromkeys(store.tier for store in machine.stores):
        source = machine.tier(tier)[0].name
        if target is None or source == target or tier == machine.store(target).tier:
            continue
        try:
            rate = machine.path(source, target).bandwidth
        except MemroofError:
            continue
        facts.append(Fact(f"path_{tier}", f"{source} to {target}", rate, "bytes/s"))
    return facts


def _scenario_cells(name: str, scenario: Scenario) -> tuple[str, ...]:
    choice = scenario.hardware
    hardware = choice.device or choice.node or choice.cluster or ""
    count = choice.count or choice.nodes
    return (
        name,
        scenario.kind,
        scenario.model or getattr(scenario, "layers", ""),
        f"{count} x {hardware}" if count else hardware,
        shorten(scenario.description, _LINE, placeholder=" ..."),
    )
