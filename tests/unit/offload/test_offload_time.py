"""Times of offloaded generation against closed forms: no overlap, perfect overlap, nothing offloaded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from offload_toy import toy, toy_with

from simulator.engine import execute
from simulator.graph import Numerics, Shape, build
from simulator.offload import simulate
from simulator.offload.zigzag.account import SAMPLES, Account, sample_steps
from simulator.offload.zigzag.lower import lower
from simulator.offload.zigzag.plan import PREFILL, make_plan
from simulator.offload.zigzag.prices import ALONE


def computations(setup):
    """Seconds of every unit's computation in each pass, summed over the batches."""
    plan = make_plan(setup)
    rows = [
        [
            plan.units[i].prefill.time(0) if step == PREFILL else plan.units[i].decode.time(step)
            for i in plan.order
        ]
        for step in range(-1, plan.steps)
    ]
    return plan, np.array(rows) * plan.batches


def links(outcome):
    table = outcome.tables["links"]
    return dict(zip(table["link"], table["bytes"].tolist(), strict=True))


def test_everything_on_the_gpu_is_pure_computation():
    setup = toy_with(weights="gpu")
    plan, seconds = computations(setup)
    outcome = simulate(setup)
    assert outcome.total_time == pytest.approx(seconds.sum(), rel=1e-12)
    assert outcome.metrics["time_to_first_token"].value == pytest.approx(seconds[0].sum(), rel=1e-12)
    assert outcome.metrics["generation_throughput"].value == pytest.approx(
        plan.block * 4 / seconds.sum(), rel=1e-12
    )
    assert outcome.busy_fraction == pytest.approx(1.0)
    assert set(links(outcome).values()) == {0.0}


def test_decode_price_is_the_cost_models():
    setup = toy_with(weights="gpu")
    plan = make_plan(setup)
    graph = build(setup.model, Shape(2, 1, 64 + 2, "decode"), numerics=Numerics.of("fp16"))
    block = setup.cost.total(graph.blocks[0].works(), ALONE)
    assert plan.units[1].decode.time(2) == pytest.approx(float(block.time), rel=1e-12)


def test_without_prefetch_copies_and_computations_add_up():
    setup = toy_with(prefetch="0")
    plan, seconds = computations(setup)
    streamed = sum(plan.units[i].weights for i in plan.order) * 4
    expected = seconds.sum() + streamed / 10e9
    outcome = simulate(setup)
    assert outcome.total_time == pytest.approx(expected, rel=1e-9)
    assert outcome.bottlenecks["host link"] == pytest.approx(streamed / 10e9, rel=1e-9)


def test_without_prefetch_the_cache_and_flash_add_up_too():
    # per step and layer: cache up, one token down and on to flash; all on the GPU's critical path
    setup = toy_with(prefetch="0", weights="{dram: 0.5, nvme: 0.25}", kv="nvme")
    plan, seconds = computations(setup)
    streamed = sum(plan.units[i].weights for i in plan.order) * 4
    token = 4 * 4 * 2 * 256 * 2.0  # sequences x layers x keys and values x hidden x bytes
    read = token * (64 + 65 + 66)
    written = token * (64 + 1 + 1)
    expected = (
        seconds.sum()
        + streamed * (0.75 / 10e9 + 0.25 / 2e9)
        + read * (1 / 10e9 + 1 / 2e9)
        + written * (1 / 10e9 + 1 / 1e9)
    )
    outcome = simulate(setup)
    assert outcome.total_time == pytest.approx(expected, rel=1e-9)
    assert links(outcome)["nvme.write"] == pytest.approx(written, rel=1e-12)
    assert links(outcome)["nvme.read"] == pytest.approx(read + 0.25 * streamed, rel=1e-12)


@pytest.mark.parametrize(("bandwidth", "bound"), [("1 GB/s", "host link"), ("100 GB/s", "latency")])
def test_with_overlap_the_slower_of_copy_and_computation_sets_each_layer(bandwidth, bound):
    setup = toy({"link.toy-pcie.bandwidth": bandwidth, "link.toy-bus.bandwidth": "1 TB/s",
                "device.toy-dram.read_bandwidth": "1 TB/s", "workload.output": "40"})  # fmt: skip
    plan, seconds = computations(setup)
    rate = 1e9 if bound == "host link" else 100e9
    copies = np.array([plan.units[i].weights for i in plan.order]) / rate
    outcome = simulate(setup, detail=True)
    # steady steps: a layer's weights are copied while the one before it computes
    steady = np.maximum(np.roll(copies, -1), seconds[20]).sum()
    step = float(outcome.tables["steps"]["time"][19])
    assert step == pytest.approx(steady, rel=0.02)
    if bound == "host link":
        assert outcome.bottlenecks["host link"] / outcome.total_time > 0.8
    else:
        assert outcome.bottlenecks.get("host link", 0.0) / outcome.total_time < 0.1


def test_batches_of_a_block_share_the_weights():
    one, many = toy_with(batches="1"), toy_with(batches="8")
    first, second = simulate(one), simulate(many)
    assert links(second)["cpu>gpu"] == links(first)["cpu>gpu"]
    assert second.metrics["decode_throughput"].value > 1.5 * first.metrics["decode_throughput"].value


@pytest.mark.parametrize("prefetch", ["0", "1", "3"])
def test_bytes_over_each_link_are_weights_times_passes(prefetch):
    setup = toy_with(prefetch=prefetch, weights="{dram: 0.5, nvme: 0.25}")
    plan = make_plan(setup)
    streamed = 4 * sum(plan.units[i].weights for i in plan.order)
    moved = links(simulate(setup))
    assert moved["cpu>gpu"] == pytest.approx(0.75 * streamed, rel=1e-12)
    assert moved["nvme.read"] == moved["nvme>cpu"] == pytest.approx(0.25 * streamed, rel=1e-12)
    # what comes from flash passes the DRAM twice
    assert moved["dram.bus"] == pytest.approx(streamed, rel=1e-12)
    assert moved["gpu>cpu"] == 0.0


def test_engine_moves_what_the_table_says():
    setup = toy_with(weights="{dram: 0.5, nvme: 0.25}", kv="{dram: 0.5, nvme: 0.5}")
    outcome = simulate(setup)
    # the engine gets the links that can hold a copy up: of the DRAM's two one, of the flash's lanes none
    assert set(outcome.timeline.moved()) == {"cpu>gpu", "gpu>cpu", "nvme.read", "nvme.write", "dram.bus"}
    for name, size in outcome.timeline.moved().items():
        assert links(outcome)[name.removesuffix(" port")] == pytest.approx(size, rel=1e-9)


def test_prefetch_helps_and_deeper_prefetch_does_not_hurt():
    # with the cache on the accelerator: nothing but weights on the link, so that no order of transfers is unlucky
    times = [simulate(toy_with(prefetch=str(depth), kv="gpu")).total_time for depth in (0, 1, 2, 4)]
    assert times[0] > times[1] * 1.1
    assert all(later <= earlier * 1.002 for earlier, later in pairwise(times))


def test_cpu_attention_moves_queries_instead_of_the_cache():
    on_gpu, on_cpu = (simulate(toy_with(kv="dram", attention=where)) for where in ("gpu", "cpu"))
    streamed = 4 * sum(make_plan(toy_with()).units[i].weights for i in make_plan(toy_with()).order)
    token = 4 * 4 * 256 * 2.0  # sequences x layers x hidden x bytes
    assert links(on_gpu)["cpu>gpu"] == pytest.approx(streamed + 2 * token * (64 + 65 + 66), rel=1e-12)
    assert links(on_cpu)["cpu>gpu"] == pytest.approx(streamed + token * 3, rel=1e-12)
    # down: the prompt's keys and values, then query, key and value of each new token
    assert links(on_cpu)["gpu>cpu"] == pytest.approx(2 * token * 64 + 3 * token * 3, rel=1e-12)
    assert on_cpu.bottlenecks["host"] > 0.0
    assert on_cpu.class_times["host"] == on_cpu.bottlenecks["host"]


def test_cpu_attention_is_a_roofline_over_its_dram():
    setup = toy_with(kv="dram", attention="cpu", prefetch="0", weights="gpu")
    outcome = simulate(setup)
    cache = (
        4 * 2 * 256 * 2.0 * 4 * (65 + 66 + 67)
    )  # sequences x (keys, values) x layers x positions of each step
    assert outcome.bottlenecks["host"] == pytest.approx(cache / 20e9, rel=1e-9)
    widened = simulate(
        toy_with(kv="dram", attention="cpu", prefetch="0", weights="gpu", cpu_attention="widened")
    )
    assert widened.bottlenecks["host"] == pytest.approx(7.0 * cache / 20e9, rel=1e-9)


def test_a_slow_cpu_is_bound_by_its_arithmetic():
    slow = toy({"device.toy-cpu.compute.vector.fp32": "1 GFLOP/s", "strategy.kv": "dram", "strategy.attention": "cpu",
               "strategy.prefetch": "0", "strategy.weights": "gpu"})  # fmt: skip
    flops = (
        4 * 4 * 2 * 2 * 256 * (65 + 66 + 67)
    )  # sequences x layers x (QK, PV) x multiply-add x hidden x positions
    assert simulate(slow).bottlenecks["host"] == pytest.approx(flops / 1e9, rel=1e-9)


def test_attention_splits_over_gpu_and_cpu_by_sequences():
    setup = toy_with(kv="{dram: 0.5}", attention="cpu")
    plan = make_plan(setup)
    whole = make_plan(toy_with())
    assert plan.units[1].host_bytes[0] == pytest.approx(0.5 * 2 * 65 * 2 * 256 * 2.0)
    assert plan.units[1].attention.time(0) <= whole.units[1].attention.time(0)
    assert simulate(setup).fits


def test_cache_on_flash_is_attended_to_in_dram():
    outcome = simulate(toy_with(kv="nvme", attention="cpu"))
    token = 4 * 4 * 2 * 256 * 2.0
    assert links(outcome)["nvme.read"] == pytest.approx(token * (64 + 65 + 66), rel=1e-12)
    assert links(outcome)["nvme.write"] == pytest.approx(token * 66, rel=1e-12)


def test_flash_without_dram_is_read_straight_into_the_accelerator():
    setup = toy({"hardware": "toy-laptop", "strategy.weights": "nvme", "strategy.kv": "nvme"})
    outcome = simulate(setup)
    plan = make_plan(setup)
    streamed = 4 * sum(plan.units[i].weights for i in plan.order)
    token = 4 * 4 * 2 * 256 * 2.0
    assert links(outcome)["nvme.read"] == pytest.approx(streamed + token * (64 + 65 + 66), rel=1e-12)
    assert links(outcome)["nvme>gpu"] == links(outcome)["nvme.read"]
    assert links(outcome)["gpu>nvme"] == pytest.approx(token * 66, rel=1e-12)
    assert [use.tier for use in outcome.memory] == ["hbm", "nvme"]


def test_striped_tiers_add_up_their_bandwidth():
    setup = toy({"hardware": "toy-striped", "strategy.weights": "nvme", "strategy.prefetch": "0"})
    plan = make_plan(setup)
    channel = plan.tiers.channels["nvme", "dram"]
    assert dict(channel.links)["nvme*.read"] == 4 * 2e9
    assert plan.tiers.pools["dram"].capacity == 8e9
    # half of the bytes come from the other socket, all of them over one link to the GPU
    assert dict(plan.tiers.channels["dram", "gpu"].links)["cpu0>gpu"] == 10e9
    assert dict(plan.tiers.channels["dram", "gpu"].links)["cpu*>cpu*"] == 20e9
    assert plan.tiers.host.count == 2
    assert plan.tiers.host.channel.rate == 40e9
    outcome = simulate(setup)
    streamed = 4 * sum(plan.units[i].weights for i in plan.order)
    assert outcome.bottlenecks["storage"] == pytest.approx(streamed / 8e9, rel=1e-9)


def test_quantised_weights_move_fewer_bytes():
    plain, narrow = simulate(toy_with()), simulate(toy_with(weight_precision="int4"))
    assert links(narrow)["cpu>gpu"] == pytest.approx(links(plain)["cpu>gpu"] / 4.0, rel=1e-12)


def test_a_tied_head_streams_the_table_that_the_embedding_keeps():
    tied = toy({"model.toy-model.tie_word_embeddings": "true"})
    plain = make_plan(toy())
    plan = make_plan(tied)
    assert plan.units[-1].weights == plain.units[-1].weights
    assert plan.stored_bytes() == plain.stored_bytes() - 1000 * 256 * 2
    # two tables, positions, the last norm, and layers of 12 h^2 and two norms
    parameters = 2 * 1000 * 256 + 512 * 256 + 2 * 256 + 4 * (12 * 256**2 + 4 * 256)
    assert plain.stored_bytes() == 2 * parameters


def test_prefill_alone():
    outcome = simulate(toy_with(output="1", kv="dram"))
    assert "decode_time" not in outcome.metrics
    assert outcome.metrics["generation_time"].value == outcome.metrics["prefill_time"].value
    # nobody reads the cache again
    assert links(outcome)["gpu>cpu"] == 0.0


@pytest.mark.parametrize(
    "strategy",
    [
        {"kv": "dram", "batch": "8"},
        {"kv": "nvme", "weights": "{dram: 0.5, nvme: 0.25}"},
        {"kv": "dram", "attention": "cpu", "weights": "{dram: 0.3, nvme: 0.7}"},
        {"weights": "gpu"},
    ],
)
def test_a_sample_of_steps_equals_all_of_them(strategy):
    setup = toy_with(output="200", **strategy)
    plan = make_plan(setup)
    totals = []
    for affordable in (None, 10):
        steps, weights = sample_steps(plan.computation(), affordable)
        lowered = lower(plan, steps)
        account = Account(lowered, execute(lowered.program), weights, plan.steps)
        divided = weights @ account.rows
        totals.append(
            (float(weights @ account.times), divided, float(account.step_times.sum()), account.computing())
        )
        assert len(steps) == 200 if affordable is None else len(steps) <= 28
    full, sampled = totals
    assert sampled[0] == pytest.approx(full[0], rel=5e-3)
    assert sampled[2] == pytest.approx(full[2], rel=5e-3)
    assert sampled[3] == pytest.approx(full[3], rel=5e-3)
    assert sampled[1] == pytest.approx(full[1], abs=0.02 * full[0])


def test_a_long_output_is_sampled_and_says_so():
    setup = toy_with(output="400", kv="dram", batches="16")
    sampled, full = simulate(setup), simulate(setup, detail=True)
    assert sampled.timeline.n_tasks < full.timeline.n_tasks / 10
    assert sampled.total_time == pytest.approx(full.total_time, rel=5e-3)
    assert any("interpolated" in line for line in sampled.assumptions)
    assert not any("interpolated" in line for line in full.assumptions)
    for a, b in zip(sampled.memory, full.memory, strict=True):
        assert a.peak == pytest.approx(b.peak, rel=1e-9)
        assert a.peak_time == pytest.approx(b.peak_time, rel=5e-3, abs=5e-3 * full.total_time)
    for name, size in links(full).items():
        assert links(sampled)[name] == pytest.approx(size, rel=1e-9)


def test_sample_weights_cover_every_pass():
    for count in (29, 50, 1000):
        steps, weights = sample_steps(np.ones(count), 1)
        assert len(steps) == 2 * SAMPLES + 2
        assert steps[0] == PREFILL
        assert steps[-1] == count - 1
        assert weights.sum() == pytest.approx(count + 1)
        # linear in the step number: the mean of the numbers comes out
        assert float(weights[1:] @ np.array(steps[1:])) == pytest.approx(count * (count - 1) / 2)
    assert sample_steps(np.ones(0), 1)[0] == (PREFILL,)


def test_seconds_add_up_and_are_deterministic():
    setup = toy_with(kv="{dram: 0.5, nvme: 0.5}", weights="{dram: 0.5, nvme: 0.25}")
    outcome, again = simulate(setup), simulate(setup)
    assert sum(outcome.bottlenecks.values()) == pytest.approx(outcome.total_time, rel=1e-9)
    assert sum(outcome.class_times.values()) == pytest.approx(outcome.total_time, rel=1e-9)
    assert outcome.metrics == again.metrics
    assert outcome.memory == again.memory
    assert np.array_equal(outcome.timeline.end, again.timeline.end)


def test_error_follows_from_the_classes():
    setup = toy({"link.toy-pcie.bandwidth": "10 MB/s"})
    error = simulate(setup).metrics["generation_time"].error
    assert error == pytest.approx(setup.cost.calibration.error["transfer"], rel=0.05)
