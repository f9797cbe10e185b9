"""What would change the answer: remedies for what does not fit, and sensitivity to each hardware figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from simulator.analysis.result import Result, Value
from simulator.analysis.run import by_device, cost_model
from simulator.analysis.strategies import strategy
from simulator.specs import Hardware, MemroofError, Processor, scenario_with
from simulator.specs.machine import Edge, Machine, Store
from simulator.strategy import Remedy, Setup

STEP = 0.1
"""Relative change of a hardware figure for the sensitivity."""


@dataclass(frozen=True, slots=True)
class RemedyTried:
    """A change that was tried: whether it fits, and how fast it is."""

    description: str
    overrides: Mapping[str, str]
    fits: bool
    ok: bool
    headline: Value | None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What 10 % more of one hardware figure does to the headline: relative change of its value."""

    figure: str
    change: float
    effect: float


def try_remedies(setup: Setup, *, most: int = 4) -> tuple[RemedyTried, ...]:
    """Run the changes that a strategy proposes and return those that fit, the mildest first."""
    found: list[RemedyTried] = []
    module = strategy(setup.scenario.kind)
    for remedy in module.remedies(setup):
        tried = _try(setup, remedy)
        if tried is not None and tried.fits:
            found.append(tried)
        if len(found) >= most:
            break
    return tuple(found)


def _try(setup: Setup, remedy: Remedy) -> RemedyTried | None:
    try:
        scenario = scenario_with(setup.scenario, remedy.overrides)
        nodes = scenario.hardware.nodes
        hardware = setup.hardware.with_nodes(nodes) if nodes else setup.hardware
        changed = replace(setup, scenario=scenario, hardware=hardware)
        result = Result(changed, strategy(scenario.kind).simulate(changed))
    except MemroofError:  # the change breaks another rule of the strategy: no remedy
        return None
    return RemedyTried(remedy.description, remedy.overrides, result.fits, result.ok, result.headline)


def sensitivity(result: Result) -> tuple[Sensitivity, ...]:
    """Run the scenario with 10 % more of each hardware figure; the largest effect first."""
    setup, rows = result.setup, []
    base = result.headline.value
    for name, change in FIGURES.items():
        hardware = change(setup.hardware, 1.0 + STEP)
        costs = {
            name: cost_model(alone, own.calibration, own.measured, training=own.training)
            for name, alone in by_device(hardware).items()
            for own in (setup.cost_on(name),)
        }
        first, *others = costs.items()
        changed = replace(setup, hardware=hardware, cost=first[1], others=dict(others))
        found = Result(changed, strategy(setup.scenario.kind).simulate(changed)).headline.value
        if base and found != base:
            rows.append(Sensitivity(name, STEP, found / base - 1.0))
    return tuple(sorted(rows, key=lambda row: (-abs(row.effect), row.figure)))


def _with_device(hardware: Hardware, change: Callable[[Processor], Processor]) -> Hardware:
    def changed(machine: Machine) -> Machine:
        engines = tuple(
            replace(engine, device=change(engine.device))
            if engine.component == machine.accelerator
            else engine
            for engine in machine.engines
        )
        return replace(machine, engines=engines)

    return hardware.with_machines(changed)


def _power(hardware: Hardware, factor: float) -> Hardware:
    def change(device: Processor) -> Processor:
        if device.power is None:
            return device
        power = device.power.model_copy(update={"limit": device.power.limit * factor})
        return device.model_copy(update={"power": power})

    return _with_device(hardware, change)


def _peak(hardware: Hardware, factor: float) -> Hardware:
    def change(device: Processor) -> Processor:
        compute = device.compute
        scaled = {
            name: {key: value * factor for key, value in getattr(compute, name).items()}
            for name in ("matrix", "vector")
        }
        return device.model_copy(update={"compute": compute.model_copy(update=scaled)})

    return _with_device(hardware, change)


def _bandwidth(hardware: Hardware, factor: float) -> Hardware:
    def change(device: Processor) -> Processor:
        memory = {
            k: m.model_copy(update={"bandwidth": m.bandwidth * factor}) for k, m in device.memory.items()
        }
        return device.model_copy(update={"memory": memory})

    def stores(machine: Machine) -> Machine:
        owners = {engine.memory for engine in machine.ranks}
        return _with_stores(machine, lambda store: store.name in owners, factor)

    return _with_device(hardware, change).with_machines(stores)


def _with_stores(machine: Machine, chosen: Callable[[Store], bool], factor: float) -> Machine:
    def faster(edge: Edge) -> Edge:
        return replace(edge, bandwidth=edge.bandwidth * factor)

    stores = tuple(
        replace(store, read=faster(store.read), write=faster(store.write)) if chosen(store) else store
        for store in machine.stores
    )
    return replace(machine, stores=stores)


def _links(machine: Machine, factor: float, *, peers: bool) -> Machine:
    """Scale the links on the way between accelerators (``peers``), or all the others."""
    between = set(machine.peer_edges(0, 1)) if len(machine.ranks) > 1 else set()
    kinds = {edge.link.name for edge in between if edge.link is not None}
    channels = {store.owner for store in machine.stores if store.tier == "dram"}

    def chosen(a: str, b: str, edge: Edge) -> bool:
        joins_peers = edge.link is not None and edge.link.name in kinds
        return joins_peers if peers else not joins_peers and not channels & {a, b}

    links = tuple(
        (a, b, replace(edge, bandwidth=edge.bandwidth * factor) if chosen(a, b, edge) else edge)
        for a, b, edge in machine.links
    )
    return replace(machine, links=links)


def _host_memory(machine: Machine, factor: float) -> Machine:
    """Scale DRAM ports together with the channels that join them to their socket."""
    owners = {store.owner for store in machine.stores if store.tier == "dram"}
    links = tuple(
        (a, b, replace(edge, bandwidth=edge.bandwidth * factor) if owners & {a, b} else edge)
        for a, b, edge in machine.links
    )
    return _with_stores(replace(machine, links=links), lambda store: store.tier == "dram", factor)


def _in_nodes(change: Callable[[Machine, float], Machine]) -> Callable[[Hardware, float], Hardware]:
    return lambda hardware, factor: hardware.with_machines(lambda machine: change(machine, factor))


FIGURES: Mapping[str, Callable[[Hardware, float], Hardware]] = {
    "accelerator peak FLOP/s": _peak,
    "accelerator power limit": _power,
    "accelerator memory bandwidth": _bandwidth,
    "accelerator-to-accelerator link bandwidth": _in_nodes(lambda m, factor: _links(m, factor, peers=True)),
    "host link bandwidth": _in_nodes(lambda m, factor: _links(m, factor, peers=False)),
    "network bandwidth": lambda hardware, factor: hardware.with_network(factor),
    "host DRAM bandwidth": _in_nodes(_host_memory),
    "flash bandwidth": _in_nodes(
        lambda m, factor: _with_stores(m, lambda s: s.tier in ("nvme", "ufs"), factor)
    ),
}
"""Hardware figures that the sensitivity varies, each a function of (hardware, factor)."""
