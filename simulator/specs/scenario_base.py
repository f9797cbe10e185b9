"""What every scenario has: hardware, model, limits and what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Spec

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class HardwareChoice(Spec):
    """What the scenario runs on: a device, node or cluster of the catalog, and how many."""

    device: str | None = None
    node: str | None = None
    cluster: str | None = None
    nodes: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Nodes of this kind; a cluster's own count if absent."""
    count: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Devices, where a bare device is named."""
    changes: dict[str, Any] = {}
    """What is otherwise than in the file of the device, node or cluster: ``{components: {nvme: {count: 6}}}``."""

    @property
    def named(self) -> tuple[str, str]:
        """Kind and name of what is chosen."""
        found: list[tuple[str, str | None]] = [
            ("device", self.device), ("node", self.node), ("cluster", self.cluster)
        ]  # fmt: skip
        return next((kind, name) for kind, name in found if name)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"node": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> HardwareChoice:
        named = [key for key in ("device", "node", "cluster") if getattr(self, key)]
        if len(named) != 1:
            raise PydanticCustomError("scenario", "needs one of 'device', 'node' or 'cluster'")
        if self.count and not self.device:
            raise PydanticCustomError(
                "scenario", "'count' belongs to 'device'; use 'nodes' for a node or cluster"
            )
        return self


def flattened(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested keys as dotted keys and texts, as ``--set`` takes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", json.dumps(value) if isinstance(value, (list, bool)) else str(value)


class Entry(NamedTuple):
    """An entry of the catalog: the key that names it, its kind, its name."""

    key: tuple[str, ...]
    kind: str
    name: str


class Expectation(Spec):
    """A measured or published figure that a scenario must reproduce."""

    value: Annotated[str | float, Field(union_mode="left_to_right")]
    source: str
    tolerance: Fraction | None = None
    """Relative; ``memroof run`` says by how much it is missed."""


class ScenarioBase(Spec):
    """What every scenario has."""

    name: str = ""
    description: str = ""
    source: str = ""
    hardware: HardwareChoice
    model: str
    expect: dict[str, Expectation] = {}
    measured: str | None = None
    """CSV file of measured products (device, format, m, n, k, time) that replace predicted times of the same shape."""
    limit: dict[str, str] = {}
    """Largest (or, with a leading '>', smallest) value of a result metric: ``time_to_first_token_p99: 2 s``."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Entries of the catalog that the scenario names, hardware apart."""
        return (Entry(("model",), "model", self.model),) if self.model else ()

    @property
    def all_limits(self) -> Mapping[str, str]:
        """Limits as written, and what else the answer must hold."""
        return self.limit

    @property
    def pool_hardware(self) -> tuple[HardwareChoice | None, ...]:
        """Hardware of each pool of a fleet, None where it is the scenario's own; empty without a fleet."""
        return ()
