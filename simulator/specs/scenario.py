"""Scenarios as written, one schema for each kind. The strategies read these frozen values and nothing else."""

from __future__ import annotations

from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.serving_scenario import ServingScenario
from simulator.specs.training_scenario import TrainingScenario

Scenario = TrainingScenario | ServingScenario | OffloadScenario
SCENARIO_KINDS: dict[str, type[TrainingScenario] | type[ServingScenario] | type[OffloadScenario]] = {
    "training": TrainingScenario,
    "serving": ServingScenario,
    "offload": OffloadScenario,
}
