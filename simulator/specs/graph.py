"""A graph as written, for mini-batch training of graph networks: sizes, features, how unevenly its nodes are met."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Number, Spec

Large = Annotated[int, Field(ge=1, le=10**13)]


class Graph(Spec):
    """A graph with features on its nodes."""

    kind: Literal["graph"]
    name: str
    source: str
    note: str = ""
    nodes: Large
    edges: Large
    """As sampling walks them: an undirected edge counts twice."""
    features: Annotated[int, Field(ge=1, le=10**6)]
    """Elements of a node's feature row."""
    classes: Annotated[int, Field(ge=1, le=10**6)]
    train_nodes: Large
    """Seeds of an epoch."""
    access_exponent: Number
    """Of the power law that nodes follow by rank: how often the node of rank r is somebody's sampled neighbour, r^-s."""
    reached: Number = 1.0
    """Share of all nodes that lie in the neighbourhoods of training nodes, so that they are met at all."""

    @model_validator(mode="after")
    def _shares(self) -> Graph:
        if self.reached > 1.0 or self.train_nodes > self.nodes:
            key = "reached" if self.reached > 1.0 else "train_nodes"
            raise PydanticCustomError("graph", "'{key}' exceeds all nodes", {"key": key})
        return self
