"""The network between nodes: what one rank gets at each level, what groups of nodes span, rates of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from simulator.specs.hardware import LinkType, Network
from simulator.specs.machine import Machine, Span, Tier

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Equal nodes of a cluster that follow one another in rank order."""

    machine: Machine
    nodes: int
    uplink: tuple[LinkType, int] | None = None
    """Links of one node into the innermost level of the network, where they differ from that level's own."""


@dataclass(frozen=True)
class PairRates:
    """Measured bandwidth [B/s] and latency [s] from each (row) to each (column)."""

    between: Literal["parts", "nodes", "gpus"]
    """What rows stand for. Accelerators of a node that communicate at once share what a node gets."""
    bandwidth: tuple[tuple[float, ...], ...]
    latency: tuple[tuple[float, ...], ...] | None
    source: str


class Level(NamedTuple):
    """A level of the network: bandwidth [B/s] of one rank when all communicate, latency [s] of a hop."""

    name: str
    nodes: int | None
    bandwidth: float
    latency: float
    reduces: bool

    def tier(self, size: int) -> Tier:
        """Return the level as one of a span."""
        return Tier(self.name, size, self.bandwidth, self.latency, self.reduces)


def levels(network: Sequence[tuple[Network, LinkType]], parts: Sequence[Part]) -> list[Level]:
    """Return the levels between nodes of some parts, the slowest part's links binding; innermost first."""
    found: list[Level] = []
    bandwidth, latency = float("inf"), 0.0
    for index, (level, wire) in enumerate(network):
        reduces = wire.in_network_reduction
        for part in parts:
            link, count = (part.uplink if index == 0 else None) or (wire, level.links_per_node)
            bandwidth = min(bandwidth, link.bandwidth * count / len(part.machine.ranks))
            latency = max(latency, link.latency)
            reduces = reduces and link.in_network_reduction
        bandwidth /= level.oversubscription
        found.append(Level(level.name, level.nodes, bandwidth, latency, reduces))
    return found


def regular_tiers(network: Sequence[Level], nodes: int, stride: int) -> list[Tier]:
    """Return what a group spans that has members in ``nodes`` nodes, ``stride`` nodes apart."""
    tiers: list[Tier] = []
    reach = 1
    for index, level in enumerate(network):
        if nodes <= 1:
            break
        members = nodes
        if level.nodes is not None and index < len(network) - 1:
            units = max(1, level.nodes // reach)
            members = divisor(nodes, units // stride)
            reach, stride = level.nodes, max(1, stride * members // units)
        if members > 1:
            tiers.append(level.tier(members))
        nodes //= members
    return tiers


def uneven_tiers(network: Sequence[Level], members: Mapping[int, int], local: int) -> list[Tier]:
    """Return what a group spans whose members in each node differ, ``local`` of them below the network.

    The size of a level is the largest count that all its units have: its greatest common divisor.
    """
    tiers, inside = [], local
    for index, level in enumerate(network):
        reached = sum(members.values())
        if level.nodes is not None and index < len(network) - 1:
            units: dict[int, int] = {}
            for node, count in members.items():
                units[node // level.nodes] = units.get(node // level.nodes, 0) + count
            reached = math.gcd(*units.values())
        if reached > inside:
            tiers.append(level.tier(reached // inside))
        inside = reached
    return tiers


def level_rates(
    table: Sequence[Sequence[Sequence[Level]]], part: Integers, node: Integers
) -> tuple[Floats, Floats]:
    """Return bandwidth [B/s] and latency [s] between accelerators of different nodes.

    Parameters
    ----------
    table : nested sequence
        Levels between each part and each other.
    part, node : array, shape (accelerators,)
        Where each accelerator is.
    """
    network = table[0][0]
    reached = np.full((len(node), len(node)), len(network) - 1)
    for index in reversed(range(len(network) - 1)):
        nodes = network[index].nodes
        if nodes is not None:
            unit = node // nodes
            reached = np.where(unit[:, None] == unit[None, :], index, reached)
    rates = np.array(
        [[[(level.bandwidth, level.latency) for level in cell] for cell in row] for row in table]
    )
    found = rates[part[:, None], part[None, :], reached]
    return found[..., 0].copy(), found[..., 1].copy()


def node_rates(machine: Machine) -> tuple[Floats, Floats]:
    """Return bandwidth [B/s] and latency [s] between the accelerators of a node, each pair alone."""
    count = len(machine.ranks)
    bandwidth, latency = np.zeros((count, count)), np.zeros((count, count))
    for a in range(count):
        for b in range(count):
            if a != b:
                edges = machine.peer_edges(a, b)
                bandwidth[a, b] = min(edge.bandwidth for edge in edges)
                latency[a, b] = sum(edge.latency for edge in edges)
    return bandwidth, latency


def slowness(span: Span) -> tuple[float, float]:
    """Return seconds a byte around a ring, with inner levels sharing what the outer ones send; then latency [s]."""
    inner, slowest, latency = 1, 0.0, 0.0
    for tier in span.tiers:
        slowest = max(slowest, (span.size - 1) / span.size / inner / tier.bandwidth)
        latency = max(latency, tier.latency)
        inner *= tier.size
    return slowest, latency


def ring(members: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Return each member with the next one, the last with the first."""
    return [(member, members[(i + 1) % len(members)]) for i, member in enumerate(members)]


def divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that does not exceed a limit; 1 if the limit is below 1."""
    return next((d for d in range(min(number, limit), 1, -1) if number % d == 0), 1)
