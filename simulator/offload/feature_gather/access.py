"""How often a graph's nodes are met: a power law over ranks, mini-batches drawn from it, and what its hottest nodes catch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.specs.graph import Graph

Array = npt.NDArray[np.float64]
SINGLE_RANKS = 64
"""Ranks from the hottest on that are a bin each; further bins widen by a constant factor."""
BINS = 512


@dataclass(frozen=True, slots=True)
class Accesses:
    """Nodes by how often they are met, the hottest first, in bins of about equal ones.

    Attributes
    ----------
    counts : array
        Nodes of each bin.
    chance : array
        That one drawn neighbour is a certain node of the bin; counts · chance sum to 1.
    degree : array
        Neighbours of a node of the bin.
    """

    counts: Array
    chance: Array
    degree: Array


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one mini-batch of sampled neighbourhoods holds, layer by layer from the seeds outwards.

    Attributes
    ----------
    nodes : tuple of float
        Distinct nodes: the seeds, then with the neighbours of each layer.
    edges : tuple of float
        Sampled edges of each layer.
    gathered : array
        Distinct nodes of the outermost layer by bin: whose features are needed.
    """

    nodes: tuple[float, ...]
    edges: tuple[float, ...]
    gathered: Array


def accesses(graph: Graph) -> Accesses:
    """Return the nodes of a graph by how often they are met.

    The node of rank r is met in proportion to r^-s (Zipf's law; of degrees with density exponent a, s = 1/(a - 1), Newman
    2005, *Power laws*, section 3.5). A node with more neighbours is somebody's neighbour more often: degrees follow too.
    Nodes that training never reaches are left out, with their edges.
    """
    nodes = max(1.0, graph.nodes * float(graph.reached))
    edges = np.arange(0.5, min(SINGLE_RANKS, nodes) + 1.0)
    if nodes > SINGLE_RANKS:
        edges = np.concatenate([edges, np.geomspace(SINGLE_RANKS + 0.5, nodes + 0.5, BINS)[1:]])
    counts = np.diff(edges)
    exponent = float(graph.access_exponent)
    weight = np.log(edges) if exponent == 1.0 else edges ** (1.0 - exponent) / (1.0 - exponent)
    mass = np.diff(weight)
    chance = mass / mass.sum() / counts
    return Accesses(counts, chance, np.minimum(graph.edges * float(graph.reached) * chance, nodes))


def mini_batch(found: Accesses, seeds: float, fan_outs: Sequence[int]) -> MiniBatch:
    """Return the expected mini-batch of some seeds, drawn evenly from all nodes, with sampled neighbours.

    A node of d neighbours yields min(fan-out, d) of them (Hamilton et al. 2017, *GraphSAGE*, algorithm 2); of n draws a
    node is among them with probability 1 - (1 - p)^n; what is there already is not fetched twice.
    """
    frontier = found.counts * min(1.0, seeds / found.counts.sum())
    nodes, edges = [float(frontier.sum())], []
    for fan_out in fan_outs:
        drawn = float(frontier @ np.minimum(fan_out, found.degree))
        # a part of a draw is a draw that happens at times
        whole = max(drawn, 1.0)
        missed = 1.0 - drawn / whole * -np.expm1(whole * np.log1p(-np.minimum(found.chance, 1.0 - 1e-12)))
        frontier = found.counts - (found.counts - frontier) * missed
        nodes.append(float(frontier.sum()))
        edges.append(drawn)
    return MiniBatch(tuple(nodes), tuple(edges), frontier)


def caught(found: Accesses, gathered: Array, hot: float) -> float:
    """Return the share of gathered rows that the hottest nodes hold.

    Parameters
    ----------
    found : Accesses
        Of the graph.
    gathered : array
        Rows by bin.
    hot : float
        Share of the nodes in reach that are kept.
    """
    before = np.cumsum(found.counts) - found.counts
    inside = np.clip((hot * found.counts.sum() - before) / found.counts, 0.0, 1.0)
    return float(gathered @ inside) / float(gathered.sum())
