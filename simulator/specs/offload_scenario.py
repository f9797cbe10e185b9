"""What every offload scenario has, whatever its method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from simulator.specs.scenario_base import ScenarioBase


class OffloadScenario(ScenarioBase):
    """Work whose tensors lie in several memory tiers; ``strategy.method`` says how they move, and so what is written here."""

    grows: ClassVar[Mapping[str, str]] = {}
    """Quantities that can be made larger until memory ends them, by the key that says how much."""
    kind: Literal["offload"]
