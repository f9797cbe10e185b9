"""Measured against predicted: kernels by class, group and operator, collectives by size, benchmark figures by metric."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.analysis import Result, answer
from simulator.analysis.operators import PredictedOperator, predicted_operators
from simulator.cost import interval
from simulator.graph import Attention, Collective, Gather, Matmul
from simulator.specs import MemroofError, ServingScenario
from simulator.strategy import Setup
from simulator.traces.overlap import Occupation, occupation
from simulator.traces.phases import phase_rate
from simulator.traces.rules import UNMATCHED, group_classes, kernel_group, operator_group
from simulator.traces.trace import Benchmark, CollectiveTime, Kernel, PhaseRate, Trace

WEIGHT_GRADIENTS = "weight-gradient-gemm"
"""Group of kernels that only compute weight gradients, of layers and experts alike."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison: seconds a step of what was measured and of what is predicted."""

    name: str
    operator_class: str
    calls: float
    """Measured kernels a step."""
    measured: float
    predicted: float
    measured_share: float
    predicted_share: float

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None where one of them is missing."""
        return self.predicted / self.measured if self.measured > 0.0 and self.predicted > 0.0 else None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that was measured, and the same figure predicted with its 80 % interval [SI]."""

    label: str
    key: str
    dimension: str
    measured: float
    predicted: float
    low: float
    high: float

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None where one of them is 0 or endless."""
        known = 0.0 < self.measured < float("inf") and 0.0 < self.predicted < float("inf")
        return self.predicted / self.measured if known else None


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Kernels of one name that no rule knows."""

    name: str
    calls: int
    time: float


@dataclass(frozen=True)
class Comparison:
    """Everything that ``memroof compare`` says."""

    file: str
    format: str
    scenario: str
    steps: int = 1
    classes: tuple[Row, ...] = ()
    groups: tuple[Row, ...] = ()
    operators: tuple[Row, ...] = ()
    """Operators that kernels could be told to belong to, by name or by shape."""
    unmatched: tuple[Unmatched, ...] = ()
    occupation: Occupation | None = None
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data in SI units; seconds are those of one step."""
        occupied = self.occupation
        return {
            "file": self.file, "format": self.format, "scenario": self.scenario, "steps": self.steps,
            "classes": [_row(row) for row in self.classes], "groups": [_row(row) for row in self.groups],
            "operators": [_row(row) for row in self.operators],
            "unmatched": [{"name": u.name, "calls": u.calls, "time": u.time} for u in self.unmatched],
            "occupation": None if occupied is None else {
                "span": occupied.span, "busy": occupied.busy, "idle": occupied.idle, "compute": occupied.compute,
                "communication": occupied.communication, "hidden": occupied.hidden, "exposed": occupied.exposed,
            },
            "figures": [
                {
                    "label": f.label, "metric": f.key, "dimension": f.dimension, "measured": f.measured,
                    "predicted": f.predicted, "low": f.low, "high": f.high, "ratio": f.ratio,
                }
                for f in self.figures
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def compare(trace: Trace, setup: Setup, *, steps: int | None = None, stage: int = 0) -> Comparison:
    """Compare a measured file with a scenario.

    Parameters
    ----------
    trace : Trace
        Of one GPU, or figures of a benchmark.
    setup : Setup
        The scenario; training and serving for kernels, serving for benchmarks, any for collectives.
    steps : int, optional
        Steps (training) or iterations (serving) that a trace of kernels holds; what the trace marks, or 1, if absent.
    stage : int
        Pipeline stage that the traced GPU belongs to.

    Raises
    ------
    MemroofError
        If the scenario is of a kind that the file cannot be compared with.
    """
    if trace.kernels:
        return _kernels(trace, setup, steps or trace.steps or 1, stage)
    if trace.collectives:
        figures, notes = _collectives(trace.collectives, setup), trace.notes
    elif trace.benchmarks:
        figures, notes = _benchmarks(trace.benchmarks, setup)
    else:
        figures, notes = _rates(trace.rates, setup), trace.notes
    return Comparison(trace.file, trace.format, setup.scenario.name, figures=figures, notes=notes)


# --- kernels --------------------------------------------------------------------------------------------------------


def _kernels(trace: Trace, setup: Setup, steps: int, stage: int) -> Comparison:
    predicted = predicted_operators(setup, stage=stage)
    grouped: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in trace.kernels:
        grouped[_group_of(kernel, predicted)].append(kernel)
    unmatched = grouped.pop(UNMATCHED, [])
    split = WEIGHT_GRADIENTS in grouped
    by_group: dict[str, float] = defaultdict(float)
    for operator in predicted:
        by_group[predicted_group(operator, split_weight_gradients=split)] += operator.total
    all_measured = sum(kernel.duration for kernel in trace.kernels) / steps
    all_predicted = sum(by_group.values())
    classes = group_classes()

    def row(name: str, operator_class: str, kernels: Sequence[Kernel], seconds: float) -> Row:
        measured = sum(kernel.duration for kernel in kernels) / steps
        calls = sum(kernel.count for kernel in kernels) / steps
        return Row(
            name, operator_class, calls, measured, seconds,
            measured / all_measured if all_measured else 0.0, seconds / all_predicted if all_predicted else 0.0,
        )  # fmt: skip

    names = {*grouped, *by_group}
    groups = [row(name, classes[name], grouped.get(name, []), by_group[name]) for name in names]
    of_class = {
        found: [name for name in names if classes[name] == found] for found in {classes[n] for n in names}
    }
    by_class = [
        row(found, found, [k for n in members for k in grouped.get(n, [])], sum(by_group[n] for n in members))
        for found, members in of_class.items()
    ]
    if unmatched:
        by_class.append(row(UNMATCHED, "", unmatched, 0.0))
    matched = _by_operator(trace.kernels, predicted)
    operators = [row(name, found, kernels, seconds) for name, found, kernels, seconds in matched]
    return Comparison(
        trace.file, trace.format, setup.scenario.name, steps, _sorted(by_class), _sorted(groups), _sorted(operators),
        _named(unmatched), occupation(trace.kernels), notes=trace.notes,
    )  # fmt: skip


def predicted_group(operator: PredictedOperator, *, split_weight_gradients: bool = False) -> str:
    """Return the group of kernels that an operator of the graph runs as.

    ``split_weight_gradients`` where the trace tells the products of weight gradients from others.
    """
    work = operator.work
    if isinstance(work, Matmul):
        if split_weight_gradients and operator.part == "weight-gradient":
            return WEIGHT_GRADIENTS
        return "grouped-gemm" if work.grouped else "gemm"
    if isinstance(work, Attention):
        if work.backward:
            return "attention-backward"
        if work.decode:
            return "latent-decode" if work.latent else "decode-attention"
        return "attention"
    if isinstance(work, Collective):
        return work.kind
    return "embedding" if isinstance(work, Gather) else operator_group(operator.name)


def _group_of(kernel: Kernel, predicted: Iterable[PredictedOperator]) -> str:
    """By the kernel's name; a table made by hand may also name memroof's operators."""
    for operator in predicted:
        if kernel.operator == operator.name:
            return predicted_group(operator)
    found = kernel_group(kernel.name, kernel.category)
    if found == UNMATCHED and kernel.operator:
        found = kernel_group(kernel.operator)
    return "gemm" if found == UNMATCHED and kernel.shape else found


def _by_operator(
    kernels: Iterable[Kernel], predicted: Sequence[PredictedOperator]
) -> list[tuple[str, str, list[Kernel], float]]:
    """Join kernels with operators by name, else by the shape of a product."""
    names = {operator.name for operator in predicted}
    products = [(operator, operator.shape) for operator in predicted if operator.shape is not None]
    found: dict[str, list[Kernel]] = defaultdict(list)
    by_name: set[str] = set()
    for kernel in kernels:
        if kernel.operator in names:
            found[kernel.operator].append(kernel)
            by_name.add(kernel.operator)
        elif len(kernel.shape) == 3:
            likely = {operator.name for operator, shape in products if shape and _alike(kernel.shape, shape)}
            if len(likely) == 1:  # two operators of one shape cannot be told apart
                found[likely.pop()].append(kernel)
    seconds: dict[str, float] = defaultdict(float)
    classes: dict[str, str] = {}
    for operator in predicted:
        if operator.name in found and (operator.name in by_name or operator.shape is not None):
            seconds[operator.name] += operator.total
            classes.setdefault(operator.name, operator.operator_class)
    return [(name, classes[name], found[name], seconds[name]) for name in found]


def _alike(measured: tuple[int, ...], predicted: tuple[float, float, float]) -> bool:
    """Whether two products are of one linear layer: forward and both gradients have the same three sizes in other places.

    In serving the predicted count of rows is a mean, so that the weights decide.
    """
    rows, *weights = predicted
    if rows.is_integer():
        return sorted(measured) == sorted(predicted)
    left = list(measured)
    for size in weights:
        if size not in left:
            return False
        left.remove(int(size))
    return True


def _sorted(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-max(row.measured, row.predicted), row.name)))


def _named(kernels: Iterable[Kernel]) -> tuple[Unmatched, ...]:
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for kernel in kernels:
        times[kernel.name] += kernel.duration
        calls[kernel.name] += kernel.count
    ordered = sorted(times.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Unmatched(name, calls[name], time) for name, time in ordered)


# --- figures --------------------------------------------------------------------------------------------------------


def _collectives(rows: Iterable[CollectiveTime], setup: Setup) -> tuple[Figure, ...]:
    figures = []
    for row in rows:
        kind: Any = row.kind
        cost = setup.cost.price(Collective(kind, "tensor", row.size), setup.hardware.span(row.ranks))
        time = float(cost.time)
        low, high = interval(time, cost.error)
        label = f"{row.kind} of {row.size:,.0f} B over {row.ranks}"
        figures.append(Figure(label, row.kind, "seconds", row.time, time, float(low), float(high)))
    return tuple(figures)


def _benchmarks(rows: Iterable[Benchmark], setup: Setup) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    if setup.scenario.kind != "serving":
        raise MemroofError(
            f"a serving benchmark is compared with a serving scenario; {setup.scenario.name!r} is of kind {setup.scenario.kind!r}"
        )
    result = answer(setup)
    figures: list[Figure] = []
    notes: list[str] = []
    for row in rows:
        figures += [
            _figure(row.label, key, measured, result)
            for key, measured in row.metrics.items()
            if key in result.values
        ]
        notes += _differences(row, result)
    if not figures:
        raise MemroofError("no figure of the benchmark is predicted by the scenario")
    return tuple(figures), tuple(dict.fromkeys(notes))


def _figure(label: str, key: str, measured: float, result: Result) -> Figure:
    value = result.values[key]
    return Figure(
        f"{label}: {value.label}", key, value.dimension, measured, value.value, value.low, value.high
    )


def _differences(row: Benchmark, result: Result) -> Iterable[str]:
    """Where the benchmark was run otherwise than the scenario says: arrivals, mean lengths."""
    settings: Mapping[str, str] = row.settings
    scenario = result.setup.scenario
    if "request_rate" in settings and isinstance(scenario, ServingScenario):
        found = _arrivals(settings["request_rate"])
        assumed = _arrivals(scenario.workload.rate if scenario.workload.arrival == "poisson" else "inf")
        if found != assumed:
            yield f"{row.label}: {found}; the scenario has {assumed}"
    requests = result.outcome.tables.get("requests", {})
    completed = _plain(settings.get("completed") or settings.get("num_requests"))
    for name, key in (("prompt", "total_input_tokens"), ("output", "total_output_tokens")):
        if completed and key in settings and name in requests:
            measured, given = _plain(settings[key]) / completed, float(requests[name].mean())
            if abs(measured / given - 1.0) > 0.1:
                yield f"{row.label}: {name}s of {measured:,.0f} tokens on average; the scenario has {given:,.0f}"


def _arrivals(rate: float | str | None) -> str:
    each = _plain(rate)
    return "requests come without a rate" if each in (0.0, float("inf")) else f"{each:g} requests/s"


def _plain(text: float | str | None) -> float:
    """A setting as a number; 0 where it is none, since it is only told to the user."""
    try:
        found = float(text or 0.0)
    except ValueError:
        return 0.0
    return found if found == found else 0.0


def _rates(rows: Iterable[PhaseRate], setup: Setup) -> tuple[Figure, ...]:
    figures = []
    for row in rows:
        rate, error = phase_rate(setup, row.prompt, row.output, row.depth)
        low, high = interval(rate, error)
        name = "+".join([f"pp{row.prompt}"] * bool(row.prompt) + [f"tg{row.output}"] * bool(row.output))
        label = f"{row.label} {name}{f' @ d{row.depth}' if row.depth else ''}".strip()
        figures.append(Figure(label, name, "1/s", row.rate, rate, float(low), float(high)))
    return tuple(figures)


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name, "class": row.operator_class, "calls": row.calls, "measured": row.measured,
        "predicted": row.predicted, "ratio": row.ratio, "measured_share": row.measured_share,
        "predicted_share": row.predicted_share,
    }  # fmt: skip
