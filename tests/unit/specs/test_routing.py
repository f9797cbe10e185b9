"""Best paths against networkx, and what concurrent transfers get."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.specs.routing import Edge, best_paths, concurrent_rate

PARTS = st.integers(0, 7)


@given(st.lists(st.tuples(PARTS, PARTS, st.integers(1, 9)), max_size=20), PARTS, PARTS)
def test_paths_have_as_few_hops_as_networkx_finds(
    wires: list[tuple[int, int, int]], start: int, end: int
) -> None:
    neighbours: dict[str, list[tuple[str, Edge]]] = {}
    graph = networkx.DiGraph()
    graph.add_nodes_from(str(i) for i in range(8))
    for index, (a, b, bandwidth) in enumerate(wires):
        neighbours.setdefault(str(a), []).append((str(b), Edge(f"e{index}", float(bandwidth))))
        graph.add_edge(str(a), str(b))
    found = best_paths(neighbours, str(start)).get(str(end))
    if not networkx.has_path(graph, str(start), str(end)):
        assert found is None
        return
    assert found is not None
    assert len(found) == networkx.shortest_path_length(graph, str(start), str(end))


def test_among_equally_short_paths_the_widest_wins_and_an_avoided_part_loses() -> None:
    wide, narrow = Edge("wide", 10.0, 1.0), Edge("narrow", 1.0)
    table = {"a": [("x", narrow), ("y", wide)], "x": [("b", Edge("xb", 9.0))], "y": [("b", Edge("yb", 9.0))]}
    assert [edge.name for edge in best_paths(table, "a")["b"]] == ["wide", "yb"]
    assert [edge.name for edge in best_paths(table, "a", {"y"})["b"]] == ["narrow", "xb"]
    assert [edge.name for edge in best_paths(table, "a", {"x", "y"})["b"]] == ["wide", "yb"]


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=6))
def test_concurrent_transfers_fill_the_most_crowded_edge_and_no_more(routes: list[list[int]]) -> None:
    edges = [Edge(f"e{i}", float(10 + i)) for i in range(5)]
    rate = concurrent_rate([[edges[i] for i in route] for route in routes])
    loads = [sum(i in route for route in routes) for i in range(5)]
    used = [rate * load / edges[i].bandwidth for i, load in enumerate(loads)]
    assert max(used) == pytest.approx(1.0)
