"""Paths through a machine's graph, and what transfers that run at once leave each other on shared edges."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from simulator.specs.hardware import LinkType

Neighbours = Mapping[str, Sequence[tuple[str, "Edge"]]]
_Key = tuple[int, int, float, float, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed capacity that transfers share max-min fairly: bandwidth [B/s], latency [s]."""

    name: str
    bandwidth: float
    latency: float = 0.0
    link: LinkType | None = field(default=None, compare=False)


def best_paths(
    neighbours: Neighbours, source: str, avoid: Collection[str] = ()
) -> dict[str, tuple[Edge, ...]]:
    """Return the best path from one part of a machine to every part that can be reached, as edges.

    Best is, in this order: the fewest parts of ``avoid`` passed through, the fewest hops, the widest
    narrowest edge, the least latency, the first edge names. Accelerators belong in ``avoid``: they forward
    traffic only where nothing else joins two parts (a GPU that reads a remote DRAM through its NVLink peer),
    while CPUs and switches forward always.

    Parameters
    ----------
    neighbours : mapping
        For each part, the parts that its edges lead to, with the edges.
    source : str
        Where the paths begin.
    avoid : collection of str
        Parts that a path should not pass through.
    """
    start: _Key = (0, 0, -math.inf, 0.0, ())
    queue: list[tuple[_Key, str, tuple[Edge, ...]]] = [(start, source, ())]
    found: dict[str, tuple[Edge, ...]] = {}
    while queue:
        (passed, hops, width, latency, names), here, edges = heapq.heappop(queue)
        if here in found:
            continue
        found[here] = edges
        passed += here in avoid and here != source
        for there, edge in neighbours.get(here, ()):
            if there not in found:
                narrowest = max(width, -edge.bandwidth)
                key = (passed, hops + 1, narrowest, latency + edge.latency, (*names, edge.name))
                heapq.heappush(queue, (key, there, (*edges, edge)))
    return found


def concurrent_rate(routes: Iterable[Sequence[Edge]]) -> float:
    """Return what each of equal transfers gets when all run at once [B/s]: the most crowded edge decides.

    Both directions of a half-duplex link are one edge, so that they halve each other.
    """
    load = Counter(edge for route in routes for edge in dict.fromkeys(route))
    return min(edge.bandwidth / count for edge, count in load.items())
