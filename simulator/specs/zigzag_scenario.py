"""Generation with weights and KV over several memory tiers, as written: FlexGen's zig-zag block schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share


class ZigzagWorkload(Spec):
    """A block of sequences that is generated together."""

    prompt: Positive
    output: Positive
    batch: Positive
    """Sequences of one GPU batch."""
    batches: Positive = 1
    """GPU batches of a block: each layer's weights are used for all of them before the next layer (FlexGen's zig-zag)."""


class Placement(Spec):
    """Shares of a tensor class on each tier; what is left stays in GPU memory."""

    dram: Share = 0.0
    nvme: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ("gpu", "dram", "nvme"):
            return {} if value == "gpu" else {value: 1.0}
        return value

    @model_validator(mode="after")
    def _shares(self) -> Placement:
        if self.dram + self.nvme > 1.0 + 1e-9:
            raise PydanticCustomError("scenario", "the shares on 'dram' and 'nvme' exceed 1")
        return self


class ZigzagStrategy(Spec):
    """Where weights and KV live and how they move."""

    method: Literal["zigzag"] = "zigzag"
    weights: Placement = Placement()
    kv: Placement = Placement()
    attention: Literal["gpu", "cpu"] = "gpu"
    """Where decode attention over an offloaded KV cache is computed; cpu moves queries instead of the cache."""
    prefetch: Natural = 1
    """Layers whose weights are fetched ahead (1: double buffering; 0: no overlap)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    weight_precision: NumberFormat | None = None
    kv_precision: NumberFormat | None = None
    fused_attention: bool = True
    """FlashAttention-like prefill; false: scores and softmax as separate kernels with the scores in memory."""
    cpu_attention: Literal["fused", "widened"] = "fused"
    """Kernel of CPU attention: fused reads the cache once; widened writes it in fp32 first and reads that, as PyTorch
    does where a CPU has no 16-bit arithmetic."""
    pinned: Fraction = 1.0
    """Share of a tier's capacity that the strategy may use."""


class ZigzagScenario(OffloadScenario):
    """Generate with weights and KV over several memory tiers."""

    grows: ClassVar[Mapping[str, str]] = {
        "batch": "workload.batch",
        "batches of a block": "workload.batches",
        "prompt": "workload.prompt",
    }
    workload: ZigzagWorkload
    strategy: ZigzagStrategy = ZigzagStrategy()
