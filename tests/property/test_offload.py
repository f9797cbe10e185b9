"""Laws of offloaded generation on random placements and workloads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "offload"))
from offload_toy import toy

from simulator.offload import simulate
from simulator.offload.emit import binding_links
from simulator.offload.tiers import Channel
from simulator.offload.zigzag.plan import make_plan

SHARES = st.sampled_from([(0, 0), (1, 0), (0, 1), (0.5, 0), (0.5, 0.25), (0, 0.5), (0.25, 0.75)])
SCENARIOS = st.fixed_dictionaries(
    {
        "weights": SHARES,
        "kv": SHARES,
        "attention": st.sampled_from(["gpu", "cpu"]),
        "prefetch": st.integers(0, 3),
        "batch": st.integers(1, 4),
        "batches": st.integers(1, 3),
        "prompt": st.integers(1, 128),
        "output": st.integers(1, 6),
    }
)
GENTLE = settings(max_examples=30, derandomize=True, deadline=None)


def keys(scenario):
    """Overrides of a drawn scenario."""
    assume(scenario["attention"] == "gpu" or sum(scenario["kv"]) > 0)
    named = {key: "{{dram: {}, nvme: {}}}".format(*scenario[key]) for key in ("weights", "kv")}
    named |= {key: str(scenario[key]) for key in ("attention", "prefetch")}
    workload = {f"workload.{key}": str(scenario[key]) for key in ("batch", "batches", "prompt", "output")}
    return {f"strategy.{key}": value for key, value in named.items()} | workload


def links(outcome):
    table = outcome.tables["links"]
    return dict(zip(table["link"], table["bytes"].tolist(), strict=True))


@GENTLE
@given(SCENARIOS)
def test_bounds_and_conservation(scenario):
    setup = toy(keys(scenario))
    plan, outcome = make_plan(setup), simulate(setup)
    passes, streamed = plan.output, sum(plan.units[i].weights for i in plan.order)
    moved = links(outcome)
    # what crosses the host link: weights in every pass, the cache or the outputs of CPU attention in every step
    cached = sum(
        plan.units[i].cache_bytes(plan.prompt + step) for i in plan.order for step in range(plan.steps)
    )
    fetched = plan.block * plan.cache.away * cached
    if plan.cpu_attention:
        fetched = (
            plan.block * plan.cache.away * plan.steps * sum(plan.units[i].output_bytes for i in plan.order)
        )
    assert moved["cpu>gpu"] == pytest.approx(plan.weights.away * streamed * passes + fetched, rel=1e-9)
    flash = plan.weights.nvme * streamed * passes + plan.block * plan.cache.nvme * cached
    assert moved["nvme.read"] == pytest.approx(flash, rel=1e-9)
    # no faster than its slowest resource, no slower than one thing after another
    table = outcome.tables["links"]
    assert outcome.total_time >= float((table["bytes"] / table["bandwidth"]).max()) * (1 - 1e-9)
    assert outcome.busy_fraction <= 1 + 1e-9
    assert sum(outcome.bottlenecks.values()) == pytest.approx(outcome.total_time, rel=1e-9)
    assert sum(outcome.class_times.values()) == pytest.approx(outcome.total_time, rel=1e-9)
    for use in outcome.memory:
        assert sum(use.by_category.values()) == pytest.approx(use.peak, rel=1e-9)
        assert 0.0 <= use.peak_time <= outcome.total_time


@GENTLE
@given(SCENARIOS)
def test_overlap_never_slows(scenario):
    one = simulate(toy(keys(scenario | {"prefetch": 0})))
    other = simulate(toy(keys(scenario | {"prefetch": 1})))
    assert other.total_time <= one.total_time * (1 + 1e-9)


@GENTLE
@given(
    SCENARIOS, st.sampled_from(["link.toy-pcie.bandwidth", "device.toy-ssd.read_bandwidth", "device.toy-cpu"])
)
def test_a_faster_part_never_slows(scenario, part):
    # copies of two queues that meet on a link share it; with one batch they hardly do
    scenario = scenario | {"batches": 1}
    figures = {"device.toy-cpu": {"device.toy-cpu.compute.vector.fp32": "2 TFLOP/s"}}
    faster = figures.get(part, {part: "40 GB/s"})
    slow, fast = simulate(toy(keys(scenario))), simulate(toy(keys(scenario) | faster))
    assert fast.total_time <= slow.total_time * (1 + 1e-2)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=4),
    st.lists(st.floats(1.0, 100.0), min_size=6, max_size=6),
)
def test_links_that_never_bind_change_no_rate(paths, bandwidths):
    from simulator.engine import Program, execute

    channels = [
        Channel(f"channel {n}", tuple((f"link {i}", bandwidths[i]) for i in path), 0.0, 1e9)
        for n, path in enumerate(paths)
    ]
    binding = binding_links(channels)

    def run(keep):
        program = Program()
        handles = {}
        for channel in channels:
            for link in channel.links:
                if keep(link) and link not in handles:
                    handles[link] = program.link(*link)
        for number, channel in enumerate(channels):
            path = [handles[link] for link in channel.links if keep(link)]
            for copy in range(2):
                program.transfer(path, 10.0 * (number + 1) + copy)
        return execute(program).end

    assert run(lambda link: link in binding) == pytest.approx(run(lambda link: True), rel=1e-9)
    assert all(any(link in binding for link in channel.links) for channel in channels)
