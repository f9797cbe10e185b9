"""Generation with weights, KV and hidden states over several memory tiers, as written: FlexGen's zig-zag block schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Bytes, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share

TIERS = ("gpu", "dram", "cxl", "nvme")
OPTIMAL = "optimal"


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
    cxl: Share = 0.0
    nvme: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str) and value in TIERS:
            return {} if value == "gpu" else {value: 1.0}
        return value

    @model_validator(mode="after")
    def _shares(self) -> Placement:
        if self.dram + self.cxl + self.nvme > 1.0 + 1e-9:
            raise PydanticCustomError("scenario", "the shares on 'dram', 'cxl' and 'nvme' exceed 1")
        return self

    @property
    def away(self) -> dict[str, float]:
        """Shares that are not in GPU memory, by tier."""
        return {"dram": self.dram, "cxl": self.cxl, "nvme": self.nvme}


Placed = Literal["optimal"] | Placement
"""Where tensors lie: shares, or those that a linear program finds."""


class Search(Spec):
    """Grid of blocks that placements are found for; the best of them is run."""

    batch: tuple[Positive, ...] = ()
    """Sequences of one GPU batch; that of the workload if empty."""
    batches: tuple[Positive, ...] = ()
    """GPU batches of a block; those of the workload if empty."""


class ZigzagStrategy(Spec):
    """Where weights, KV and hidden states live and how they move."""

    method: Literal["zigzag"] = "zigzag"
    weights: Placed = Placement()
    kv: Placed = Placement()
    hidden: Placed = Placement()
    """Hidden states of the batches that are not computed right now."""
    objective: Literal["throughput", "latency"] = "throughput"
    """What an optimal placement is best for: tokens per second of whole blocks, or the time of a decode step."""
    search: Search | None = None
    """Blocks to choose from, where a placement is optimal."""
    attention: Literal["gpu", "cpu"] = "gpu"
    """Where decode attention over an offloaded KV cache is computed; cpu moves queries instead of the cache."""
    prefetch: Natural = 1
    """Layers whose weights are fetched ahead (1: double buffering; 0: no overlap)."""
    prefetch_bytes: Bytes | None = None
    """Weights that are fetched ahead at most, where that is less than a layer (DeepSpeed's prefetch bucket); the rest of a layer
    is fetched when it is its turn."""
    barrier: bool = False
    """Whether all copies and the computation of one batch are waited for before the next, as in FlexGen's loop: weights of a
    layer come with the first batch of the one before, the cache is stored and hidden states move one batch later."""
    split_layers: bool = False
    """Whether attention and MLP are streamed as two layers, as FlexGen does."""
    direct_storage: bool = False
    """Whether flash is read and written straight from the accelerator (GPUDirect Storage), not by way of DRAM."""
    pipeline_parallel: Positive = 1
    """Stages of layers, each on a node of its own with as many blocks in flight as there are stages."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    weight_precision: NumberFormat | None = None
    kv_precision: NumberFormat | None = None
    weight_group: Positive | None = None
    kv_group: Positive | None = None
    """Values of a narrow format that share a scale and a minimum in fp16; they are expanded to ``precision`` before use."""
    expansion: Literal["kernel", "passes"] = "kernel"
    """How: by one kernel, or by the element-wise passes of PyTorch operators (FlexGen)."""
    pageable: tuple[Literal["weights", "kv", "hidden"], ...] = ()
    """What lies in DRAM that is not page-locked, so that its copies are staged by the driver."""
    fused_attention: bool = True
    """FlashAttention-like prefill; false: scores and softmax as separate kernels with the scores in memory."""
    cpu_attention: Literal["fused", "widened"] = "fused"
    """Kernel of CPU attention: fused reads the cache once; widened writes it in fp32 first and reads that, as PyTorch
    does where a CPU has no 16-bit arithmetic."""
    pinned: Fraction = 1.0
    """Share of a tier's capacity that the strategy may use."""
    baseline: dict[str, Any] = {}
    """Keys that are otherwise in a second run, over which the speedup is told: ``{prefetch: 0}``."""

    @model_validator(mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("pageable"), str):
            return {**value, "pageable": [value["pageable"]]}
        return value

    @property
    def optimised(self) -> tuple[str, ...]:
        """Classes of tensors whose placement is left to the linear program."""
        return tuple(key for key in ("weights", "kv", "hidden") if getattr(self, key) == OPTIMAL)

    @property
    def compared(self) -> ZigzagStrategy | None:
        """The strategy of the second run; None where there is none, or where its keys make none."""
        if not self.baseline:
            return None
        try:
            return ZigzagStrategy.model_validate(
                {**self.model_dump(exclude_unset=True), **self.baseline, "baseline": {}}
            )
        except ValidationError:
            return None

    @model_validator(mode="after")
    def _decides(self) -> ZigzagStrategy:
        if self.barrier and not self.prefetch:
            raise PydanticCustomError(
                "scenario", "'barrier' decides nothing where 'prefetch' is 0: nothing overlaps"
            )
        if self.prefetch_bytes is not None and (self.prefetch != 1 or self.barrier):
            raise PydanticCustomError(
                "scenario",
                "'prefetch_bytes' is part of the next layer: it needs a 'prefetch' of 1 and no 'barrier'",
            )
        if not self.optimised:
            for key, decided in (
                ("search", self.search is not None),
                ("objective", self.objective != "throughput"),
            ):
                if decided:
                    raise PydanticCustomError(
                        "scenario", f"'{key}' decides nothing where no placement is 'optimal'"
                    )
        if self.baseline and self.compared is None:
            raise PydanticCustomError("scenario", "'baseline' is no other valid strategy")
        for key in ("weight", "kv"):
            if getattr(self, f"{key}_group") is not None and getattr(self, f"{key}_precision") is None:
                raise PydanticCustomError(
                    "scenario", f"'{key}_group' needs a '{key}_precision', such as int4"
                )
        if self.expansion != "kernel" and self.weight_group is None and self.kv_group is None:
            raise PydanticCustomError(
                "scenario", "'expansion' decides nothing without 'weight_group' or 'kv_group'"
            )
        return self


class ZigzagScenario(OffloadScenario):
    """Generate with weights and KV over several memory tiers."""

    grows: ClassVar[Mapping[str, str]] = {
        "batch": "workload.batch",
        "batches of a block": "workload.batches",
        "prompt": "workload.prompt",
    }
    workload: ZigzagWorkload
    strategy: ZigzagStrategy = ZigzagStrategy()
