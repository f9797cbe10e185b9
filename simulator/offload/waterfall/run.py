"""Map every layer of a workload, run the waterfall, and say what it took; the same for what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.engine import Timeline, execute
from simulator.offload.waterfall import attention as mapped
from simulator.offload.waterfall.attention import Attention, attention
from simulator.offload.waterfall.linear import linear
from simulator.offload.waterfall.program import Waterfall
from simulator.offload.waterfall.units import Layer, Units, changed, layers_of, units_of
from simulator.specs import OperatorClass
from simulator.specs.waterfall_scenario import Mapping as Dataflow
from simulator.specs.waterfall_scenario import WaterfallScenario
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Remedy, Setup

Array = npt.NDArray[np.float64]
SOURCES = (
    "Nayak et al. 2024, arXiv:2406.10491 (FuseMax): one-pass cascade, waterfall of its two units, tile of queries",
    "Kao et al. 2023, arXiv:2107.06419 (FLAT): fusion of whole rows of scores in the buffer",
)


@dataclass(frozen=True)
class _Run:
    """Every layer under one mapping; arrays have an entry a layer."""

    attention: tuple[Attention, ...]
    attention_time: Array
    linear_time: Array
    linear_traffic: Array
    timeline: Timeline
    waterfall: Waterfall

    @property
    def time(self) -> Array:
        """Seconds of each layer."""
        return self.attention_time + self.linear_time

    @property
    def traffic(self) -> Array:
        """Bytes of each layer's attention."""
        return np.array([each.traffic for each in self.attention])


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Map and run every layer of the workload at every length.

    Parameters
    ----------
    setup : Setup
        A waterfall scenario and its accelerator.
    detail : bool
        Without effect: the timeline has every operator anyway.

    Returns
    -------
    Outcome
        Sums over layers and lengths; speedups over a baseline are means over them.

    Raises
    ------
    MemroofError
        If the device has no array or no buffer, or the mapping does not suit it.
    """
    scenario = setup.scenario
    assert isinstance(scenario, WaterfallScenario)
    units, layers, strategy = units_of(setup), layers_of(setup), scenario.strategy
    run = _run(layers, units, strategy)
    baseline = strategy.baseline
    other = None if baseline is None else _run(layers, changed(units, baseline), baseline)
    total = float(run.time.sum())
    bound, classes = _divided(run, total)
    return Outcome(
        headline="time", metrics=_metrics(run, other), memory=(_buffer(layers, units, run),), class_times=classes,
        bottlenecks=bound, total_time=total, assumptions=_assumptions(run, strategy), sources=SOURCES,
        timeline=run.timeline, busy_fraction=sum(each.busy("array") for each in run.attention) / total,
        tables={"layers": _table(layers, run, other)}, class_errors=dict.fromkeys(classes, 0.0),
    )  # fmt: skip


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield smaller tiles of queries, down to as many as the array is wide."""
    scenario = setup.scenario
    assert isinstance(scenario, WaterfallScenario)
    units, rows = units_of(setup), scenario.strategy.tile_rows
    while rows is not None and rows // 2 >= units.columns:
        rows //= 2
        yield Remedy(f"tiles of {rows} queries", {"strategy.tile_rows": str(rows)})


def _run(layers: Sequence[Layer], units: Units, dataflow: Dataflow) -> _Run:
    waterfall = Waterfall.on(units.bandwidth)
    found, ends, moved = [], [], []
    for layer in layers:
        label = f"{layer.name} {layer.sequence}"
        each, products = attention(layer, units, dataflow), linear(layer, units)
        middle = waterfall.add(each.phases, label, attention=True)
        ends.append((middle, waterfall.add(products, label, attention=False)))
        found.append(each)
        moved.append(sum(phase.traffic for phase in products))
    timeline = execute(waterfall.program)
    times = timeline.end[np.array(ends)]
    spent = np.diff(times.ravel(), prepend=0.0).reshape(times.shape)
    return _Run(tuple(found), spent[:, 0], spent[:, 1], np.array(moved), timeline, waterfall)


def _divided(run: _Run, total: float) -> tuple[dict[Bottleneck, float], dict[OperatorClass, float]]:
    """Return the critical path's seconds by what binds them and by class of operator; both sum to the total."""
    bound: dict[Bottleneck, float] = {}
    classes: dict[OperatorClass, float] = {}
    timeline, program = run.timeline, run.waterfall.program
    for task in timeline.critical_path().tasks.tolist():
        seconds = float(timeline.end[task] - timeline.start[task])
        if not seconds:
            continue
        kind: Bottleneck = "memory" if program.tags[program.tag[task]] == "memory" else "compute"
        bound[kind] = bound.get(kind, 0.0) + seconds
        name: OperatorClass = "attention" if run.waterfall.attends[task] else "matmul"
        classes[name] = classes.get(name, 0.0) + seconds
    return bound, classes


def _metrics(run: _Run, other: _Run | None) -> dict[str, Metric]:
    attention_time = float(run.attention_time.sum())
    busy = {
        unit: sum(each.busy(unit) for each in run.attention) / attention_time for unit in ("array", "vector")
    }
    metrics = {
        "time": Metric("time of all layers", float(run.time.sum()), "seconds", better="lower"),
        "attention_time": Metric("of which attention", attention_time, "seconds", better="lower"),
        "attention_traffic": Metric("memory traffic of attention", float(run.traffic.sum()), "bytes", better="lower"),
        "array_utilisation": Metric("of attention's time, the array works", busy["array"], "fraction", better="higher"),
        "vector_utilisation": Metric("of attention's time, the vector unit works", busy["vector"], "fraction", better="higher"),
    }  # fmt: skip
    if run.linear_traffic.any():
        metrics |= {
            "linear_time": Metric("of which linear layers", float(run.linear_time.sum()), "seconds", better="lower"),
            "linear_traffic": Metric("memory traffic of linear layers", float(run.linear_traffic.sum()), "bytes", better="lower"),
        }  # fmt: skip
    if other is not None:
        metrics["attention_speedup"] = Metric(
            "attention's speedup over the baseline, mean", float(np.mean(other.attention_time / run.attention_time)),
            "ratio", better="higher",
        )  # fmt: skip
        metrics["speedup"] = Metric(
            "speedup over the baseline, mean", float(np.mean(other.time / run.time)), "ratio", better="higher"
        )
        metrics["traffic_ratio"] = Metric(
            "attention's traffic over the baseline's, mean", float(np.mean(run.traffic / other.traffic)), "ratio",
            better="lower",
        )  # fmt: skip
    return metrics


def _buffer(layers: Sequence[Layer], units: Units, run: _Run) -> MemoryUse:
    """Return the buffer at its fullest."""
    needs = [sum(each.held.values()) for each in run.attention]
    index = int(np.argmax(needs))
    held, layer = run.attention[index].held, layers[index]
    largest = tuple(Holding(name, size) for name, size in sorted(held.items(), key=lambda item: -item[1]))
    label = f"{layer.name} at {layer.sequence} tokens"
    return MemoryUse("buffer", "buffer", units.buffer, needs[index], 0.0, held, largest, label)


def _table(layers: Sequence[Layer], run: _Run, other: _Run | None) -> Mapping[str, Any]:
    table: dict[str, Any] = {
        "layer": [layer.name for layer in layers],
        "sequence": np.array([layer.sequence for layer in layers]),
        "attention_time": run.attention_time, "attention_traffic": run.traffic, "linear_time": run.linear_time,
        "linear_traffic": run.linear_traffic, "tile_rows": np.array([each.tile_rows for each in run.attention]),
    }  # fmt: skip
    if other is not None:
        table["baseline_attention_time"] = other.attention_time
        table["baseline_attention_traffic"] = other.traffic
        table["speedup"] = other.time / run.time
    return table


def _assumptions(run: _Run, dataflow: Dataflow) -> tuple[str, ...]:
    found = [
        "units and memory are busy without gaps: no time to fill or drain the array, no kernel launches",
        "all pairs of queries and keys are computed (no causal mask), each head reads keys and values of its own",
        "layers of all lengths run one after the other; operands lie in memory, whatever their size",
    ]
    if dataflow.dataflow == "row-fused":
        tiles = mapped.STAGING_TILES if dataflow.staging_tiles is None else dataflow.staging_tiles
        found.append(f"operands stream through {tiles} tiles as large as the array")
    return tuple(found)
