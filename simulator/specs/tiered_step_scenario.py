"""A training step whose parameters, gradients, optimizer states and activations lie over several memory tiers, as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Number, Spec
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Fraction, Share

Tier = Literal["gpu", "dram", "cxl", "nvme"]


class TieredStepWorkload(Spec):
    """One optimizer step."""

    global_batch: Positive
    """Sequences of a step, on all GPUs together."""
    sequence: Positive
    """Tokens of a sequence."""


class TierShares(Spec):
    """Shares of a tensor class on each tier; what is left stays in GPU memory."""

    dram: Share = 0.0
    cxl: Share = 0.0
    nvme: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ("gpu", "dram", "cxl", "nvme"):
            return {} if value == "gpu" else {value: 1.0}
        return value

    @model_validator(mode="after")
    def _shares(self) -> TierShares:
        if self.away > 1.0 + 1e-9:
            raise PydanticCustomError("scenario", "the shares on 'dram', 'cxl' and 'nvme' exceed 1")
        return self

    @property
    def away(self) -> float:
        """What is not in GPU memory."""
        return self.dram + self.cxl + self.nvme


class TieredStepStrategy(Spec):
    """Where each tensor class lies, when it moves and what is computed again."""

    method: Literal["tiered-step"]

    # --- parallelism and order
    tensor_parallel: Positive = 1
    """GPUs that share each layer; the others are replicas."""
    sequence_parallel: bool = False
    """Norms, dropouts and residuals are cut along the sequence over the tensor-parallel group."""
    micro_batch: Positive | None = None
    """Sequences that pass a layer at once on a replica; its whole share of the batch if absent."""
    accumulation: Literal["batch", "layer"] = "batch"
    """Order of micro-batches: one passes all layers before the next, or all pass a layer before the next layer, so that its
    parameters come and its gradients leave once."""
    exchange: Literal["gpu", "host"] = "gpu"
    """Where replicas meet: on the GPUs, each of which reads and sends its 1/N over its own link while the group gathers and
    reduces; or in host memory, which each GPU reads and sends everything from and to and where CPUs add gradients."""

    # --- formats and the optimizer
    precision: Literal["fp16", "bf16"] = "fp16"
    gradient_precision: Literal["fp32", "fp16", "bf16"] | None = None
    """Format in which gradients leave and wait; that of products if absent."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam has two fp32 moments, plain SGD no state."""
    master_weights: bool = True
    """Whether 16-bit parameters have an fp32 copy that the optimizer updates."""

    # --- where tensors lie
    parameters: TierShares = TierShares()
    """16-bit parameters; what is not on the GPU is read before each pass of its layer."""
    gradients: Tier = "gpu"
    """Where gradients wait for the optimizer."""
    states: TierShares = TierShares()
    """Master copy and moments; the GPU updates what it holds, the CPUs update the rest."""
    host_allocation: Literal["local", "latency-first", "interleaved"] = "local"
    """What placing on ``dram`` means on a machine with CXL memory: DRAM alone; optimizer states and fp32 gradients in DRAM, the
    rest striped over the CXL cards; or pages in turn on every DRAM and CXL node."""
    update: Literal["step", "layer", "delayed"] = "step"
    """When parameters change: after the last backward pass, layer by layer inside it, or beside the next step, which then
    computes with parameters that are one step old (ZeRO-Offload's delayed update)."""
    state_buffers: Positive = 3
    """Layers whose states may be in DRAM at once on their way from flash and back: 1 reads, updates and writes in turn."""
    parameter_tiles: Positive = 1
    """Parts of a layer that are gathered, used and reduced one after the other, so that only one of them is on the GPU (gathers
    operator by operator, memory-centric tiling of ZeRO-Infinity)."""
    prefetch: Natural = 1
    """Layers whose parameters are fetched ahead; activations come as many passes ahead."""
    direct_storage: bool = False
    """Flash talks to the GPU without a copy in DRAM (GPUDirect Storage)."""

    # --- activations
    activations: Tier | Literal["balanced"] = "gpu"
    """Where what a layer keeps for its backward pass waits; ``balanced``: GPU, DRAM, flash or recomputation, as a linear program
    over the times of all links and processors finds best."""
    activation_amount: Literal["all", "hidden"] = "all"
    """How much of it leaves: all, or as much as is written within the time of the forward pass, the tail stays."""
    kept_sublayers: Natural = 1
    """Sublayers (attention, MLP) at the end whose activations stay in any case, since they are needed at once."""
    forwarding: bool = True
    """An activation that is still being stored when it is needed is used where it is, not read back."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Operators that run again in the backward pass: none, the attention core, or whole layers."""
    head_tiles: Positive = 1
    """Parts of the tokens for which head and loss run one after the other (a tiled or chunked loss)."""
    fused_attention: bool = True
    """FlashAttention-like kernels; false: scores, softmax and dropout as separate kernels with the scores in memory."""

    # --- memories
    pinned: Fraction = 1.0
    """Share of a tier's capacity that the strategy may use."""
    write_amplification: Number = 1.0
    """Bytes that flash programs for a byte written, over that at which its endurance is rated."""

    @model_validator(mode="after")
    def _together(self) -> TieredStepStrategy:
        problem = _problem(self)
        if problem:
            raise PydanticCustomError("scenario", "{message}", {"message": problem})
        return self

    @property
    def gradient_format(self) -> str:
        """Format in which gradients leave and wait."""
        return self.gradient_precision or self.precision


def _problem(s: TieredStepStrategy) -> str:
    """Say which option decides nothing beside the others; empty if all do."""
    away = s.activations in ("dram", "cxl", "nvme")
    if s.activations == "balanced" and s.recompute != "none":
        return (
            "recompute: 'balanced' activations choose themselves what is computed again; leave it at 'none'"
        )
    if s.activation_amount == "hidden" and not away:
        return f"activation_amount: 'hidden' says how much leaves the GPU, and activations on {s.activations!r} are not asked"
    if s.update != "step" and not s.states.away:
        return f"update: {s.update!r} is about states that CPUs update; move states off the GPU"
    if s.gradients != "gpu" and s.states.away < 1.0 - 1e-9:
        return f"gradients: {s.gradients!r} is away from states that the GPU holds and updates; move all states off it"
    touches_flash = "nvme" in (s.gradients, s.activations) or s.parameters.nvme or s.activations == "balanced"
    if s.direct_storage and not touches_flash:
        return "direct_storage: nothing moves between GPU and flash; place parameters, gradients or activations on nvme"
    if s.host_allocation != "local" and not _on_dram(s):
        return f"host_allocation: {s.host_allocation!r} spreads what is placed on dram, and nothing is"
    return ""


def _on_dram(s: TieredStepStrategy) -> bool:
    return bool(s.parameters.dram or s.states.dram) or "dram" in (s.gradients, s.activations)


class TieredStepScenario(OffloadScenario):
    """Train for one step with tensors over several memory tiers."""

    grows: ClassVar[Mapping[str, str]] = {"sequence": "workload.sequence"}
    workload: TieredStepWorkload
    strategy: TieredStepStrategy
