"""Offload: work whose tensors lie in several memory tiers, one package for each method."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import cast

from simulator.specs import MemroofError
from simulator.specs.draft_verify_scenario import DraftVerifyScenario
from simulator.specs.expert_cache_scenario import ExpertCacheScenario
from simulator.specs.feature_gather_scenario import FeatureGatherScenario
from simulator.specs.host_compute_scenario import HostComputeScenario
from simulator.specs.mixed_stream_scenario import MixedStreamScenario
from simulator.specs.neuron_cache_scenario import NeuronCacheScenario
from simulator.specs.stream_decode_scenario import StreamDecodeScenario
from simulator.specs.task_packs_scenario import TaskPacksScenario
from simulator.specs.tiered_step_scenario import TieredStepScenario
from simulator.specs.waterfall_scenario import WaterfallScenario
from simulator.specs.zigzag_scenario import ZigzagScenario
from simulator.strategy import Outcome, Remedy, Setup, Strategy

METHODS: Mapping[type, str] = {
    ZigzagScenario: "simulator.offload.zigzag",
    TaskPacksScenario: "simulator.offload.task_packs",
    HostComputeScenario: "simulator.offload.host_compute",
    MixedStreamScenario: "simulator.offload.mixed_stream",
    ExpertCacheScenario: "simulator.offload.expert_cache",
    TieredStepScenario: "simulator.offload.tiered_step",
    NeuronCacheScenario: "simulator.offload.neuron_cache",
    DraftVerifyScenario: "simulator.offload.draft_verify",
    WaterfallScenario: "simulator.offload.waterfall",
    StreamDecodeScenario: "simulator.offload.stream_decode",
    FeatureGatherScenario: "simulator.offload.feature_gather",
}
"""The package that lowers each kind of offload scenario; imported when it is first needed."""


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Run an offload scenario by its method."""
    return _method(setup).simulate(setup, detail=detail)


def remedies(setup: Setup) -> Iterable[Remedy]:
    """Yield changes that need less of a memory, the mildest first."""
    return _method(setup).remedies(setup)


def _method(setup: Setup) -> Strategy:
    package = METHODS.get(type(setup.scenario))
    if package is None:
        raise MemroofError(f"an offload strategy cannot run a {setup.scenario.kind} scenario")
    return cast(Strategy, importlib.import_module(package))
