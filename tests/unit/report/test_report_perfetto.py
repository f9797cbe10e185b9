"""Chrome traces: the format's rules, and nothing of the timeline is lost."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import Any

import pytest
from report_cases import copies

from simulator.engine import Program, execute
from simulator.report.perfetto import device_of, write_trace

REQUIRED = {
    "X": {"name": str, "cat": str, "ts": float, "dur": float, "pid": int, "tid": int},
    "C": {"name": str, "ts": float, "pid": int, "args": dict},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
}


def trace_of(timeline: Any) -> dict[str, Any]:
    buffer = io.StringIO()
    count = write_trace(timeline, buffer, "a test")
    trace = json.loads(buffer.getvalue())
    assert len(trace["traceEvents"]) == count
    return trace


def test_events_obey_the_format() -> None:
    trace = trace_of(copies())
    assert trace["displayTimeUnit"] == "ms"
    assert trace["otherData"]["name"] == "a test"
    for event in trace["traceEvents"]:
        for key, kind in REQUIRED[event["ph"]].items():
            assert isinstance(event[key], kind), event
    named = {
        (e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == "thread_name"
    }
    assert {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "X"} == named


def test_tasks_carry_their_times_in_microseconds_and_their_bytes() -> None:
    events = [e for e in trace_of(copies())["traceEvents"] if e["ph"] == "X"]
    times = {e["name"]: (e["ts"], e["dur"]) for e in events}
    # two transfers share 1 GB/s: the second (0.5 GB) ends at 1 s, the first (1 GB) at 1.5 s, then the layer runs
    assert times == {"first": (0.0, 1.5e6), "second": (0.0, 1.0e6), "layer": (1.5e6, 0.25e6)}
    assert next(e for e in events if e["name"] == "first")["args"] == {"bytes": 1e9, "path": "pcie"}


def test_transfers_that_overlap_get_lanes_of_their_own() -> None:
    events = [e for e in trace_of(copies())["traceEvents"] if e["ph"] == "X"]
    lanes: dict[tuple[int, int], float] = {}
    for event in sorted(events, key=lambda e: e["ts"]):
        place = (event["pid"], event["tid"])
        assert event["ts"] >= lanes.get(place, 0.0)
        lanes[place] = event["ts"] + event["dur"]
    assert len(lanes) == 3


def test_counters_follow_the_ledger() -> None:
    counters = [e for e in trace_of(copies())["traceEvents"] if e["ph"] == "C"]
    assert [(e["ts"], e["args"]) for e in counters] == [
        (0.0, {"cache": 1e9, "weights": 2e9}),
        (1.75e6, {"cache": 1e9, "weights": 0.0}),
    ]


def test_neighbours_never_overlap_after_rounding() -> None:
    program = Program()
    stream = program.stream("gpu0")
    for _ in range(50):
        program.compute(stream, 1e-9 / 3.0)
    events = [e for e in trace_of(execute(program))["traceEvents"] if e["ph"] == "X"]
    for before, after in pairwise(events):
        assert round(1e3 * (before["ts"] + before["dur"])) <= round(1e3 * after["ts"])


def test_an_empty_run_is_a_valid_trace() -> None:
    assert trace_of(execute(Program()))["traceEvents"] == []


@pytest.mark.parametrize(
    ("resource", "device"),
    [("gpu0.compute", "gpu0"), ("gpu0.hbm", "gpu0"), ("stage 3 to 4", "stage 3"), ("stage 3 HBM", "stage 3"),
     ("replica", "replica"), ("host link", "host"), ("", "")],
)  # fmt: skip
def test_resources_are_grouped_by_device(resource: str, device: str) -> None:
    assert device_of(resource) == device
