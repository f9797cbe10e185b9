"""A machine as a graph: memories and processors are nodes, links are edges; paths, contention and rank groups.

Every resource that transfers share is one directed :class:`Edge` with a bandwidth: a memory's port, one direction of a
link, a bus. Two paths contend where they have an edge in common.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from simulator.specs.errors import MemroofError, did_you_mean
from simulator.specs.hardware import LinkType, MemoryDevice, Network, Node, Price, Processor


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed capacity that transfers share max-min fairly: bandwidth [B/s], latency [s]."""

    name: str
    bandwidth: float
    latency: float = 0.0
    link: LinkType | None = None


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
    price: Price = Price()

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

    def store(self, name: str) -> Store:
        """Return a memory by name; raises :class:`MemroofError` with the nearest names."""
        if name not in self._stores:
            raise MemroofError(f"{self.name} has no memory {name!r}{did_you_mean(name, self._stores)}")
        return self._stores[name]

    def tier(self, tier: str) -> tuple[Store, ...]:
        """Return the memories of a tier (``hbm``, ``dram``, ``nvme``) in order; empty if there are none."""
        return tuple(store for store in self.stores if store.tier == tier)

    def path(self, source: str, target: str) -> Route:
        """Return the shortest path between two memories: fewest hops first, then latency, then name.

        The route begins with the source's read port and ends with the target's write port. Raises
        :class:`MemroofError` if nothing connects them.
        """
        start, end = self.store(source), self.store(target)
        hops = self._shortest(start.owner, end.owner)
        if hops is None:
            raise MemroofError(f"{self.name}: no path from {source} to {target}; add a wire between them")
        edges = (start.read, *hops, end.write)
        return Route(source, target, tuple(dict.fromkeys(edges)))

    def _shortest(self, source: str, target: str) -> tuple[Edge, ...] | None:
        queue: list[tuple[int, float, tuple[str, ...], str, tuple[Edge, ...]]] = [(0, 0.0, (), source, ())]
        done: set[str] = set()
        while queue:
            hops, latency, names, here, edges = heapq.heappop(queue)
            if here == target:
                return edges
            if here in done:
                continue
            done.add(here)
            for there, edge in self._neighbours.get(here, ()):
                if there not in done:
                    step = (hops + 1, latency + edge.latency, (*names, edge.name), there, (*edges, edge))
                    heapq.heappush(queue, step)
        return None

    def peer_edges(self, rank: int, peer: int) -> tuple[Edge, ...]:
        """Return the edges between two accelerators, memory ports left out."""
        hops = self._shortest(self.ranks[rank].name, self.ranks[peer].name)
        if hops is None:
            raise MemroofError(f"{self.name}: no path between {self.ranks[rank].name} and {self.ranks[peer].name}")
        return hops


@dataclass(frozen=True)
class Hardware:
    """What a scenario runs on: equal machines and the network between them."""

    name: str
    machine: Machine
    nodes: int
    network: tuple[tuple[Network, LinkType], ...]

    @property
    def ranks_per_node(self) -> int:
        """Accelerators of one node."""
        return len(self.machine.ranks)

    @property
    def size(self) -> int:
        """Accelerators of all nodes."""
        return self.ranks_per_node * self.nodes

    @property
    def device(self) -> Processor:
        """The accelerator."""
        return self.machine.ranks[0].device

    @property
    def memory(self) -> Store:
        """The accelerator's main memory."""
        engine = self.machine.ranks[0]
        return self.machine.store(engine.memory or self.machine.stores[0].name)

    def with_nodes(self, nodes: int) -> Hardware:
        """Return the same hardware with another count of nodes."""
        return replace(self, nodes=nodes)

    def span(self, size: int, stride: int = 1) -> Span:
        """Return what a group of ``size`` ranks, ``stride`` apart in rank order, spans.

        A tensor-parallel group has stride 1; a data-parallel group of ranks that each hold a tensor- and
        pipeline-parallel share has that share as its stride. Levels of one member are left out.

        Raises
        ------
        MemroofError
            If the group needs more ranks than there are, or nothing connects its members.
        """
        if size * stride > self.size and size > 1 and (size - 1) * stride + 1 > self.size:
            raise MemroofError(
                f"a group of {size} ranks with stride {stride} needs {(size - 1) * stride + 1} ranks; "
                f"{self.name} has {self.size}"
            )
        per_node = self.ranks_per_node
        local = max(1, min(size, -(-per_node // stride)))
        while size % local:
            local -= 1
        tiers: list[Tier] = []
        if local > 1:
            tiers.append(self._node_tier(local, stride))
        tiers.extend(self._network_tiers(size // local, max(1, stride // per_node)))
        return Span(tuple(tiers))

    def _node_tier(self, size: int, stride: int) -> Tier:
        edges = self.machine.peer_edges(0, min(stride, self.ranks_per_node - 1))
        bandwidth = min(self._per_rank(edge) for edge in edges)
        reduces = all(edge.link is not None and edge.link.in_network_reduction for edge in edges)
        return Tier("node", size, bandwidth, sum(edge.latency for edge in edges), reduces)

    def _per_rank(self, edge: Edge) -> float:
        # an edge that several ranks must cross to reach the others (a host bridge, a bus) is shared by them
        if not self.machine.node or self.ranks_per_node < 2:
            return edge.bandwidth
        crossing = sum(
            edge in self.machine.peer_edges(rank, (rank + 1) % self.ranks_per_node) for rank in range(self.ranks_per_node)
        )
        direct = self._direct_links()
        return edge.bandwidth * direct / max(1, crossing) if direct > 1 else edge.bandwidth / max(1, crossing)

    def _direct_links(self) -> int:
        # all-to-all wired accelerators use every one of their direct links at once
        names = {engine.name for engine in self.machine.ranks}
        first = self.machine.ranks[0].name
        return sum(source == first and target in names for source, target, _ in self.machine.links)

    def _network_tiers(self, nodes: int, stride: int) -> list[Tier]:
        tiers: list[Tier] = []
        remaining, reach = nodes, 1
        bandwidth, latency = float("inf"), 0.0
        for index, (level, link) in enumerate(self.network):
            if remaining <= 1:
                break
            bandwidth = min(bandwidth, link.bandwidth * level.links_per_node / self.ranks_per_node) / level.oversubscription
            latency += link.latency
            last = index == len(self.network) - 1
            members = remaining
            if level.nodes is not None and not last:
                members = max(1, min(remaining, level.nodes // reach // stride))
                while remaining % members:
                    members -= 1
                reach = level.nodes
                stride = 1 if members > 1 else max(1, stride // level.nodes)
            if members > 1:
                tiers.append(Tier(level.name, members, bandwidth, latency, link.in_network_reduction))
            remaining //= members
        if remaining > 1:
            raise MemroofError(
                f"{self.name} has no network that joins {nodes} nodes; give the cluster a 'network' level that reaches them"
            )
        return tiers


LinkLookup = Callable[[str], LinkType]
DeviceLookup = Callable[[str], Processor | MemoryDevice]


def build_machine(node: Node, device: DeviceLookup, link: LinkLookup) -> Machine:
    """Expand a node's components and wires into named parts, memories and directed edges."""
    engines: list[Engine] = []
    stores: list[Store] = []
    parts: dict[str, list[str]] = {}
    for component, spec in node.components.items():
        names = [component] if spec.count == 1 else [f"{component}{i}" for i in range(spec.count)]
        parts[component] = names
        if spec.device is None:
            continue
        found = device(spec.device)
        for name in names:
            if isinstance(found, Processor):
                memories = [_port(name, key, port) for key, port in found.memory.items()]
                stores.extend(memories)
                engines.append(Engine(name, component, found, memories[0].name if memories else None))
            else:
                stores.append(_device_store(name, found, spec.capacity, spec.bandwidth))
    links = [edge for wire in node.wires for edge in _wire(parts, wire.between, link(wire.link), wire.lanes)]
    engines = [_with_memory(engine, stores, links) for engine in engines]
    accelerators = [e.component for e in engines if e.device.kind != "cpu"] or [e.component for e in engines]
    return Machine(node.name, tuple(engines), tuple(stores), tuple(links), accelerators[0], node, node.price)


def _port(owner: str, key: str, port: object) -> Store:
    capacity, bandwidth = port.capacity, port.bandwidth  # type: ignore[attr-defined]
    edge = Edge(f"{owner}.{key}", bandwidth, port.latency)  # type: ignore[attr-defined]
    return Store(edge.name, port.technology, capacity, edge, edge, owner, key)  # type: ignore[attr-defined]


def _device_store(name: str, device: MemoryDevice, capacity: float | None, bandwidth: float | None) -> Store:
    read_bandwidth, write_bandwidth = bandwidth or device.read_bandwidth, bandwidth or device.write_bandwidth
    if device.shared_port:
        read = write = Edge(f"{name}.bus", read_bandwidth, device.read_latency)
    else:
        read = Edge(f"{name}.read", read_bandwidth, device.read_latency)
        write = Edge(f"{name}.write", write_bandwidth, device.write_latency)
    tier = {"ssd": "nvme"}.get(device.kind, device.kind)
    return Store(name, device.technology, capacity or device.capacity, read, write, name, tier)


def _with_memory(engine: Engine, stores: list[Store], links: list[tuple[str, str, Edge]]) -> Engine:
    """A CPU's main memory is the first DRAM that is wired to it."""
    if engine.memory is not None:
        return engine
    joined = {target for source, target, _ in links if source == engine.name}
    main = next((store.name for store in stores if store.tier == "dram" and store.owner in joined), None)
    return replace(engine, memory=main)


def _wire(
    parts: Mapping[str, list[str]], between: tuple[str, str], link: LinkType, lanes: float
) -> list[tuple[str, str, Edge]]:
    first, second = parts[between[0]], parts[between[1]]
    if between[0] == between[1]:
        pairs = [(a, b) for i, a in enumerate(first) for b in first[i + 1 :]]
    else:
        few, many = sorted((len(first), len(second)))
        block = many // few
        pairs = [
            (first[i if len(first) == many else i // block], second[i if len(second) == many else i // block])
            for i in range(many)
        ]
    bandwidth = link.bandwidth * lanes
    edges: list[tuple[str, str, Edge]] = []
    for a, b in pairs:
        there = Edge(f"{a}>{b}" if link.duplex == "full" else f"{a}-{b}", bandwidth, link.latency, link)
        back = there if link.duplex == "half" else Edge(f"{b}>{a}", bandwidth, link.latency, link)
        edges += [(a, b, there), (b, a, back)]
    return edges
