"""Scenarios as written: hardware, model, workload, strategy, limits and what was measured.

One schema for each kind (training, serving, offload). The strategies read these frozen values and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Rate, Seconds, Spec, Tokens
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class HardwareChoice(Spec):
    """What the scenario runs on: a device, node or cluster of the catalog, and how many."""

    device: str | None = None
    node: str | None = None
    cluster: str | None = None
    nodes: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Nodes of this kind; a cluster's own count if absent."""
    count: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Devices, where a bare device is named."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"node": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> HardwareChoice:
        named = [key for key in ("device", "node", "cluster") if getattr(self, key)]
        if len(named) != 1:
            raise PydanticCustomError("scenario", "needs one of 'device', 'node' or 'cluster'")
        if self.count and not self.device:
            raise PydanticCustomError(
                "scenario", "'count' belongs to 'device'; use 'nodes' for a node or cluster"
            )
        return self


class Expectation(Spec):
    """A measured or published figure that a scenario must reproduce."""

    value: Annotated[str | float, Field(union_mode="left_to_right")]
    source: str
    tolerance: Fraction | None = None
    """Relative; ``memroof run`` says by how much it is missed."""


class ScenarioBase(Spec):
    """What every scenario has."""

    name: str = ""
    description: str = ""
    source: str = ""
    hardware: HardwareChoice
    model: str
    expect: dict[str, Expectation] = {}
    measured: str | None = None
    """CSV file of measured products (device, format, m, n, k, time) that replace predicted times of the same shape."""
    limit: dict[str, str] = {}
    """Largest (or, with a leading '>', smallest) value of a result metric: ``time_to_first_token_p99: 2 s``."""


# --- training -------------------------------------------------------------------------------------------------------


class TrainingWorkload(Spec):
    """One optimizer step, and optionally the whole run."""

    global_batch: Positive
    """Sequences of a step."""
    sequence: Positive
    """Tokens of a sequence."""
    tokens: Tokens | None = None
    """Tokens of the whole run, for days and dollars."""


class TrainingStrategy(Spec):
    """How a step is cut, ordered and kept in memory."""

    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    data_parallel: Positive | None = None
    """Replicas; all remaining GPUs if absent."""
    expert_parallel: Positive = 1
    sequence_parallel: bool = False
    """Norms, dropouts and residuals are cut along the sequence over the tensor-parallel group."""
    micro_batch: Positive = 1
    schedule: Literal["gpipe", "1f1b", "1f1b-interleaved"] = "1f1b"
    virtual_stages: Positive = 1
    """Model chunks a stage holds (interleaved 1F1B)."""
    recompute: Literal["none", "selective", "full"] = "none"
    fused_attention: bool = True
    """FlashAttention-like kernels, which keep no scores; false: scores, softmax and dropout as separate kernels."""
    fused_accumulation: bool = True
    """Products of weight gradients add to the sum over micro-batches (Megatron-LM from 2022 on); false: a kernel after each."""
    fused_loss: bool = True
    """Cross entropy in one kernel each way; false: as some ten kernels over the logits (Megatron-LM's own)."""
    cuda_graphs: bool = False
    """Passes are captured and issued at once; false: the CPU issues every operator, and the device waits where it is slower."""
    precision: Literal["fp32", "tf32", "fp16", "bf16", "fp8"] = "bf16"
    """Format of matrix products; parameters and activations are kept in 16 bit below fp32."""
    gradient_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Format in which gradients are accumulated and reduced."""
    optimizer: Literal["adam", "sgd"] = "adam"
    zero_stage: Annotated[int, Field(ge=0, le=1)] = 0
    overlap_tensor_parallel: bool = True
    """Tensor-parallel collectives of the backward pass run beside products (Megatron-LM's asynchronous linear layers, from
    2022 on); false: one after the other."""
    overlap_gradient_reduction: bool = False
    """Gradient buckets are reduced while the backward pass goes on."""
    optimize_pipeline_transfer: bool = True
    """Each tensor-parallel rank sends its share of a stage boundary, gathered on arrival (Megatron scatter/gather)."""


class TrainingScenario(ScenarioBase):
    """Train a model for one step."""

    kind: Literal["training"]
    workload: TrainingWorkload
    strategy: TrainingStrategy = TrainingStrategy()


# --- serving --------------------------------------------------------------------------------------------------------


class Lengths(Spec):
    """Distribution of prompt or output lengths in tokens."""

    fixed: Positive | None = None
    mean: Annotated[float, Field(gt=0)] | None = None
    """Mean of a log-normal distribution, rounded up to whole tokens."""
    sigma: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the logarithm."""
    uniform: tuple[Positive, Positive] | None = None
    maximum: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().isdecimal():
            return {"fixed": value}
        return {"fixed": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_of(self) -> Lengths:
        if sum(item is not None for item in (self.fixed, self.mean, self.uniform)) != 1:
            raise PydanticCustomError("scenario", "needs one of 'fixed', 'mean' or 'uniform'")
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise PydanticCustomError("scenario", "'uniform' must be low, high")
        return self


class RequestRow(Spec):
    """One request of a given list."""

    arrival: Seconds
    prompt: Positive
    output: Positive


class ServingWorkload(Spec):
    """Requests: Poisson arrivals, all at once (offline), a closed loop of clients, or a given list."""

    arrival: Literal["poisson", "offline", "closed", "list"] = "poisson"
    rate: Rate | None = None
    """Requests per second of Poisson arrivals."""
    concurrency: Positive | None = None
    """Clients of a closed loop: each sends its next request when the one before is answered."""
    think_time: Seconds | None = None
    """Between an answer and the client's next request, of a closed loop; none if absent."""
    requests: Positive = 500
    """How many are simulated."""
    prompt: Lengths | None = None
    output: Lengths | None = None
    list: tuple[RequestRow, ...] | None = None
    seed: Natural = 0

    @model_validator(mode="after")
    def _complete(self) -> ServingWorkload:
        if self.arrival == "poisson" and self.rate is None:
            raise PydanticCustomError("scenario", "Poisson arrivals need a 'rate' such as '5 req/s'")
        if (self.arrival == "closed") != (self.concurrency is not None):
            raise PydanticCustomError("scenario", "'concurrency' and arrival 'closed' belong together")
        if self.think_time is not None and self.concurrency is None:
            raise PydanticCustomError("scenario", "'think_time' belongs to arrival 'closed'")
        if self.arrival == "list":
            if not self.list:
                raise PydanticCustomError(
                    "scenario", "arrival 'list' needs a 'list' of {arrival, prompt, output}"
                )
        elif self.prompt is None or self.output is None:
            raise PydanticCustomError("scenario", "needs the lengths 'prompt' and 'output'")
        return self


class ServingStrategy(Spec):
    """How a replica batches, keeps its KV cache and is cut over GPUs."""

    batching: Literal["continuous", "static"] = "continuous"
    """continuous: requests come and go between iterations; static: a batch runs until its longest output is done."""
    tensor_parallel: Positive = 1
    precision: Literal["fp32", "fp16", "bf16", "fp8", "fp4"] = "bf16"
    """Format of matrix products; activations between them are kept in 16 bit below fp32."""
    weight_precision: NumberFormat | None = None
    """Format that weights are stored in; ``precision`` if absent."""
    weight_bits: Annotated[float, Field(gt=0.0, le=64.0)] | None = None
    """Mean bits of a stored weight over the whole model (embedding, logits and scales among them), for mixed formats such
    as Q4_K_M; if absent, those of the format, with embedding and logits in 16 bit where layers are quantised."""
    kv_precision: NumberFormat | None = None
    """Format that keys and values are stored in; 16 bit of ``precision`` if absent."""
    max_batch: Positive = 256
    """Sequences that run at once."""
    max_batched_tokens: Positive = 8192
    """Token budget of one iteration."""
    chunked_prefill: bool = True
    """Prompts are cut to fill the token budget beside decodes; false: whole prompts first."""
    block_size: Positive = 16
    """Tokens of a KV block."""
    memory_utilization: Fraction = 0.9
    """Share of GPU memory that the engine may use."""
    watermark: Share = 0.01
    """Share of the KV cache that admission of a request leaves to those that run."""
    preemption: Literal["recompute"] = "recompute"
    """What becomes of the latest request when blocks run out: its cache is dropped and computed again."""
    schedule_ahead: bool = True
    """The next iteration is put together while one runs (asynchronous or overlap scheduling, the default of vLLM, SGLang and
    TensorRT-LLM since 2025): its host time is hidden, and a request that arrives meanwhile waits for one iteration more."""
    host_overhead: Seconds | None = None
    """CPU time of an iteration that is not hidden; if absent, the class constant, or none where it is scheduled ahead."""
    all_reduce: Literal["library", "pull", "push"] = "pull"
    """Kernel of all-reduces up to some megabytes inside a machine: the engine's own, which reads its peers' memory (vLLM,
    SGLang) or writes flagged data to them (TensorRT-LLM), or the communication library's."""
    frontend_latency: Seconds | None = None
    """From a client to the scheduler and back (HTTP, tokenising, de-tokenising); none if absent."""


class ServingScenario(ScenarioBase):
    """Serve a model."""

    kind: Literal["serving"]
    workload: ServingWorkload
    strategy: ServingStrategy = ServingStrategy()


# --- offload --------------------------------------------------------------------------------------------------------


class OffloadWorkload(Spec):
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


class OffloadStrategy(Spec):
    """Where weights and KV live and how they move."""

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


class OffloadScenario(ScenarioBase):
    """Generate with weights and KV over several memory tiers."""

    kind: Literal["offload"]
    workload: OffloadWorkload
    strategy: OffloadStrategy = OffloadStrategy()


Scenario = TrainingScenario | ServingScenario | OffloadScenario
SCENARIO_KINDS: dict[str, type[TrainingScenario] | type[ServingScenario] | type[OffloadScenario]] = {
    "training": TrainingScenario,
    "serving": ServingScenario,
    "offload": OffloadScenario,
}
