"""Training of models larger than the memory of their GPUs by task swapping on one server, as written (Harmony)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Bytes, ByteSize, Seconds, Spec
from simulator.specs.model import Natural, Positive
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Entry

PackMethod = Literal["balanced-time", "balanced-memory", "greedy"]
OptimizerName = Literal["adam", "momentum", "sgd"]
DELETION = 0.040
"""Seconds that dropping a task's tensors takes: the constant of Harmony's simulator (sched_args.py, time_del)."""


class TaskPacksWorkload(Spec):
    """One iteration over a minibatch."""

    minibatch: Positive
    """Samples of all GPUs together."""
    sequence: Positive | None = None
    """Tokens of a sample; measured layers have theirs built in."""


class SwapRates(Spec):
    """Rates of copies as measured on the server, in place of what its links promise; latency is in them."""

    swap: ByteRate | None = None
    """Between DRAM and GPU memory, each direction; of a shared uplink: of all GPUs behind it together."""
    peer: ByteRate | None = None
    """From one GPU to another, each direction."""
    message: ByteRate | None = None
    """Of the DRAM where processes pass tensors on: each byte is read and written, by all processes together."""


class TaskPacksStrategy(Spec):
    """How layers are packed into tasks, and where tasks run; what is absent is searched."""

    method: Literal["task-packs"]
    mode: Literal["data-parallel", "pipeline", "virtualised"] = "data-parallel"
    """data-parallel: every GPU runs every pack on its share of the minibatch; pipeline: packs go round the GPUs;
    virtualised: data parallelism whose tensors are swapped on demand, micro-batch by micro-batch, which the others are
    compared with."""
    forward_micro_batch: Positive | None = None
    backward_micro_batch: Positive | None = None
    forward_packs: Natural | None = None
    """Packs that only run forward: all but the last backward pack's layers, which run forward there."""
    backward_packs: Positive | None = None
    packing: Annotated[list[PackMethod], Field(min_length=1)] = ["balanced-time"]
    """How layers are cut into packs; of several ways the fastest is taken. Packs of the backward pass are tried forward too."""
    memory_limit: Bytes | None = None
    """Most bytes that a pack may take by itself, buffers of its neighbours left out; the GPU's memory if absent."""
    context_memory: ByteSize | None = None
    """Bytes of each GPU that the driver's context and libraries take; the calibration's if absent."""
    prefetch: bool = True
    """Double buffers: inputs of the next micro-batch, gradients and the next pack's weights come in during computation."""
    rates: SwapRates = SwapRates()
    link_sharing: Literal["fair", "even"] = "fair"
    """Of links that the GPUs of a pipeline have in common: fair among the copies of the moment, or in fixed equal parts as
    Harmony's simulator has it."""
    task_overhead: Seconds = DELETION
    """Time after each task in which its tensors are dropped and its GPU waits."""
    baseline_micro_batch: Positive | None = None
    """Of the virtualised memory that the answer is compared with; its fastest if absent."""
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    """Of products, weights on the GPU and gradients of a priced model; fp32 if absent."""
    optimizer: OptimizerName | None = None
    """Of a priced model, on the CPU in fp32; adam if absent."""
    fused_attention: bool | None = None
    """Of a priced model: FlashAttention-like kernels (true if absent), or scores and softmax as separate kernels."""

    @model_validator(mode="after")
    def _decides(self) -> TaskPacksStrategy:
        if self.mode == "virtualised":
            unused = (
                "forward_micro_batch",
                "forward_packs",
                "backward_packs",
                "packing",
                "memory_limit",
                "prefetch",
                "link_sharing",
                "baseline_micro_batch",
            )
            given = sorted(self.model_fields_set.intersection((*unused, "task_overhead")))
            if given:
                raise PydanticCustomError(
                    "scenario", "{message}",
                    {"message": f"{given[0]!r} decides nothing in mode 'virtualised', which swaps tensors on demand"},
                )  # fmt: skip
        if self.mode == "data-parallel" and "link_sharing" in self.model_fields_set:
            raise PydanticCustomError(
                "scenario",
                "'link_sharing' decides nothing in mode 'data-parallel', whose GPUs copy at the same time",
            )
        return self


class TaskPacksScenario(OffloadScenario):
    """Train with tensors in DRAM and tasks of packed layers swapped through the GPUs of one server."""

    grows: ClassVar[Mapping[str, str]] = {"sequence": "workload.sequence"}
    model: str = ""
    layers: str = ""
    """Measured layers in place of a model that is priced; see :mod:`simulator.specs.measured_layers`."""
    workload: TaskPacksWorkload
    strategy: TaskPacksStrategy

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The model, or the measured layers."""
        return (*super().entries, *((Entry(("layers",), "layers", self.layers),) if self.layers else ()))

    @model_validator(mode="after")
    def _priced_or_measured(self) -> TaskPacksScenario:
        if bool(self.model) == bool(self.layers):
            raise PydanticCustomError("scenario", "needs 'model' or 'layers', and not both")
        given = {
            key
            for key in ("precision", "optimizer", "fused_attention")
            if getattr(self.strategy, key) is not None
        }
        if self.layers and (given or self.workload.sequence):
            key = "workload.sequence" if self.workload.sequence else f"strategy.{min(given)}"
            raise PydanticCustomError(
                "scenario", "{message}", {"message": f"{key!r} is measured in 'layers' already"}
            )
        if self.model and self.workload.sequence is None:
            raise PydanticCustomError("scenario", "'workload.sequence' is missing; a priced model needs it")
        return self
