"""What a scenario runs on: nodes of one or several kinds, the network between them, and what groups of ranks span.

Ranks are the accelerators, node by node. Where all nodes are equal and joined by a network of links, what a group
spans depends on its size and stride alone. Where nodes differ, where the bandwidth between pairs was measured, or
where ranks are placed in another order, each group is looked at, and the slowest edge binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.specs.errors import MemroofError
from simulator.specs.hardware import LinkType, Network, Processor
from simulator.specs.machine import Machine, Span, Store, Tier
from simulator.specs.network import (
    Floats,
    Integers,
    Level,
    PairRates,
    Part,
    divisor,
    level_rates,
    levels,
    node_rates,
    regular_tiers,
    ring,
    slowness,
    uneven_tiers,
)


@dataclass(frozen=True)
class Hardware:
    """What a scenario runs on: machines and the network between them."""

    name: str
    machine: Machine
    """The node, or the first kind of node."""
    nodes: int
    """Nodes of all kinds."""
    network: tuple[tuple[Network, LinkType], ...]
    others: tuple[Part, ...] = ()
    """Nodes that follow those of the first kind."""
    uplink: tuple[LinkType, int] | None = None
    """Links of one node of the first kind, where they differ from the network's."""
    rates: PairRates | None = None
    """Measured between pairs; replaces what the links of the network promise."""
    order: tuple[int, ...] | None = None
    """Accelerator that each rank runs on; rank i on accelerator i if absent."""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Runs of equal nodes, in rank order; one where all nodes are equal."""
        first = self.nodes - sum(part.nodes for part in self.others)
        return (Part(self.machine, first, self.uplink), *self.others)

    @property
    def plain(self) -> bool:
        """Whether all nodes are equal, ranks in order, and the links of the network all that is known of it."""
        return not self.others and self.rates is None and self.order is None

    @property
    def ranks_per_node(self) -> int:
        """Accelerators of one node; raises :class:`MemroofError` where nodes have different counts."""
        counts = {len(part.machine.ranks) for part in self.parts}
        if len(counts) > 1:
            raise MemroofError(
                f"{self.name} mixes nodes of {_joined(sorted(counts))} accelerators; this needs equal nodes"
            )
        return counts.pop()

    @cached_property
    def size(self) -> int:
        """Accelerators of all nodes."""
        return sum(len(part.machine.ranks) * part.nodes for part in self.parts)

    @property
    def device(self) -> Processor:
        """The accelerator; raises :class:`MemroofError` where there are several kinds."""
        if len(self.devices) > 1:
            names = _joined([device.name for device in self.devices])
            raise MemroofError(f"{self.name} mixes {names}; this needs equal accelerators")
        return self.devices[0]

    @property
    def memory(self) -> Store:
        """The accelerator's main memory; raises :class:`MemroofError` where there are several kinds of accelerator."""
        if self.others and len({_main_memory(part.machine).capacity for part in self.parts}) > 1:
            raise MemroofError(f"{self.name} mixes accelerators of different memory; this needs equal ones")
        return _main_memory(self.machine)

    @cached_property
    def devices(self) -> tuple[Processor, ...]:
        """The kinds of accelerator, in rank order."""
        found: list[Processor] = []
        for part in self.parts:
            device = part.machine.ranks[0].device
            if device not in found:
                found.append(device)
        return tuple(found)

    def part_of(self, rank: int) -> Part:
        """Return the nodes among which a rank is; raises :class:`MemroofError` if there is no such rank."""
        self._check((rank,))
        return self.parts[int(self._part[rank])]

    def device_of(self, rank: int) -> Processor:
        """Return the accelerator that a rank runs on."""
        return self.part_of(rank).machine.ranks[0].device

    def memory_of(self, rank: int) -> Store:
        """Return the main memory of the accelerator that a rank runs on."""
        return _main_memory(self.part_of(rank).machine)

    def node_of(self, rank: int) -> int:
        """Return the node that a rank is in."""
        self._check((rank,))
        return int(self._node[rank])

    def with_nodes(self, nodes: int) -> Hardware:
        """Return the same hardware with another count of nodes.

        Raises
        ------
        MemroofError
            If nodes differ, or the bandwidth between more of them was not measured.
        """
        if nodes == self.nodes:
            return self
        if self.others:
            raise MemroofError(
                f"{self.name} lists {len(self.parts)} groups of nodes; change the counts in its file"
            )
        if self.rates is not None or self.order is not None:
            raise MemroofError(
                f"{self.name} has measured pairs or placed ranks for {self.nodes} nodes, not for {nodes}"
            )
        return replace(self, nodes=nodes)

    def with_machines(self, change: Callable[[Machine], Machine]) -> Hardware:
        """Return the same hardware with each kind of node changed."""
        others = tuple(replace(part, machine=change(part.machine)) for part in self.others)
        return replace(self, machine=change(self.machine), others=others)

    def with_network(self, factor: float) -> Hardware:
        """Return the same hardware with every link between nodes, or all that was measured, so much faster."""

        def faster(link: LinkType) -> LinkType:
            return link.model_copy(update={"bandwidth": link.bandwidth * factor})

        def uplink(own: tuple[LinkType, int] | None) -> tuple[LinkType, int] | None:
            return own and (faster(own[0]), own[1])

        network = tuple((level, faster(link)) for level, link in self.network)
        others = tuple(replace(part, uplink=uplink(part.uplink)) for part in self.others)
        rates = self.rates
        if rates is not None:
            rows = tuple(tuple(rate * factor for rate in row) for row in rates.bandwidth)
            rates = replace(rates, bandwidth=rows)
        return replace(self, network=network, others=others, uplink=uplink(self.uplink), rates=rates)

    def placed(self, order: Sequence[int]) -> Hardware:
        """Return the same hardware with rank i on accelerator ``order[i]``.

        Raises
        ------
        MemroofError
            If the order names an accelerator twice or one that is not there.
        """
        if sorted(order) != list(range(self.size)):
            raise MemroofError(f"a placement names each of the {self.size} accelerators of {self.name} once")
        return replace(self, order=tuple(int(place) for place in order))

    def span(self, size: int, stride: int = 1, within: range | None = None) -> Span:
        """Return what a group of ``size`` ranks, ``stride`` apart in rank order, spans.

        A tensor-parallel group has stride 1; a data-parallel group of ranks that each hold a tensor- and
        pipeline-parallel share has that share as its stride. Levels of one member are left out. Where groups of
        this shape span different things, the slowest does; ``within`` looks only at those of a pipeline stage's ranks.

        Raises
        ------
        MemroofError
            If the group needs more ranks than there are, or nothing connects its members.
        """
        if size < 1 or stride < 1:
            raise MemroofError(f"a group needs a size and a stride of at least 1; found {size} and {stride}")
        ranks = range(self.size) if within is None else within
        self._check((ranks.start, ranks.stop - 1))
        if (size - 1) * stride >= len(ranks):
            where = (
                self.name if within is None else f"ranks {within.start} to {within.stop - 1} of {self.name}"
            )
            raise MemroofError(
                f"a group of {size} ranks with stride {stride} needs {(size - 1) * stride + 1} ranks; "
                f"{where} has {len(ranks)}"
            )
        key = (size, stride, None if self.plain else ranks)
        if key not in self._spans:
            self._spans[key] = (
                self._regular(size, stride) if self.plain else self._slowest(size, stride, ranks)
            )
        return self._spans[key]

    def group(self, members: Iterable[int]) -> Span:
        """Return what any group of ranks spans, in the order in which they are given.

        Where members are spread unevenly over nodes, the level ``node`` is the largest that all of them have.
        Bandwidths hold when all ranks of the machine communicate at once.

        Raises
        ------
        MemroofError
            If a rank is named twice or is not there, or nothing connects the members.
        """
        ranks = tuple(members)
        self._check(ranks)
        if len(set(ranks)) != len(ranks) or not ranks:
            raise MemroofError(f"a group names one or more ranks, each once; found {list(ranks)}")
        if ranks not in self._groups:
            self._groups[ranks] = self._group(ranks)
        return self._groups[ranks]

    def pair(self, sender: int, receiver: int) -> Span:
        """Return what a message from one rank to another crosses: the node's fabric or the network."""
        if not self.plain:
            return self.group((sender, receiver))
        self._check((sender, receiver))
        low, high = sorted((sender, receiver))
        nodes = high // self.ranks_per_node - low // self.ranks_per_node
        return self.span(2, nodes * self.ranks_per_node if nodes else high - low)

    def pair_rates(self) -> tuple[Floats, Floats]:
        """Return bandwidth [B/s] and latency [s] from each accelerator to each other, in accelerator order.

        Within a node a pair has its path for itself; between nodes it has the share of one rank when all communicate.
        The diagonal is infinite and zero.
        """
        bandwidth, latency = self._network_rates()
        first = 0
        for part in self.parts:
            count = len(part.machine.ranks)
            inside = node_rates(part.machine)
            for _ in range(part.nodes if self.rates is None or self.rates.between != "gpus" else 0):
                block = slice(first, first + count)
                bandwidth[block, block], latency[block, block] = inside
                first += count
        np.fill_diagonal(bandwidth, np.inf)
        np.fill_diagonal(latency, 0.0)
        return bandwidth, latency

    # --- where ranks are

    @cached_property
    def _homes(self) -> tuple[Integers, Integers, Integers]:
        """Return part, node and place in the node of each accelerator."""
        counts = [len(part.machine.ranks) for part in self.parts]
        nodes = np.repeat(np.arange(len(counts)), [part.nodes for part in self.parts])
        per_node = np.array(counts)[nodes]
        node = np.repeat(np.arange(len(nodes)), per_node)
        starts = np.concatenate(([0], np.cumsum(per_node)[:-1]))
        return nodes[node], node, np.arange(len(node)) - starts[node]

    @cached_property
    def _place(self) -> Integers:
        return np.arange(self.size) if self.order is None else np.array(self.order)

    @cached_property
    def _part(self) -> Integers:
        return self._homes[0][self._place]

    @cached_property
    def _node(self) -> Integers:
        return self._homes[1][self._place]

    @cached_property
    def _local(self) -> Integers:
        return self._homes[2][self._place]

    def _check(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            if not 0 <= rank < self.size:
                raise MemroofError(f"{self.name} has no rank {rank}; it has {self.size}")

    @cached_property
    def _spans(self) -> dict[tuple[int, int, range | None], Span]:
        return {}

    @cached_property
    def _groups(self) -> dict[tuple[int, ...], Span]:
        return {}

    # --- equal nodes in order: size and stride say all

    def _regular(self, size: int, stride: int) -> Span:
        per_node = self.ranks_per_node
        local = divisor(size, -(-per_node // stride))
        inside = [self.machine.tier_of(range(0, local * stride, stride))] if local > 1 else []
        if size == local:
            return Span(tuple(inside))
        return Span(
            (*inside, *regular_tiers(self._levels(self.parts), size // local, max(1, stride // per_node)))
        )

    def _levels(self, parts: Sequence[Part]) -> list[Level]:
        outermost = self.network[-1][0].nodes if self.network else 1
        if outermost is not None and self.nodes > outermost:
            raise MemroofError(
                f"{self.name} has no network that joins {self.nodes} nodes; "
                "give it a 'network' level that reaches them"
            )
        return levels(self.network, parts)

    # --- anything else: every group is looked at

    def _slowest(self, size: int, stride: int, ranks: range) -> Span:
        block = size * stride
        starts = [b + i for b in range(ranks.start, ranks.stop, block) for i in range(stride)]
        groups = [range(s, s + block, stride) for s in starts if s + block - stride < ranks.stop]
        return max({self.group(group): None for group in groups}, key=slowness)

    def _group(self, ranks: tuple[int, ...]) -> Span:
        if len(ranks) == 1:
            return Span(())
        homes: dict[int, list[int]] = {}
        for rank in ranks:
            homes.setdefault(int(self._node[rank]), []).append(rank)
        local = math.gcd(*(len(found) for found in homes.values()))
        tiers = [self._node_tier(homes.values(), local)] if local > 1 else []
        if len(homes) > 1:
            tiers += self._pair_tiers(homes, local) if self.rates else self._level_tiers(homes, local)
        return Span(tuple(tiers))

    def _node_tier(self, homes: Iterable[Sequence[int]], size: int) -> Tier:
        tiers = []
        for members in homes:
            machine = self.parts[int(self._part[members[0]])].machine
            tier = machine.tier_of([int(self._local[rank]) for rank in members])
            wired = all(len(machine.peer_edges(0, peer)) == 1 for peer in range(1, len(machine.ranks)))
            if self.rates is not None and self.rates.between == "gpus" and not wired:
                # accelerators wired to one another run many rings, of which a pair's rate says nothing
                rate = min(self._rate(a, b)[0] for a, b in ring(members))
                tier = replace(tier, bandwidth=min(tier.bandwidth, rate), measured=rate <= tier.bandwidth)
            tiers.append(tier)
        slowest = min(tiers, key=lambda tier: tier.bandwidth)
        latency = max(tier.latency for tier in tiers)
        return replace(slowest, size=size, latency=latency, reduces=all(tier.reduces for tier in tiers))

    def _level_tiers(self, homes: dict[int, list[int]], local: int) -> list[Tier]:
        parts = sorted({int(self._part[members[0]]) for members in homes.values()})
        counts = {node: len(members) for node, members in homes.items()}
        return uneven_tiers(self._levels([self.parts[i] for i in parts]), counts, local)

    def _pair_tiers(self, homes: dict[int, list[int]], local: int) -> list[Tier]:
        # as many rings as all nodes have members, each through one member of every node
        units = [m[i : i + local] for m in homes.values() for i in range(0, len(m), local)]
        edges = [
            self._rate(a, b)
            for here, there in ring(units)
            if self._node[here[0]] != self._node[there[0]]
            for a, b in zip(here, there, strict=True)
        ]
        name = self.network[-1][0].name if self.network else "network"
        rate, latency = min(edge[0] for edge in edges), max(edge[1] for edge in edges)
        return [Tier(name, len(units), rate, latency, measured=True)]

    def _rate(self, sender: int, receiver: int) -> tuple[float, float]:
        """Return measured bandwidth [B/s] and latency [s] from one rank to another."""
        rates = self.rates
        if rates is None:
            raise MemroofError(f"{self.name} has no measured bandwidth between pairs")
        where = {"parts": self._part, "nodes": self._node, "gpus": self._place}[rates.between]
        row, column = int(where[sender]), int(where[receiver])
        sharers = 1
        if rates.between != "gpus":
            sharers = max(len(self.part_of(rank).machine.ranks) for rank in (sender, receiver))
        latency = rates.latency[row][column] if rates.latency else self._link_latency
        return float(rates.bandwidth[row][column] / sharers), float(latency)

    @property
    def _link_latency(self) -> float:
        return max((link.latency for _, link in self.network), default=0.0)

    def _network_rates(self) -> tuple[Floats, Floats]:
        part, node, _ = self._homes
        if self.rates is None:
            if self.nodes == 1:
                return np.zeros((self.size, self.size)), np.zeros((self.size, self.size))
            table = [[self._levels([a, b]) for b in self.parts] for a in self.parts]
            return level_rates(table, part, node)
        where = {"parts": part, "nodes": node, "gpus": np.arange(self.size)}[self.rates.between]
        pairs = np.ix_(where, where)
        bandwidth = np.array(self.rates.bandwidth)[pairs]
        if self.rates.between != "gpus":
            sharers = np.array([len(p.machine.ranks) for p in self.parts])[part]
            bandwidth = bandwidth / np.maximum(sharers[:, None], sharers[None, :])
        if self.rates.latency is None:
            return bandwidth, np.full_like(bandwidth, self._link_latency)
        return bandwidth, np.array(self.rates.latency)[pairs]


def _main_memory(machine: Machine) -> Store:
    return machine.store(machine.ranks[0].memory or machine.stores[0].name)


def _joined(items: Sequence[object]) -> str:
    return " and ".join(str(item) for item in items)
