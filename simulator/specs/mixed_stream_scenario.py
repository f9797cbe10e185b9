"""Generation that streams all weights through the accelerator in every iteration and attends on the CPUs, as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from simulator.specs.base import ByteRate, Bytes, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction


class MixedStreamWorkload(Spec):
    """Requests without end, as in a large batch job."""

    prompt: Positive
    output: Positive
    sequences: Positive | None = None
    """Requests that decode at once; as many as the cache holds if absent."""


class MixedStreamStrategy(Spec):
    """Weights and cache in DRAM; prompts and decode steps mixed in each iteration."""

    method: Literal["mixed-stream"]
    kv_capacity: Bytes
    """DRAM for the cache."""
    groups: Literal[1, 2] = 2
    """Halves of the requests that take turns, so that CPUs attend for one while the accelerator computes the other; 1: one after
    the other."""
    copy_rate: ByteRate | None = None
    """What copies between DRAM and the accelerator are measured to reach; that of the path and the calibration if absent."""
    precision: Literal["fp16", "bf16"] = "bf16"
    kv_precision: NumberFormat | None = None
    """Format that keys and values are stored in; 16 bit if absent."""
    pinned: Fraction = 1.0
    """Share of a tier's capacity that the strategy may use."""


class MixedStreamScenario(OffloadScenario):
    """Generate as many tokens a second as all of DRAM, its bandwidth and the accelerator allow."""

    grows: ClassVar[Mapping[str, str]] = {"prompt": "workload.prompt"}
    workload: MixedStreamWorkload
    strategy: MixedStreamStrategy
