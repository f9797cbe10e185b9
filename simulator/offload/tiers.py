"""Memory tiers and the ways between them: pools of memories, channels over the machine's edges, the host's CPUs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations

from simulator.specs import Calibration, Edge, Engine, Hardware, Machine, MemroofError, Processor, Store

GPU, DRAM, CXL, NVME = "gpu", "dram", "cxl", "nvme"
FLASH = ("nvme", "ufs")
"""Tiers of a machine that a placement on ``nvme`` means."""
TIERS: Mapping[str, tuple[str, ...]] = {DRAM: (DRAM,), CXL: (CXL,), NVME: FLASH}
"""Tiers that accelerators share, from the nearest on, by the names that machines call them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One tier: equal memories over which bytes are spread evenly, and what may be used of them [B]."""

    tier: str
    stores: tuple[Store, ...]
    capacity: float

    @property
    def name(self) -> str:
        """The memory's name, or the first and the last of several."""
        first, last = self.stores[0].name, self.stores[-1].name
        return first if len(self.stores) == 1 else f"{first}..{last}"


@dataclass(frozen=True, slots=True)
class Channel:
    """A way from one tier to another: links by name with bandwidth [B/s], latency of a copy [s], sustained rate [B/s]."""

    name: str
    links: tuple[tuple[str, float], ...]
    latency: float
    rate: float

    def seconds(self, size: float) -> float:
        """Time of a copy that has the channel to itself [s]; nothing to copy takes none."""
        return self.latency + size / self.rate if size else 0.0


@dataclass(frozen=True, slots=True)
class Host:
    """The CPUs that compute on the DRAM they are wired to."""

    device: Processor
    count: int
    channel: Channel
    """From DRAM to the CPUs; its rate is what they sustain together."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """What one accelerator can keep its tensors in."""

    pools: Mapping[str, Pool]
    channels: Mapping[tuple[str, str], Channel]
    """From every tier to every other, by the best path between their memories."""
    host: Host | None
    rank: int = 0
    """Of the accelerator among those of its node."""

    @property
    def ladder(self) -> tuple[Channel, ...]:
        """Channels between neighbours: flash talks to DRAM where there is any, else straight to the accelerator."""
        order = [tier for tier in (GPU, DRAM, NVME) if tier in self.pools]
        pairs = list(pairwise(order))
        return tuple(self.channels[pair] for pair in (*pairs, *((b, a) for a, b in pairs)))

    @property
    def staged(self) -> bool:
        """Whether flash is read and written by way of DRAM; false where there is no DRAM beside the accelerator's."""
        return DRAM in self.pools


def find_tiers(hardware: Hardware, calibration: Calibration, usable: float, rank: int = 0) -> Tiers:
    """Return the tiers that one accelerator of a node can keep its tensors in.

    Parameters
    ----------
    hardware : Hardware
        One node.
    calibration : Calibration
        Constants of copies, and the bytes of the accelerator that its driver keeps.
    usable : float
        Share of each capacity that may be used.
    rank : int
        Of the accelerator; DRAM, CXL and flash are the node's whole, whichever accelerator asks.

    Raises
    ------
    MemroofError
        If there is more than one node, or no accelerator.
    """
    machine = hardware.machine
    if hardware.nodes != 1:
        raise MemroofError(
            f"offload runs on one node so far; {hardware.name} has {hardware.nodes}: choose one"
        )
    engine = machine.ranks[rank]
    if engine.device.kind == "cpu":
        raise MemroofError(f"offload needs an accelerator; {hardware.name} has CPUs alone")
    own = machine.store(engine.memory or "")
    others = {each.memory for each in machine.ranks}
    found: dict[str, tuple[Store, ...]] = {GPU: (own,)}
    for tier, names in TIERS.items():
        stores = tuple(s for name in names for s in machine.tier(name) if s.name not in others)
        if stores:
            found[tier] = stores
    pools = {
        tier: Pool(tier, stores, sum(store.capacity for store in stores) * usable)
        for tier, stores in found.items()
    }
    reserved = calibration.host.context_bytes or 0.0
    pools[GPU] = Pool(GPU, found[GPU], max(0.0, own.capacity * usable - reserved))
    channels = {
        (source, target): _channel(
            machine, found[source], found[target], f"{source} to {target}", calibration
        )
        for source, target in permutations(found, 2)
    }
    return Tiers(pools, channels, host_of(machine, found.get(DRAM, ()), calibration), rank)


def limited(tiers: Tiers, machine: str, memory: float | None) -> Tiers:
    """Return the tiers with less of the accelerator's memory; raises :class:`MemroofError` if that is more than there is."""
    if memory is None:
        return tiers
    pool = tiers.pools[GPU]
    physical = sum(store.capacity for store in pool.stores)
    if memory > physical:
        raise MemroofError(f"memory: {memory / 1e9:g} GB asked for; {machine} has {physical / 1e9:g} GB")
    return replace(tiers, pools={**tiers.pools, GPU: replace(pool, capacity=memory)})


def peer_channel(hardware: Hardware, rank: int, peer: int, calibration: Calibration) -> Channel:
    """Return the way from the memory of one accelerator of a node to another's."""
    machine = hardware.machine
    ends = [machine.store(machine.ranks[index].memory or "") for index in (rank, peer)]
    return _channel(machine, ends[:1], ends[1:], f"gpu{rank} to gpu{peer}", calibration)


def single(hardware: Hardware) -> None:
    """Refuse hardware of several accelerators, where a method runs on one."""
    if hardware.size != 1:
        raise MemroofError(
            f"this method runs on one accelerator so far; {hardware.name} has {hardware.size}: choose hardware with one"
        )


def _channel(
    machine: Machine, sources: Sequence[Store], targets: Sequence[Store], name: str, calibration: Calibration
) -> Channel:
    width = max(len(sources), len(targets))
    routes = [
        machine.path(sources[i % len(sources)].name, targets[i % len(targets)].name) for i in range(width)
    ]
    links = striped_links([route.edges for route in routes])
    transfer = calibration.transfer
    flash = any(store.tier in FLASH for store in (*sources, *targets))
    efficiency = (transfer.storage_efficiency if flash else transfer.efficiency) or 1.0
    rate = min(bandwidth for _, bandwidth in links) * efficiency
    # one copy is one request: the half-performance length adds the time of that many bytes (Hockney 1994)
    latency = max(route.latency for route in routes) + (transfer.half_bytes or 0.0) / rate
    return Channel(name, links, latency, rate)


def striped_links(routes: Sequence[Sequence[Edge]]) -> tuple[tuple[str, float], ...]:
    """Return the links that a copy striped evenly over some routes crosses, with the bandwidth that all of it sees.

    An edge that every route has is a link of its own. Edges that play the same part in different routes (their names
    differ in numbers only) become one link: where e of n routes cross an edge, it carries e/n of the bytes, so that
    the slowest of them bounds the whole copy by bandwidth · n/e.

    Parameters
    ----------
    routes : sequence of sequences of Edge
        One for each memory that bytes are spread over.

    Returns
    -------
    tuple of (str, float)
        Name and bandwidth [B/s], in the order of the first route.
    """
    load = Counter(edge for route in routes for edge in dict.fromkeys(route))
    groups: dict[str, list[Edge]] = {}
    for edge, count in load.items():
        alone = count == len(routes)
        groups.setdefault(edge.name if alone else re.sub(r"\d+", "*", edge.name), []).append(edge)
    return tuple(
        (name, min(edge.bandwidth * len(routes) / load[edge] for edge in edges))
        for name, edges in groups.items()
    )


def host_of(machine: Machine, stores: Sequence[Store], calibration: Calibration) -> Host | None:
    """Return the CPUs that are wired to DRAM; None if there is neither."""
    ports: list[tuple[Edge, ...]] = []
    engines: list[Engine] = []
    for store in stores:
        for engine in machine.hosts:
            wire = [edge for a, b, edge in machine.links if (a, b) == (store.owner, engine.name)]
            if wire or store.owner == engine.name:
                ports.append(tuple(dict.fromkeys((store.read, *wire[:1]))))
                engines.append(engine)
                break
    if not engines:
        return None
    links = striped_links(ports)
    rate = min(bandwidth for _, bandwidth in links) * (calibration.transfer.efficiency or 1.0)
    channel = Channel("dram to cpu", links, 0.0, rate)
    return Host(engines[0].device, len({engine.name for engine in engines}), channel)
