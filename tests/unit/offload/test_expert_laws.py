"""Laws of expert caches that hold for any strategy, routing and machine."""

from __future__ import annotations

import numpy as np
import pytest
from expert_cases import EXPERT, experts
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.offload import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@st.composite
def strategies(draw):
    """Strategies that fetch what is missing."""
    keys = {"cached": draw(st.sampled_from([0.0, 0.125, 0.3, 0.5, 0.9])), "chunks": draw(st.integers(1, 4))}
    keys["routing"] = {
        "skew": draw(st.sampled_from([0.0, 1.0])),
        "reuse": draw(st.sampled_from([0.0, 0.4])),
        "seed": draw(st.integers(0, 9)),
    }
    keys["policy"] = draw(st.sampled_from(["lru", "lfu", "static"]))
    if draw(st.booleans()):
        keys["loads"] = "in-turn"
        return keys
    keys["order"] = draw(st.sampled_from(["ready", "index"]))
    if keys["policy"] != "static" and draw(st.booleans()):
        accuracy, lead = draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.integers(1, 5))
        keys["prefetch"] = {"accuracy": accuracy, "lead": lead, "latency": "30 us"}
    return keys


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keys=strategies(), batch=st.sampled_from([1, 3]))
def test_copies_are_whole_chunks_and_no_run_beats_them(folder, keys, batch):
    found = simulate(experts(folder, workload={"batch": batch, "output": 5}, **keys))
    timeline = found.timeline
    table = found.tables["links"]
    moved = dict(zip(table["link"], table["bytes"].tolist(), strict=True)).get("cpu>gpu", 0.0)
    chunks = moved / (EXPERT / keys["chunks"])
    assert chunks == pytest.approx(round(chunks), abs=1e-6)
    assert timeline.moved()["cpu>gpu"] == pytest.approx(moved)
    assert timeline.makespan >= moved / 10e9 * (1.0 - 1e-9)
    # copies follow one another, and so does what the accelerator computes
    for stream in ("fetch", "gpu"):
        handle = next(i for i, r in enumerate(timeline.program.resources) if r.name == stream)
        tasks = timeline.stream == handle
        start, end = np.sort(timeline.start[tasks]), np.sort(timeline.end[tasks])
        assert np.all(start[1:] >= end[:-1] - 1e-12)
    if "prefetch" not in keys:
        used = (
            4 * 2 * batch * 4 * 2
        )  # at most, in decode: requests, steps, sequences, layers, experts of a token
        assert round(chunks / keys["chunks"]) <= used + 2 * 4 * 8
    assert found.metrics["decode_slowdown"].value >= 1.0 - 1e-9
    assert sum(found.bottlenecks.values()) == pytest.approx(found.total_time)
