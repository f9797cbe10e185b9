"""Measured traces and benchmark output: read, grouped, and compared with what a scenario predicts."""

from simulator.traces.compare import Comparison, Figure, Row, Unmatched, compare
from simulator.traces.overlap import Occupation, occupation
from simulator.traces.reading import FORMATS, Format, detect, read_trace
from simulator.traces.rules import UNMATCHED, group_classes, kernel_group
from simulator.traces.trace import Benchmark, CollectiveTime, Kernel, PhaseRate, Trace

__all__ = [
    "FORMATS", "UNMATCHED", "Benchmark", "CollectiveTime", "Comparison", "Figure", "Format", "Kernel", "Occupation",
    "PhaseRate", "Row", "Trace", "Unmatched", "compare", "detect", "group_classes", "kernel_group", "occupation",
    "read_trace",
]  # fmt: skip
