"""Columns, frames and the critical path."""

import subprocess
import sys

import numpy as np
import pytest

from simulator.engine import Program, execute


@pytest.fixture
def timeline():
    """Copy (2 s), compute on a and b, gather (1 s) over two links, barrier."""
    program = Program("step")
    a, b = program.stream("a"), program.stream("b")
    up, down = program.link("up", 10.0), program.link("down", 20.0)
    copied = program.transfer([up], 20.0, tag="copy", name="weights")
    program.compute(a, 1.0, tag="embed")
    left = program.compute(a, 4.0, after=[copied], tag="matmul")
    right = program.compute(b, 3.0, after=[copied], tag="matmul")
    gathered = program.transfer([up, down], 10.0, after=[left, right], tag="gather")
    program.barrier(after=[gathered], tag="end")
    return execute(program)


def test_columns(timeline):
    assert timeline.n_tasks == 6
    assert timeline.kind.tolist() == [1, 0, 0, 0, 1, 2]
    assert timeline.resource.tolist() == [2, 0, 0, 1, 2, -1]
    assert timeline.bytes.tolist() == [20, 0, 0, 0, 10, 0]
    assert timeline.start.tolist() == [0, 0, 2, 2, 6, 7]
    assert timeline.end.tolist() == [2, 1, 6, 5, 7, 7]
    assert not timeline.cancelled.any()


def test_busy_and_moved(timeline):
    assert timeline.moved() == {"up": 30.0, "down": 10.0}
    assert timeline.busy() == {"a": 5.0, "b": 3.0, "up": 3.0, "down": 0.5}


def test_critical_path(timeline):
    path = timeline.critical_path()
    assert path.tasks.tolist() == [0, 2, 4]
    assert path.durations.tolist() == [2.0, 4.0, 1.0]
    assert path.waits.tolist() == [0.0, 0.0, 0.0]
    assert path.released_by == ("start", "dependency", "dependency")
    assert path.total == timeline.makespan == 7.0


def test_critical_path_along_a_stream():
    program = Program()
    gpu = program.stream("gpu")
    for _ in range(3):
        program.compute(gpu, 1.0)
    assert execute(program).critical_path().released_by == ("start", "stream", "stream")


def test_frame(timeline):
    frame = timeline.to_frame()
    assert list(frame.columns) == ["name", "kind", "resource", "tag", "start", "end", "bytes", "cancelled"]
    assert frame["kind"].tolist() == ["transfer", "compute", "compute", "compute", "transfer", "barrier"]
    assert frame["resource"].tolist() == ["up", "a", "a", "b", "up", ""]
    assert frame["tag"].tolist() == ["copy", "embed", "matmul", "matmul", "gather", "end"]
    assert frame.loc[0, "name"] == "weights"
    assert np.array_equal(frame["end"], timeline.end)


def test_the_engine_loads_nothing_heavy():
    heavy = {"pandas", "scipy", "networkx", "matplotlib"}
    code = f"import sys, simulator.engine; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
