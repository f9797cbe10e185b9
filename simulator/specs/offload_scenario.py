"""What every offload scenario has, whatever its method."""

from __future__ import annotations

from typing import Literal

from simulator.specs.scenario_base import ScenarioBase


class OffloadScenario(ScenarioBase):
    """Work whose tensors lie in several memory tiers; ``strategy.method`` says how they move, and so what is written here."""

    kind: Literal["offload"]
