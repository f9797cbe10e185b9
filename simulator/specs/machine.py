"""A machine as a graph: memories and processors are nodes, links are edges; paths, contention, groups of its ranks.

Every resource that transfers share is one directed :class:`Edge` with a bandwidth: a memory's port, one
direction of a link, a bus. Two paths contend where they have an edge in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from simulator.specs.errors import MemroofError, did_you_mean
from simulator.specs.hardware import (
    Component,
    LinkType,
    MemoryDevice,
    MemoryPort,
    Node,
    Price,
    Processor,
)
from simulator.specs.routing import Edge, best_paths, concurrent_rate

__all__ = ["Edge", "Engine", "Machine", "Route", "Span", "Store", "Tier", "build_machine"]


@dataclass(frozen=True, slots=True)
class Store:
    """A memory of the machine: capacity [B] and its ports (one edge where reads and writes share a bus)."""

    name: str
    technology: str
    capacity: float
    read: Edge
    write: Edge
    owner: str
    """The processor that it is attached to, or its own name for a device on a link."""
    tier: str
    """hbm, dram, cxl, nvme, ssd or ufs: the row of the footprint ledger."""
    device: MemoryDevice | None = field(default=None, compare=False, repr=False)
    """Data sheet of a device that only stores: what scattered reads of it reach (`simulator.cost.read_rate`)."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A processor of the machine by its place in it."""

    name: str
    component: str
    device: Processor
    memory: str | None
    """Name of its main memory in the machine."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path between two memories: its edges, the sum of latencies [s] and the narrowest bandwidth [B/s]."""

    source: str
    target: str
    edges: tuple[Edge, ...]

    @property
    def bandwidth(self) -> float:
        """Peak of the narrowest edge [B/s]."""
        return min(edge.bandwidth for edge in self.edges)

    @property
    def latency(self) -> float:
        """Sum over the edges [s]."""
        return sum(edge.latency for edge in self.edges)


@dataclass(frozen=True, slots=True)
class Tier:
    """One level of the hierarchy that a group of ranks spans."""

    name: str
    size: int
    """Members at this level: ranks of the group inside one unit of the level below the next."""
    bandwidth: float
    """Per rank and direction [B/s], when all ranks of the machine communicate at once."""
    latency: float
    """Of one hop [s]."""
    reduces: bool = False
    """True where the switch can reduce in flight."""
    measured: bool = False
    """True where the bandwidth was measured, so that what software reaches of the wire is in it already."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a communicator of ``size`` ranks spans, innermost level first; the sizes multiply to ``size``."""

    tiers: tuple[Tier, ...]

    @property
    def size(self) -> int:
        """Ranks of the group."""
        product = 1
        for tier in self.tiers:
            product *= tier.size
        return product


@dataclass(frozen=True)
class Machine:
    """One node, expanded: every part by name, with the links between them."""

    name: str
    engines: tuple[Engine, ...]
    stores: tuple[Store, ...]
    links: tuple[tuple[str, str, Edge], ...]
    """(from, to, edge): directed; the two directions of a half-duplex link carry the same edge."""
    accelerator: str
    """The component whose processors are the ranks: the first that is no CPU, else the CPU."""
    node: Node | None = field(repr=False, default=None)
    price: Price = field(default_factory=Price)
    parts: tuple[tuple[str, int, float | None], ...] = ()
    """Components that are devices: name, count, and what one costs to buy [$], None where no price is known."""

    @cached_property
    def ranks(self) -> tuple[Engine, ...]:
        """The accelerators, in rank order (CPUs where there is nothing else)."""
        return tuple(engine for engine in self.engines if engine.component == self.accelerator)

    @cached_property
    def hosts(self) -> tuple[Engine, ...]:
        """The CPUs."""
        return tuple(engine for engine in self.engines if engine.device.kind == "cpu")

    @cached_property
    def _stores(self) -> dict[str, Store]:
        return {store.name: store for store in self.stores}

    @cached_property
    def _neighbours(self) -> dict[str, list[tuple[str, Edge]]]:
        table: dict[str, list[tuple[str, Edge]]] = {}
        for source, target, edge in self.links:
            table.setdefault(source, []).append((target, edge))
        return table

    @cached_property
    def _paths(self) -> dict[str, dict[str, tuple[Edge, ...]]]:
        return {}

    def store(self, name: str) -> Store:
        """Return a memory by name; raises :class:`MemroofError` with the nearest names."""
        if name not in self._stores:
            raise MemroofError(f"{self.name} has no memory {name!r}{did_you_mean(name, self._stores)}")
        return self._stores[name]

    def tier(self, tier: str) -> tuple[Store, ...]:
        """Return the memories of a tier (``hbm``, ``dram``, ``nvme``) in order; empty if there are none."""
        return tuple(store for store in self.stores if store.tier == tier)

    def path(self, source: str, target: str) -> Route:
        """Return the best path between two memories; see :func:`~simulator.specs.routing.best_paths`.

        The route begins with the source's read port and ends with the target's write port. Raises
        :class:`MemroofError` if nothing connects them.
        """
        start, end = self.store(source), self.store(target)
        edges = (start.read, *self._between(start.owner, end.owner, source, target), end.write)
        return Route(source, target, tuple(dict.fromkeys(edges)))

    def peer_edges(self, rank: int, peer: int) -> tuple[Edge, ...]:
        """Return the edges from one accelerator to another, memory ports left out.

        Raises
        ------
        MemroofError
            If nothing connects them, or there is no such rank.
        """
        for index in (rank, peer):
            if not 0 <= index < len(self.ranks):
                raise MemroofError(f"{self.name} has no rank {index}; it has {len(self.ranks)}")
        source, target = self.ranks[rank].name, self.ranks[peer].name
        return self._between(source, target, source, target)

    def tier_of(self, members: Sequence[int]) -> Tier:
        """Return the level ``node`` for a group of two or more of its accelerators.

        Ranks at equal distances are one of as many groups as the machine holds of them, which all communicate at
        once, each around a ring; other ranks communicate alone.
        """
        key = tuple(members)
        if key not in self._tiers:
            self._tiers[key] = self._tier_of(key)
        return self._tiers[key]

    @cached_property
    def _tiers(self) -> dict[tuple[int, ...], Tier]:
        return {}

    def _tier_of(self, members: tuple[int, ...]) -> Tier:
        # every group of this shape communicates at once, each around a ring, and shares what the rings cross
        size = len(members)
        groups = self._alike(members)
        pairs = [(a, group[(i + 1) % size]) for group in groups for i, a in enumerate(group)]
        routes = [self.peer_edges(a, b) for a, b in pairs]
        latency = max(sum(edge.latency for edge in route) for route in routes)
        if all(len(route) == 1 for route in routes):
            return Tier("node", size, min(self._direct(a, group) for group in groups for a in group), latency)
        reduces = all(
            edge.link is not None and edge.link.in_network_reduction for route in routes for edge in route
        )
        return Tier("node", size, concurrent_rate(routes), latency, reduces)

    def _alike(self, members: tuple[int, ...]) -> list[Sequence[int]]:
        steps = {b - a for a, b in pairwise(members)}
        if len(steps) != 1 or min(steps) < 1:
            return [members]
        (stride,) = steps
        span = len(members) * stride
        starts = [b + i for b in range(0, len(self.ranks), span) for i in range(stride)]
        return [
            range(start, start + span, stride) for start in starts if start + span - stride < len(self.ranks)
        ]

    def _direct(self, rank: int, group: Sequence[int]) -> float:
        # accelerators wired to one another run as many rings as they have links, and so use all at once
        routes = [self.peer_edges(rank, peer) for peer in group if peer != rank]
        edges = [route[0] for route in routes if len(route) == 1]
        return sum(
            e.bandwidth / (2.0 if e.link is not None and e.link.duplex == "half" else 1.0) for e in edges
        )

    def _between(self, source: str, target: str, start: str, end: str) -> tuple[Edge, ...]:
        if source not in self._paths:
            accelerators = frozenset(engine.name for engine in self.engines if engine.device.kind != "cpu")
            self._paths[source] = best_paths(self._neighbours, source, accelerators)
        hops = self._paths[source].get(target)
        if hops is None:
            raise MemroofError(f"{self.name}: no path from {start} to {end}; add a wire between them")
        return hops


LinkLookup = Callable[[str], LinkType]
DeviceLookup = Callable[[str], Processor | MemoryDevice]


def build_machine(node: Node, device: DeviceLookup, link: LinkLookup) -> Machine:
    """Expand a node's components and wires into named parts, memories and directed edges.

    A component of several parts names them with an index (``gpu0``); one part bears the component's own name.

    Raises
    ------
    MemroofError
        If nothing computes, a capacity or bandwidth is set on a part that has no memory, a component of one
        part is wired to itself, or two wires join the same two parts.
    """
    engines: list[Engine] = []
    stores: list[Store] = []
    parts: dict[str, list[str]] = {}
    priced: list[tuple[str, int, float | None]] = []
    for component, spec in node.components.items():
        names = [component] if spec.count == 1 else [f"{component}{i}" for i in range(spec.count)]
        parts[component] = names
        found = device(spec.device) if spec.device is not None else None
        if found is not None:
            priced.append((component, spec.count, _purchase(spec, found)))
        ports = _ports(node.name, component, spec, found)
        for name in names:
            if isinstance(found, Processor):
                memories = [_port(name, key, port) for key, port in ports.items()]
                stores.extend(memories)
                engines.append(Engine(name, component, found, memories[0].name if memories else None))
            elif found is not None:
                stores.append(_device_store(name, found, spec.capacity, spec.bandwidth))
    links = _links(node, parts, link)
    engines = [_with_memory(engine, stores, links) for engine in engines]
    accelerators = [e.component for e in engines if e.device.kind != "cpu"] or [e.component for e in engines]
    if not accelerators:
        raise MemroofError(f"{node.name}: no component computes; add a processor")
    return Machine(
        node.name,
        tuple(engines),
        tuple(stores),
        tuple(links),
        accelerators[0],
        node,
        node.price,
        tuple(priced),
    )


def _purchase(spec: Component, device: Processor | MemoryDevice) -> float | None:
    """Return what one part costs [$]: a device's price, in proportion to the capacity that the node gives it."""
    price = device.price.purchase
    if price is None or spec.capacity is None or not isinstance(device, MemoryDevice):
        return price
    return price * spec.capacity / device.capacity


def _ports(
    node: str, component: str, spec: Component, device: Processor | MemoryDevice | None
) -> dict[str, MemoryPort]:
    """Return a processor's memories, the main one with the capacity and bandwidth that the node gives it."""
    ports = dict(device.memory) if isinstance(device, Processor) else {}
    changes = {key: getattr(spec, key) for key in ("capacity", "bandwidth") if getattr(spec, key) is not None}
    if changes and not isinstance(device, MemoryDevice):
        if not ports:
            raise MemroofError(
                f"{node}: component {component!r} has no memory of its own; "
                "give 'capacity' and 'bandwidth' to the component that stores"
            )
        main = next(iter(ports))
        ports[main] = ports[main].model_copy(update=changes)
    return ports


def _port(owner: str, key: str, port: MemoryPort) -> Store:
    edge = Edge(f"{owner}.{key}", port.bandwidth, port.latency)
    return Store(edge.name, port.technology, port.capacity, edge, edge, owner, key)


def _device_store(name: str, device: MemoryDevice, capacity: float | None, bandwidth: float | None) -> Store:
    read_bandwidth, write_bandwidth = bandwidth or device.read_bandwidth, bandwidth or device.write_bandwidth
    if device.shared_port:
        read = write = Edge(f"{name}.bus", read_bandwidth, device.read_latency)
    else:
        read = Edge(f"{name}.read", read_bandwidth, device.read_latency)
        write = Edge(f"{name}.write", write_bandwidth, device.write_latency)
    tier = {"ssd": "nvme"}.get(device.kind, device.kind)
    return Store(name, device.technology, capacity or device.capacity, read, write, name, tier, device)


def _with_memory(engine: Engine, stores: list[Store], links: list[tuple[str, str, Edge]]) -> Engine:
    """Give a CPU without memory of its own the first DRAM that is wired to it."""
    if engine.memory is not None:
        return engine
    joined = {target for source, target, _ in links if source == engine.name}
    main = next((store.name for store in stores if store.tier == "dram" and store.owner in joined), None)
    return replace(engine, memory=main)


def _links(node: Node, parts: Mapping[str, list[str]], link: LinkLookup) -> list[tuple[str, str, Edge]]:
    links: list[tuple[str, str, Edge]] = []
    joined: set[frozenset[str]] = set()
    for wire in node.wires:
        pairs = _pairs(parts, wire.between)
        if not pairs:
            raise MemroofError(
                f"{node.name}: {wire.between[0]!r} is wired to itself, which needs at least two parts"
            )
        kind = link(wire.link)
        for a, b in pairs:
            if frozenset((a, b)) in joined:
                raise MemroofError(f"{node.name}: two wires join {a} and {b}; use one, with 'lanes'")
            joined.add(frozenset((a, b)))
            half = kind.duplex == "half"
            there = Edge(f"{a}-{b}" if half else f"{a}>{b}", kind.bandwidth * wire.lanes, kind.latency, kind)
            back = there if half else replace(there, name=f"{b}>{a}")
            links += [(a, b, there), (b, a, back)]
    return links


def _pairs(parts: Mapping[str, list[str]], between: tuple[str, str]) -> list[tuple[str, str]]:
    first, second = (parts[name] for name in between)
    if between[0] == between[1]:
        return [(a, b) for i, a in enumerate(first) for b in first[i + 1 :]]
    many = max(len(first), len(second))
    return [(first[i * len(first) // many], second[i * len(second) // many]) for i in range(many)]
