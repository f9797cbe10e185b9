"""Offload: work whose tensors lie in several memory tiers, one package for each method."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import cast

from simulator.specs import MemroofError, OffloadScenario
from simulator.strategy import Outcome, Remedy, Setup, Strategy


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Run an offload scenario by its method."""
    return _method(setup).simulate(setup, detail=detail)


def remedies(setup: Setup) -> Iterable[Remedy]:
    """Yield changes that need less of a memory, the mildest first."""
    return _method(setup).remedies(setup)


def _method(setup: Setup) -> Strategy:
    """Return the package that lowers a scenario: that of ``specs/task_packs_scenario.py`` is ``offload/task_packs``."""
    scenario = setup.scenario
    if not isinstance(scenario, OffloadScenario):
        raise MemroofError(f"an offload strategy cannot run a {scenario.kind} scenario")
    name = type(scenario).__module__.rpartition(".")[2].removesuffix("_scenario")
    return cast(Strategy, importlib.import_module(f"simulator.offload.{name}"))
