"""What every strategy gets and gives: a :class:`Setup` in, an :class:`Outcome` out.

A strategy (training, serving, offload) lowers a scenario to a Program, has the engine run it, and reports metrics,
footprint and where the time went. It knows no screen; analysis turns outcomes into answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from simulator.cost import Breakdown, CostModel, class_errors
from simulator.engine import Timeline
from simulator.graph import Axis, ModelGraph
from simulator.specs import (
    Calibration,
    Graph,
    Hardware,
    MeasuredLayers,
    MemroofError,
    Model,
    OperatorClass,
    Scenario,
    Span,
)

Bottleneck = Literal[
    "compute", "memory", "tensor-parallel link", "context-parallel link", "expert-parallel link", "network", "host link",
    "storage", "latency", "host", "bubble", "waiting",
]  # fmt: skip
"""What time is lost to, along the critical path of the answer."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a strategy works from; no file is read after it is made."""

    scenario: Scenario
    described: Model | None
    """The model that the scenario names; None where its work is no model's."""
    hardware: Hardware
    cost: CostModel
    """Of the accelerator, or of the first kind where there are several."""
    others: Mapping[str, CostModel] = field(default_factory=dict)
    """Of further kinds of accelerator, by name."""
    pools: tuple[tuple[Hardware, CostModel] | None, ...] = ()
    """Of a serving fleet: hardware and cost model of each pool that has its own."""
    host: CostModel | None = None
    """Of the CPUs of an offload scenario's node; None where it has none."""
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Prices that were worked out, which runs of setups made from this one take over; nothing else is kept here."""
    models: Mapping[str, Model] = field(default_factory=dict)
    """Further models that the scenario names: a draft."""
    graph: Graph | None = None
    """The graph that the scenario names, where its work is a graph network's."""
    layers: MeasuredLayers | None = None
    """Measured layers that the scenario names in place of a model."""

    @property
    def subject(self) -> str:
        """Name of what is simulated: the model, its measured layers or the graph; empty where there is none."""
        found = self.described or self.layers or self.graph
        return found.name if found else ""

    @property
    def model(self) -> Model:
        """The model; raises :class:`MemroofError` where the scenario names none."""
        if self.described is None:
            raise MemroofError(f"{self.scenario.name} names no model")
        return self.described

    def cost_on(self, device: str) -> CostModel:
        """Return the cost model of a kind of accelerator."""
        return self.others.get(device, self.cost)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of an answer [SI] with its relative standard error, from which its interval follows."""

    label: str
    value: float
    dimension: str
    """A key of :data:`simulator.units.DIMENSIONS`, or ``count``, ``fraction`` or ``ratio``."""
    error: float = 0.0
    """Relative standard error; 0 where the figure is exact given the assumptions."""
    better: Literal["lower", "higher", "neither"] = "neither"
    span: tuple[float, float] | None = None
    """Its 80 % interval where that is not log-normal around the value, such as a share's."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One allocation at the moment of a peak."""

    name: str
    size: float


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The ledger row of one memory: what it holds at its peak, by category."""

    memory: str
    tier: str
    capacity: float
    """Usable bytes: the physical capacity less what the driver and the scenario keep back."""
    peak: float
    peak_time: float
    by_category: Mapping[str, float]
    largest: tuple[Holding, ...] = ()
    label: str = ""
    """Which rank or stage this is, where several differ; the fullest is reported."""

    @property
    def free(self) -> float:
        """Capacity less peak; negative by what is missing [B]."""
        return self.capacity - self.peak


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of the scenario that may make it fit or meet its limit."""

    description: str
    overrides: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a strategy found out."""

    headline: str
    """Key of the metric that answers "how fast"."""
    metrics: Mapping[str, Metric]
    memory: tuple[MemoryUse, ...]
    class_times: Mapping[OperatorClass, float]
    """Seconds of the headline time by operator class: what the interval is carried from."""
    bottlenecks: Mapping[Bottleneck, float]
    """Seconds of the headline time by what binds them; they sum to ``total_time``."""
    total_time: float
    """The time that bottlenecks and classes divide: a step, a run, a block [s]."""
    assumptions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    timeline: Timeline | None = None
    devices: int = 1
    """Accelerators in use."""
    busy_fraction: float = 1.0
    """Share of time in which an accelerator computes; for energy."""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further columns by name (per stage, per request), for frames and reports."""
    class_errors: Mapping[OperatorClass, float] = field(default_factory=dict)
    """Relative standard error of each class's seconds; that of a single kernel where a class is missing."""
    composition_error: float = 0.0
    """Relative standard error of the whole on top of that of its kernels: software between them, slow ranks."""
    further: Callable[[], Mapping[str, Metric]] | None = None
    """Metrics that take longer to find, for those who ask."""
    phases: Mapping[str, Mapping[Bottleneck, float]] = field(default_factory=dict)
    """Seconds by what binds them in each phase of the work, where it has several."""

    @property
    def fits(self) -> bool:
        """Whether every memory holds its peak."""
        return all(use.free >= 0 for use in self.memory)


def constants_used(calibration: Calibration) -> str:
    """Say which constants an answer rests on: a kind's defaults, or fitted ones."""
    fitted = calibration.name not in ("gpu", "tpu", "npu", "cpu")
    return f"constants {'fitted for' if fitted else 'of the class'} {calibration.name}{'' if fitted else ' (wide defaults)'}"


def pass_errors(cost: CostModel, graph: ModelGraph, spans: Mapping[Axis, Span]) -> dict[OperatorClass, float]:
    """Return the relative standard error of each class's seconds in one forward pass through a graph.

    What kernels have in common stays; what is each kernel's own averages out over the different ones.
    """
    errors = dict(cost.calibration.error)
    if cost.calibration.fits:
        total = Breakdown()
        for block, count in graph.all_blocks:
            total = total + cost.total(block.works("forward"), spans) * count
        errors |= class_errors(total, cost.calibration)
    return errors


class Strategy(Protocol):
    """What a strategy package offers; registered in :mod:`simulator.analysis.strategies`."""

    def simulate(self, setup: Setup, *, detail: bool = False) -> Outcome:
        """Run a scenario; ``detail`` asks for a timeline operator by operator."""
        ...

    def remedies(self, setup: Setup) -> Iterable[Remedy]:
        """Changes that need less memory, the mildest first."""
        ...
