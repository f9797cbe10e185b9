"""Scenarios as written, one schema for each kind, and for each method of offload. The strategies read nothing else.

A schema is imported when a scenario is of it: building the classes of all of them costs more than most answers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from simulator.specs.errors import SpecError, did_you_mean
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import ScenarioBase
from simulator.specs.source import Document

if TYPE_CHECKING:
    from simulator.specs.serving_scenario import ServingScenario
    from simulator.specs.training_scenario import TrainingScenario

    Scenario = TrainingScenario | ServingScenario | OffloadScenario
    Schema = type[TrainingScenario] | type[ServingScenario] | type[OffloadScenario]
else:
    Scenario = ScenarioBase

KINDS = ("training", "serving", "offload")
OFFLOAD_METHODS = (
    "zigzag", "task-packs", "host-compute", "mixed-stream", "expert-cache", "tiered-step", "neuron-cache", "draft-verify",
    "waterfall", "stream-decode", "feature-gather",
)  # fmt: skip
"""Values of ``strategy.method``; the first is meant where none is named. ``task-packs`` is the class ``TaskPacksScenario`` of
:mod:`simulator.specs.task_packs_scenario`, and so with the others."""


def schema_of(document: Document) -> Schema:
    """Return the schema of a scenario's tree, by its kind and, for offload, its method.

    Raises
    ------
    SpecError
        If there is no such kind or method, with the nearest names.
    """
    tree = document.data if isinstance(document.data, dict) else {}
    kind = tree.get("kind")
    if kind not in KINDS:
        raise SpecError([document.problem(("kind",), _expected(kind, KINDS))])
    if kind != "offload":
        return _schema(kind)
    strategy = tree.get("strategy")
    method = strategy.get("method") if isinstance(strategy, dict) else None
    method = OFFLOAD_METHODS[0] if method is None else method
    if method not in OFFLOAD_METHODS:
        raise SpecError([document.problem(("strategy", "method"), _expected(method, OFFLOAD_METHODS))])
    return _schema(method)


def _schema(name: str) -> Schema:
    words = name.split("-")
    module = importlib.import_module(f"simulator.specs.{'_'.join(words)}_scenario")
    return cast("Schema", getattr(module, "".join(word.capitalize() for word in words) + "Scenario"))


def _expected(value: object, options: tuple[str, ...]) -> str:
    found = "missing" if value is None else f"found {value!r}"
    hint = did_you_mean(str(value), options) if value is not None else ""
    return f"{found}, expected one of {', '.join(options)}{hint}"
