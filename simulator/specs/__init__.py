"""Specs: hardware, models and scenarios read from YAML, checked, and frozen.

Schemas of scenarios are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simulator.specs.base import Figure, Spec, validate
from simulator.specs.calibration import OPERATOR_CLASSES, Calibration, HostKernelConstants, OperatorClass
from simulator.specs.catalog import FOLDERS, Catalog, scenario_with, shipped_root
from simulator.specs.cluster import Hardware
from simulator.specs.errors import MemroofError, Problem, SpecError, UnknownNameError
from simulator.specs.graph import Graph
from simulator.specs.hardware import Cluster, LinkType, MemoryDevice, Network, Node, NumberFormat, Processor
from simulator.specs.machine import Edge, Engine, Machine, Route, Span, Store, Tier
from simulator.specs.measured import MeasuredTable, read_measured
from simulator.specs.measured_layers import MeasuredLayers
from simulator.specs.model import LatentAttention, MixtureOfExperts, Model
from simulator.specs.network import PairRates, Part
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.operations import Operations
from simulator.specs.scenario import Scenario

if TYPE_CHECKING:
    from simulator.specs.draft_verify_scenario import DraftVerifyScenario
    from simulator.specs.feature_gather_scenario import FeatureGatherScenario
    from simulator.specs.host_compute_scenario import (
        HostComputeScenario,
        HostComputeStrategy,
        HostComputeWorkload,
    )
    from simulator.specs.mixed_stream_scenario import (
        MixedStreamScenario,
        MixedStreamStrategy,
        MixedStreamWorkload,
    )
    from simulator.specs.neuron_cache_scenario import NeuronCacheScenario
    from simulator.specs.serving_scenario import ServiceObjective, ServingScenario, ServingStrategy
    from simulator.specs.serving_workload import ServingWorkload
    from simulator.specs.task_packs_scenario import TaskPacksScenario, TaskPacksStrategy
    from simulator.specs.training_scenario import TrainingScenario, TrainingStrategy, TrainingWorkload
    from simulator.specs.waterfall_scenario import WaterfallScenario
    from simulator.specs.zigzag_scenario import ZigzagScenario, ZigzagStrategy, ZigzagWorkload

__all__ = [
    "FOLDERS",
    "OPERATOR_CLASSES",
    "Calibration",
    "Catalog",
    "Cluster",
    "DraftVerifyScenario",
    "Edge",
    "Engine",
    "FeatureGatherScenario",
    "Figure",
    "Graph",
    "Hardware",
    "HostComputeScenario",
    "HostComputeStrategy",
    "HostComputeWorkload",
    "HostKernelConstants",
    "LatentAttention",
    "LinkType",
    "Machine",
    "MeasuredLayers",
    "MeasuredTable",
    "MemoryDevice",
    "MemroofError",
    "MixedStreamScenario",
    "MixedStreamStrategy",
    "MixedStreamWorkload",
    "MixtureOfExperts",
    "Model",
    "Network",
    "NeuronCacheScenario",
    "Node",
    "NumberFormat",
    "OffloadScenario",
    "Operations",
    "OperatorClass",
    "PairRates",
    "Part",
    "Problem",
    "Processor",
    "Route",
    "Scenario",
    "ServiceObjective",
    "ServingScenario",
    "ServingStrategy",
    "ServingWorkload",
    "Span",
    "Spec",
    "SpecError",
    "Store",
    "TaskPacksScenario",
    "TaskPacksStrategy",
    "Tier",
    "TrainingScenario",
    "TrainingStrategy",
    "TrainingWorkload",
    "UnknownNameError",
    "WaterfallScenario",
    "ZigzagScenario",
    "ZigzagStrategy",
    "ZigzagWorkload",
    "read_measured",
    "scenario_with",
    "shipped_root",
    "validate",
]

_HOMES = {
    "DraftVerifyScenario": "simulator.specs.draft_verify_scenario",
    "FeatureGatherScenario": "simulator.specs.feature_gather_scenario",
    "HostComputeScenario": "simulator.specs.host_compute_scenario",
    "HostComputeStrategy": "simulator.specs.host_compute_scenario",
    "HostComputeWorkload": "simulator.specs.host_compute_scenario",
    "MixedStreamScenario": "simulator.specs.mixed_stream_scenario",
    "MixedStreamStrategy": "simulator.specs.mixed_stream_scenario",
    "MixedStreamWorkload": "simulator.specs.mixed_stream_scenario",
    "NeuronCacheScenario": "simulator.specs.neuron_cache_scenario",
    "ServiceObjective": "simulator.specs.serving_scenario",
    "ServingScenario": "simulator.specs.serving_scenario",
    "ServingStrategy": "simulator.specs.serving_scenario",
    "ServingWorkload": "simulator.specs.serving_workload",
    "TaskPacksScenario": "simulator.specs.task_packs_scenario",
    "TaskPacksStrategy": "simulator.specs.task_packs_scenario",
    "TrainingScenario": "simulator.specs.training_scenario",
    "TrainingStrategy": "simulator.specs.training_scenario",
    "TrainingWorkload": "simulator.specs.training_scenario",
    "WaterfallScenario": "simulator.specs.waterfall_scenario",
    "ZigzagScenario": "simulator.specs.zigzag_scenario",
    "ZigzagStrategy": "simulator.specs.zigzag_scenario",
    "ZigzagWorkload": "simulator.specs.zigzag_scenario",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
