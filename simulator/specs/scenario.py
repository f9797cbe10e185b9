"""Scenarios as written, one schema for each kind, and for each method of offload. The strategies read nothing else."""

from __future__ import annotations

from simulator.specs.draft_verify_scenario import DraftVerifyScenario
from simulator.specs.errors import SpecError, did_you_mean
from simulator.specs.expert_cache_scenario import ExpertCacheScenario
from simulator.specs.feature_gather_scenario import FeatureGatherScenario
from simulator.specs.host_compute_scenario import HostComputeScenario
from simulator.specs.mixed_stream_scenario import MixedStreamScenario
from simulator.specs.neuron_cache_scenario import NeuronCacheScenario
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.serving_scenario import ServingScenario
from simulator.specs.source import Document
from simulator.specs.stream_decode_scenario import StreamDecodeScenario
from simulator.specs.task_packs_scenario import TaskPacksScenario
from simulator.specs.tiered_step_scenario import TieredStepScenario
from simulator.specs.training_scenario import TrainingScenario
from simulator.specs.waterfall_scenario import WaterfallScenario
from simulator.specs.zigzag_scenario import ZigzagScenario

Scenario = TrainingScenario | ServingScenario | OffloadScenario
Schema = type[TrainingScenario] | type[ServingScenario] | type[OffloadScenario]
KINDS = ("training", "serving", "offload")
OFFLOAD_METHODS: dict[str, type[OffloadScenario]] = {
    "zigzag": ZigzagScenario,
    "task-packs": TaskPacksScenario,
    "host-compute": HostComputeScenario,
    "mixed-stream": MixedStreamScenario,
    "expert-cache": ExpertCacheScenario,
    "tiered-step": TieredStepScenario,
    "neuron-cache": NeuronCacheScenario,
    "draft-verify": DraftVerifyScenario,
    "waterfall": WaterfallScenario,
    "stream-decode": StreamDecodeScenario,
    "feature-gather": FeatureGatherScenario,
}
"""By ``strategy.method``; the first is meant where none is named."""


def schema_of(document: Document) -> Schema:
    """Return the schema of a scenario's tree, by its kind and, for offload, its method.

    Raises
    ------
    SpecError
        If there is no such kind or method, with the nearest names.
    """
    tree = document.data if isinstance(document.data, dict) else {}
    kind = tree.get("kind")
    if kind == "offload":
        strategy = tree.get("strategy")
        method = strategy.get("method") if isinstance(strategy, dict) else None
        method = next(iter(OFFLOAD_METHODS)) if method is None else method
        if isinstance(method, str) and method in OFFLOAD_METHODS:
            return OFFLOAD_METHODS[method]
        raise SpecError([document.problem(("strategy", "method"), _expected(method, tuple(OFFLOAD_METHODS)))])
    if kind == "training":
        return TrainingScenario
    if kind == "serving":
        return ServingScenario
    raise SpecError([document.problem(("kind",), _expected(kind, KINDS))])


def _expected(value: object, options: tuple[str, ...]) -> str:
    found = "missing" if value is None else f"found {value!r}"
    hint = did_you_mean(str(value), options) if value is not None else ""
    return f"{found}, expected one of {', '.join(options)}{hint}"
