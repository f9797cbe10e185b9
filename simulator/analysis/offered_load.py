"""The load that is offered to a serving scenario: what it is, how much, and the scenario at another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from simulator.analysis.result import Result
from simulator.serving import draw_requests
from simulator.specs import MemroofError, ServingScenario
from simulator.strategy import Setup

Knob = Literal["rate", "concurrency", "speed"]
"""What load is: arrivals a second, clients of a closed loop, or how many times as fast as recorded a trace comes."""


def at_load(setup: Setup, value: float, *, requests: int | None = None, seed: int | None = None) -> Setup:
    """Return a setup at another load, of ``requests`` requests drawn with another seed.

    Random arrivals are stretched so that the drawn ones come at exactly this rate: what chance makes of the count of
    arrivals would else be taken for a rate.
    """
    scenario = serving(setup)
    workload, knob = scenario.workload, knob_of(scenario)
    changes: dict[str, Any] = {}
    if requests is not None:
        changes["requests"] = requests
    if seed is not None:
        changes["seed"] = seed
    if knob == "speed" and workload.trace is not None:
        changes["trace"] = workload.trace.model_copy(update={"speed": value})
    elif knob == "concurrency":
        changes["concurrency"] = int(value)
    else:
        drawn = draw_requests(workload.model_copy(update={**changes, "rate": 1.0})).arrival
        drawn = drawn[np.isfinite(drawn)]
        span = float(drawn[-1] - drawn[0])
        changes["rate"] = value * (span / (len(drawn) - 1) if span else 1.0)
    changed = scenario.model_copy(update={"workload": workload.model_copy(update=changes)})
    return replace(setup, scenario=changed)


def serving(setup: Setup) -> ServingScenario:
    """Return the scenario of a serving setup; MemroofError for another kind."""
    if not isinstance(setup.scenario, ServingScenario):
        raise MemroofError(
            f"load is that of serving; {setup.scenario.name} is a scenario of kind {setup.scenario.kind!r}"
        )
    return setup.scenario


def knob_of(scenario: ServingScenario) -> Knob:
    """Return what the load of a scenario is; MemroofError where there is none."""
    arrival = scenario.workload.arrival
    knobs: dict[str, Knob] = {
        "poisson": "rate", "gamma": "rate", "closed": "concurrency", "trace": "speed"
    }  # fmt: skip
    if arrival not in knobs:
        raise MemroofError(
            f"workload.arrival: '{arrival}' has no load to vary; use poisson or gamma with a 'rate', closed with a "
            "'concurrency', or a trace"
        )
    return knobs[arrival]


def own_load(scenario: ServingScenario) -> float:
    """Return the load that a scenario says."""
    workload, knob = scenario.workload, knob_of(scenario)
    if knob == "speed" and workload.trace is not None:
        return workload.trace.speed
    return float((workload.rate if knob == "rate" else workload.concurrency) or 1.0)


def request_rate(result: Result) -> float:
    """Return requests per second that are offered, or that a closed loop gets through, of all replicas."""
    values = result.values
    key = "offered_request_rate" if "offered_request_rate" in values else "request_throughput"
    return values[key].value
