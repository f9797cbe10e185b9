"""A serving scenario as written: requests, and how a replica batches, caches and is cut over GPUs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Rate, Seconds, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.scenario_base import Fraction, ScenarioBase, Share


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
