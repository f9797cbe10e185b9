"""What is generated, what lies where, and in which passes; illegal combinations are refused here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import CostModel, Sockets
from simulator.graph import FORMAT_BYTES, Axis, Numerics, Shape
from simulator.offload.place import Place, find_place
from simulator.specs import (
    HostComputeScenario,
    HostComputeStrategy,
    HostKernelConstants,
    MemroofError,
    Model,
    Span,
)
from simulator.specs.errors import did_you_mean
from simulator.strategy import Setup

SAMPLES = 6
"""Passes of a phase that are simulated at most, evenly spaced; times of those between are interpolated."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through the layers, and how many it stands for."""

    shape: Shape
    weight: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked scenario."""

    name: str
    model: Model
    strategy: HostComputeStrategy
    place: Place
    cost: CostModel
    host: CostModel
    kernels: HostKernelConstants
    rate: float
    """Bytes a second that the CPUs stream together, before the efficiency of kernels [B/s]."""
    spans: Mapping[Axis, Span]
    on_gpu: Numerics
    on_host: Numerics
    batch: int
    prompt: int
    output: int
    prefill: tuple[Pass, ...]
    decode: tuple[Pass, ...]

    @property
    def tensor_parallel(self) -> int:
        """Accelerators that share each layer."""
        return max(1, self.place.accelerators)

    @property
    def sockets(self) -> Sockets:
        """The CPUs."""
        return self.place.sockets

    @property
    def host_layers(self) -> int:
        """Layers from the bottom that the CPUs compute as a whole."""
        if self.strategy.placement == "experts":
            return 0
        return self.model.num_hidden_layers - (self.strategy.gpu_layers or 0)

    @property
    def copies(self) -> int:
        """Copies of what lies in DRAM."""
        return self.sockets.count if self.strategy.numa == "copied" else 1

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output - 1


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its model and hardware.

    Raises
    ------
    MemroofError
        For a scenario of another kind, a model that does not generate or has no experts where those are placed, more layers,
        experts or sockets than there are, no CPU, or a family of kernels that the CPU's calibration lacks.
    """
    scenario = setup.scenario
    if not isinstance(scenario, HostComputeScenario):
        raise MemroofError(f"host-compute cannot run a {scenario.kind} scenario")
    strategy, workload = scenario.strategy, scenario.workload
    model = _model(setup.model, strategy)
    place = find_place(setup.hardware, setup.cost.calibration, setup.host, strategy.pinned, strategy.sockets)
    assert setup.host is not None  # or find_place had refused it
    _refuse(model, strategy, place, setup.hardware.name)
    ranks = max(1, place.accelerators)
    spans: dict[Axis, Span] = {
        "tensor": setup.hardware.span(ranks) if ranks > 1 else Span(()), "expert": Span(())
    }  # fmt: skip
    return Plan(
        scenario.name, model, strategy, place, setup.cost, setup.host, _kernels(strategy, setup.host),
        place.sockets.stream_rate(remote=_remote(strategy, place.sockets.count)), spans,
        _numerics(strategy, strategy.gpu_weight_bits), _numerics(strategy, strategy.cpu_weight_bits),
        workload.batch, workload.prompt, workload.output,
        _prefill(workload.batch, workload.prompt, strategy.prefill_chunk),
        _decode(workload.batch, workload.prompt, workload.output - 1),
    )  # fmt: skip


def _model(model: Model, strategy: HostComputeStrategy) -> Model:
    if strategy.experts_per_token is None:
        return model
    if model.moe is None:
        raise MemroofError(f"strategy.experts_per_token: {model.name} has no experts")
    if strategy.experts_per_token > model.moe.num_experts:
        raise MemroofError(
            f"strategy.experts_per_token: {model.name} has {model.moe.num_experts} experts, not {strategy.experts_per_token}"
        )
    moe = model.moe.model_copy(update={"num_experts_per_tok": strategy.experts_per_token})
    return model.model_copy(update={"moe": moe})


def _refuse(model: Model, strategy: HostComputeStrategy, place: Place, machine: str) -> None:
    if model.family != "decoder":
        raise MemroofError(f"offload generates with decoders; {model.name} is an {model.family}")
    if strategy.placement == "experts":
        if model.moe is None:
            raise MemroofError(
                f"strategy.placement: {model.name} has no experts; use 'layers' with 'gpu_layers'"
            )
        if not place.accelerators:
            raise MemroofError(f"strategy.placement: {machine} has CPUs alone; use 'layers'")
        if strategy.deferred_experts >= model.moe.num_experts_per_tok:
            raise MemroofError(
                f"strategy.deferred_experts: {strategy.deferred_experts} of {model.moe.num_experts_per_tok} experts; "
                "at least one must be computed at once"
            )
    layers = strategy.gpu_layers or 0
    if layers > model.num_hidden_layers:
        raise MemroofError(
            f"strategy.gpu_layers: {model.name} has {model.num_hidden_layers} layers, not {layers}"
        )
    if not place.accelerators:
        for key, given in (
            ("gpu_layers", layers > 0), ("gpu_weight_bits", strategy.gpu_weight_bits is not None),
            ("prefill", strategy.prefill == "streamed"), ("launches", strategy.launches > 0),
        ):  # fmt: skip
            if given:
                raise MemroofError(f"strategy.{key}: {machine} has CPUs alone")
    if place.sockets.count == 1 and strategy.numa is not None:
        raise MemroofError(f"strategy.numa decides nothing: {machine} has one socket")


def _kernels(strategy: HostComputeStrategy, host: CostModel) -> HostKernelConstants:
    known = host.calibration.host_kernels
    if strategy.kernels not in known:
        raise MemroofError(
            f"strategy.kernels: found {strategy.kernels!r}, expected one of {', '.join(known) or 'none'}"
            f"{did_you_mean(strategy.kernels, tuple(known))}"
        )
    return known[strategy.kernels]


def _remote(strategy: HostComputeStrategy, sockets: int) -> float:
    """Share of reads that cross sockets: of pages that are spread over n sockets, (n - 1)/n lie elsewhere."""
    return (sockets - 1.0) / sockets if strategy.numa == "interleaved" else 0.0


def _numerics(strategy: HostComputeStrategy, bits: float | None) -> Numerics:
    kv = FORMAT_BYTES[strategy.kv_precision] if strategy.kv_precision else 2.0
    return replace(
        Numerics.of(strategy.precision), weight_bytes=2.0 if bits is None else bits / 8.0, kv_bytes=kv
    )


def _prefill(batch: int, prompt: int, chunk: int | None) -> tuple[Pass, ...]:
    """Return passes over the prompts: equal chunks, then what is left."""
    size = min(chunk or prompt, prompt)
    whole, rest = divmod(prompt, size)
    picked, weights = sample(whole)
    passes = [
        Pass(Shape(batch, size, index * size, "prefill"), weight)
        for index, weight in zip(picked, weights, strict=True)
    ]
    if rest:
        passes.append(Pass(Shape(batch, rest, whole * size, "prefill"), 1.0))
    return tuple(passes)


def _decode(batch: int, prompt: int, steps: int) -> tuple[Pass, ...]:
    picked, weights = sample(steps)
    return tuple(
        Pass(Shape(batch, 1, prompt + step, "decode"), weight)
        for step, weight in zip(picked, weights, strict=True)
    )


def sample(count: int) -> tuple[list[int], list[float]]:
    """Return which of ``count`` passes are simulated, evenly spaced, and how many each stands for.

    Times are taken as linear between two samples, so that the weights sum to the count.
    """
    if not count:
        return [], []
    chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).round().astype(int))
    weights = [float(np.interp(np.arange(count), chosen, row).sum()) for row in np.eye(len(chosen))]
    return chosen.tolist(), weights
