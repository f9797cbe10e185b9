"""Options of streamed generation: barriers, half layers, hidden states away, pageable memory, groups, CXL, GPUDirect, stages."""

from __future__ import annotations

import numpy as np
import pytest
from offload_toy import catalog, toy, toy_with

from simulator.cost import CostModel
from simulator.offload import simulate
from simulator.offload.zigzag.formats import Formats
from simulator.offload.zigzag.plan import PAGEABLE, make_plan
from simulator.offload.zigzag.prices import cut_layer
from simulator.specs import MemroofError, SpecError
from simulator.strategy import Setup


def links(outcome):
    table = outcome.tables["links"]
    return dict(zip(table["link"], table["bytes"].tolist(), strict=True))


def streamed(plan):
    return 4 * sum(plan.units[i].weights for i in plan.order)


SLOW = {"link.toy-pcie.bandwidth": "1 GB/s", "workload.batches": "3", "workload.output": "30"}


def test_with_a_barrier_weights_hide_behind_one_batch_alone():
    # FlexGen's algorithm 1: the next layer's weights come beside the first batch, then all is waited for
    setup = toy({**SLOW, "strategy.barrier": "true"})
    plan, outcome = make_plan(setup), simulate(setup, detail=True)
    units = [plan.units[index] for index in plan.order]
    copies = np.array([unit.weights for unit in units]) / 1e9
    one = np.array([unit.decode.time(14) for unit in units])
    expected = np.maximum(np.roll(copies, -1), one) + 2.0 * one
    assert float(outcome.tables["steps"]["time"][14]) == pytest.approx(expected.sum(), rel=1e-6)
    assert outcome.total_time > simulate(toy(SLOW), detail=True).total_time


def test_a_bucket_hides_its_part_of_a_layer_alone():
    # DeepSpeed: the bucket is fetched ahead, the rest when it is the layer's turn
    slow = {"workload.output": "20"}
    none, some, all_ahead = (
        simulate(toy({**slow, **keys})).total_time
        for keys in ({"strategy.prefetch": "0"}, {"strategy.prefetch_bytes": "0.1 MB"}, {})
    )
    assert all_ahead < some < none
    plan = make_plan(toy({**slow, "strategy.prefetch_bytes": "0.1 MB"}))
    assert plan.ahead(plan.units[1]) == pytest.approx(1e5 / plan.units[1].weights)
    hidden = sum(min(1e5, plan.units[i].weights) for i in plan.order) * 20 / 10e9
    assert none - some <= hidden * 1.001
    whole = simulate(toy({**slow, "strategy.prefetch_bytes": "1 GB"})).total_time
    assert whole == pytest.approx(all_ahead)


def test_half_layers_move_and_hold_and_compute_the_same():
    whole, halves = toy_with(kv="dram"), toy_with(kv="dram", split_layers="true")
    first, second = make_plan(whole), make_plan(halves)
    assert len(second.order) == len(first.order) + 4
    assert second.stored_bytes() == pytest.approx(first.stored_bytes())
    assert second.cache_bytes() == first.cache_bytes()
    assert second.computation() == pytest.approx(first.computation())
    assert links(simulate(halves)) == pytest.approx(links(simulate(whole)))
    names = [unit.name for unit in second.units]
    assert [name for name in names if "attention" in name or "MLP" in name] == [
        "layer attention",
        "layer MLP",
    ]


def test_layers_without_a_cache_are_not_cut():
    graph = make_plan(toy_with())
    assert len(graph.units) == 3
    from simulator.graph import Numerics, Shape, build

    blocks = build(toy().model, Shape(1, 8, 0, "forward"), numerics=Numerics.of("fp16"))
    assert len(cut_layer(blocks.head)) == 1


@pytest.mark.parametrize("extra", [{}, {"barrier": "true"}, {"prefetch": "0"}])
def test_hidden_states_away_cross_the_link_between_units(extra):
    here, away = simulate(toy_with(**extra)), simulate(toy_with(hidden="dram", **extra))
    # 4 sequences x (64 prompt + 3 decoded tokens) x hidden x bytes, between 6 units; what waits on the GPU alone stays there
    once = 4 * (64 + 3) * 256 * 2.0
    down = links(away)["gpu>cpu"] - links(here)["gpu>cpu"]
    up = links(away)["cpu>gpu"] - links(here)["cpu>gpu"]
    assert down == pytest.approx(5 * once)
    assert up == pytest.approx(5 * once)
    assert away.total_time >= here.total_time * (1.0 - 1e-9)


def test_pageable_memory_is_copied_at_its_own_rate():
    pinned = simulate(toy_with(prefetch="0"))
    staged = simulate(toy_with(prefetch="0", pageable="[weights]"))
    copied = streamed(make_plan(toy_with())) / 10e9
    assert staged.total_time - pinned.total_time == pytest.approx(copied * (1.0 / PAGEABLE - 1.0), rel=1e-9)
    assert any("not pinned" in line for line in staged.assumptions)


def test_groups_count_their_scales_and_are_expanded():
    plain, narrow = toy_with(), toy_with(weight_precision="int4", weight_group="64")
    # 4 bits and a 64th of two fp16 values: 4.5 bits of 16
    assert make_plan(narrow).stored_bytes() == pytest.approx(make_plan(plain).stored_bytes() * 4.5 / 16.0)
    cache = toy_with(kv_precision="int4", kv_group="32")
    assert make_plan(cache).cache_bytes() == pytest.approx(make_plan(plain).cache_bytes() * 5.0 / 16.0)
    layer = [make_plan(setup).units[1] for setup in (plain, narrow, cache)]
    assert layer[1].decode.time(0) > layer[0].decode.time(0)
    assert layer[2].attention.time(0) > layer[0].attention.time(0)
    # the expanded copy of a layer's weights has its room
    assert layer[1].workspace[1] >= layer[0].weights


def test_passes_of_operators_cost_more_than_one_kernel():
    kernel, passes = (
        toy_with(weight_precision="int4", weight_group="64", expansion=how) for how in ("kernel", "passes")
    )
    price = [make_plan(setup).units[1].decode.time(0) for setup in (kernel, passes)]
    assert price[1] > price[0]
    # 4.5 bits read and 16 written, against 19 bytes of passes (FlexGen's compression.py)
    values = 1000.0
    one, many = (Formats.of(setup.scenario.strategy).expand_weights(values)[0] for setup in (kernel, passes))
    assert one.bytes == pytest.approx(2.5625 * values)
    assert many.bytes == pytest.approx(19.0 * values)


def test_cxl_memory_is_read_straight_and_is_a_tier_of_its_own():
    setup = toy({"hardware": "toy-cxl-node", "strategy.weights": "{cxl: 1.0}", "strategy.prefetch": "0"})
    outcome, plan = simulate(setup), make_plan(setup)
    assert outcome.total_time == pytest.approx(
        streamed(plan) / 5e9 + outcome.busy_fraction * outcome.total_time, rel=1e-6
    )
    held = next(use for use in outcome.memory if use.memory == "cxl")
    assert held.by_category == {"weights": pytest.approx(plan.stored_bytes())}
    assert links(outcome)["cxl.read"] == pytest.approx(streamed(plan))
    assert links(outcome)["dram.bus"] == 0.0


def test_a_cache_on_cxl_is_attended_to_in_dram():
    setup = toy(
        {
            "hardware": "toy-cxl-node",
            "strategy.kv": "cxl",
            "strategy.attention": "cpu",
            "strategy.weights": "gpu",
        }
    )
    outcome = simulate(setup)
    token = 4 * 4 * 2 * 256 * 2.0
    assert links(outcome)["cxl.read"] == pytest.approx(token * (64 + 65 + 66))


def test_direct_storage_leaves_the_dram_alone():
    keys = {"hardware": "toy-cxl-node", "strategy.weights": "nvme"}
    staged, direct = simulate(toy(keys)), simulate(toy({**keys, "strategy.direct_storage": "true"}))
    moved = streamed(make_plan(toy(keys)))
    assert links(staged)["dram.bus"] == pytest.approx(2 * moved)
    assert links(direct)["dram.bus"] == 0.0
    assert links(direct)["nvme.read"] == pytest.approx(moved)
    assert next(use for use in direct.memory if use.tier == "dram").peak == 0.0
    assert direct.total_time <= staged.total_time * 1.001


def test_drives_read_as_deepnvme_measures():
    # deepnvme/file_access: libaio reads 12.3 GB/s from two drives of 6.5 into DRAM, GPUDirect Storage 11.1 into GPU memory
    found = catalog()
    hardware = found.hardware(
        found.scenario("offload/toy").hardware.model_copy(update={"node": "h100-96gb-2nvme"})
    )
    setup = Setup(
        toy().scenario, toy().model, hardware, CostModel(hardware.device, found.calibration(hardware.device))
    )
    channels = make_plan(setup).tiers.channels
    assert channels["nvme", "dram"].rate == pytest.approx(12.3e9, rel=0.11)
    assert channels["nvme", "gpu"].rate == pytest.approx(11.1e9, rel=0.01)


def test_stages_share_the_layers_and_keep_a_block_each_in_flight():
    one = toy({"workload.output": "20"})
    two = toy(
        {"hardware": "{node: toy-node, nodes: 2}", "strategy.pipeline_parallel": "2", "workload.output": "20"}
    )
    plan, first, second = make_plan(two), simulate(one), simulate(two)
    assert plan.sequences == 2 * make_plan(one).block
    assert len(plan.order) == 3  # two layers and the head
    assert plan.cache_bytes() == pytest.approx(make_plan(one).cache_bytes())
    # no more than twice as fast: the head is not cut, and the last stage waits for the first block
    ratio = second.metrics["generation_throughput"].value / first.metrics["generation_throughput"].value
    assert 1.2 < ratio < 2.0
    assert second.devices == 2
    assert sum(second.bottlenecks.values()) == pytest.approx(second.total_time)


def test_a_baseline_tells_the_speedup():
    outcome = simulate(toy_with(baseline="{prefetch: 0}"))
    expected = simulate(toy_with(prefetch="0")).total_time / simulate(toy_with()).total_time
    assert outcome.metrics["speedup"].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"barrier": "true", "prefetch": "0"}, "'barrier' decides nothing"),
        ({"prefetch_bytes": "1 MB", "prefetch": "2"}, "needs a 'prefetch' of 1"),
        ({"objective": "latency"}, "'objective' decides nothing"),
        ({"search": "{batch: [1, 2]}"}, "'search' decides nothing"),
        ({"weight_group": "64"}, "needs a 'weight_precision'"),
        ({"expansion": "passes"}, "'expansion' decides nothing"),
        ({"baseline": "{prefetch: -1}"}, "no other valid strategy"),
        ({"weights": "{dram: 0.6, cxl: 0.6}"}, "exceed 1"),
    ],
)
def test_schemas_refuse_what_decides_nothing(keys, message):
    with pytest.raises(SpecError, match=message):
        toy_with(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy.weights": "cxl"}, "strategy.weights.cxl: toy-node has no cxl"),
        ({"strategy.hidden": "{cxl: 0.5}"}, "strategy.hidden.cxl: toy-node has no cxl"),
        ({"hardware": "toy-laptop", "strategy.weights": "nvme", "strategy.direct_storage": "true"}, "no flash behind DRAM"),
        ({"strategy.pageable": "[hidden]"}, "no hidden lie in dram"),
        ({"strategy.pipeline_parallel": "2"}, "2 stages need 2 nodes"),
        (
            {"strategy.kv": "dram", "strategy.attention": "cpu", "strategy.kv_precision": "int4", "strategy.kv_group": "64"},
            "CPU attention reads",
        ),
    ],
)  # fmt: skip
def test_plans_refuse_what_cannot_be(keys, message):
    with pytest.raises(MemroofError, match=message):
        make_plan(toy(keys))
