"""Generation where weights are computed on where they lie, on accelerators and on CPUs, as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share

Bits = Annotated[float, Field(gt=0.0, le=64.0)]


class HostComputeWorkload(Spec):
    """Sequences that are generated together."""

    prompt: Positive
    output: Positive
    batch: Positive = 1


class HostComputeStrategy(Spec):
    """What lies and is computed where."""

    method: Literal["host-compute"]
    placement: Literal["experts", "layers"] = "experts"
    """What the CPUs compute: routed experts (KTransformers, Fiddler), or whole layers from the bottom up (llama.cpp)."""
    gpu_layers: Natural | None = None
    """With ``layers``: layers on the accelerator, the topmost ones; none if absent."""
    gpu_experts: Share = 0.0
    """With ``experts``: share of the routed experts that lie and are computed on the accelerators."""
    expert_placement: Literal["uniform", "frequency", "front-loading"] | None = None
    """Which: as many in every layer, chosen without knowledge (uniform, which is meant if absent) or by how often they are
    used (frequency); or all of the first layers' (front-loading)."""
    expert_skew: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """Exponent of Zipf's law of how often experts are used, which ``frequency`` profits from."""
    experts_per_token: Positive | None = None
    """Routed experts of a token, where fewer are used than the model asks for."""
    deferred_experts: Natural = 0
    """Routed experts of a decode step whose output joins one layer later, so that CPUs work beside the accelerator."""
    prefill: Literal["in-place", "streamed"] = "in-place"
    """Prompts are computed where weights lie, or on the accelerators, layer by layer, with weights that are copied there."""
    prefetch: Natural | None = None
    """With ``streamed``: layers whose weights are copied ahead of the one that is computed; 1 if absent, 0: no overlap."""
    prefill_chunk: Positive | None = None
    """Tokens of a pass of a prompt at most; all of it if absent."""
    kernels: str = "vector"
    """Family of CPU kernels, by its name in the CPU's calibration."""
    sockets: Positive | None = None
    """CPUs that hold weights and compute; all of them if absent."""
    numa: Literal["split", "copied", "interleaved"] | None = None
    """Of several sockets: each computes its part of every matrix from its own DRAM (split, which is meant if absent), has a
    copy of all of them to do so (copied), or reads pages that are spread over all sockets (interleaved)."""
    launches: Natural = 0
    """Kernels of a pass that the CPU launches one by one; 0: one captured graph."""
    launch_time: Seconds = 0.0
    """Of each of them."""
    precision: Literal["fp16", "bf16"] = "bf16"
    gpu_weight_bits: Bits | None = None
    """Mean bits of a weight on the accelerator, scales among them; those of ``precision`` if absent."""
    cpu_weight_bits: Bits | None = None
    """The same of those in DRAM."""
    kv_precision: NumberFormat | None = None
    pinned: Fraction = 1.0
    """Share of a tier's capacity that the strategy may use."""

    @model_validator(mode="after")
    def _decides(self) -> HostComputeStrategy:
        """Refuse options that decide nothing beside others."""
        if self.placement == "layers":
            given = {
                "gpu_experts": bool(self.gpu_experts),
                "expert_placement": self.expert_placement is not None,
                "deferred_experts": bool(self.deferred_experts),
            }
            for key, present in given.items():
                if present:
                    raise _fault(f"'{key}' belongs to placement 'experts'; layers are whole")
        elif self.gpu_layers is not None:
            raise _fault("'gpu_layers' belongs to placement 'layers'; of experts use 'gpu_experts'")
        if self.expert_placement is not None and not self.gpu_experts:
            raise _fault("'expert_placement' decides nothing without 'gpu_experts'")
        if self.expert_skew and self.expert_placement != "frequency":
            raise _fault("'expert_skew' decides nothing without expert_placement 'frequency'")
        if self.prefetch is not None and self.prefill == "in-place":
            raise _fault("'prefetch' decides nothing where prompts are computed in place")
        if bool(self.launches) != bool(self.launch_time):
            raise _fault("'launches' and 'launch_time' belong together")
        if self.numa is not None and self.sockets == 1:
            raise _fault("'numa' decides nothing on one socket")
        return self


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("scenario", "{message}", {"message": message})


class HostComputeScenario(OffloadScenario):
    """Generate with part of the weights in DRAM, computed on by the CPUs."""

    grows: ClassVar[Mapping[str, str]] = {"batch": "workload.batch", "prompt": "workload.prompt"}
    workload: HostComputeWorkload
    strategy: HostComputeStrategy
