"""Optimal placements in the engine: no worse than others, as fast as the program expects, and what they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from offload_toy import toy

from simulator.offload import remedies, simulate
from simulator.offload.placement import place
from simulator.offload.zigzag.optimise import choose, sentences, worths
from simulator.offload.zigzag.problem import build_problem
from simulator.specs import MemroofError
from simulator.strategy import Setup

SMALL = {
    # 7.9 MB of weights and 1.8 MB of cache; two layers of buffers take 3.2 MB of GPU memory and as much of DRAM
    "device.toy-gpu.memory.hbm.capacity": "6 MB",
    "device.toy-dram.capacity": "6 MB",
    "workload.output": "12",
    "workload.batches": "3",
}
OPEN = {"strategy.weights": "optimal", "strategy.kv": "optimal"}


def throughput(outcome):
    return outcome.metrics["generation_throughput"].value if outcome.fits else 0.0


def placements():
    shares = (0.0, 0.5, 1.0)
    for dram, nvme, kv in product(shares, shares, ("gpu", "dram", "nvme", "{dram: 0.5}")):
        if dram + nvme <= 1.0:
            yield {"strategy.weights": f"{{dram: {dram}, nvme: {nvme}}}", "strategy.kv": kv}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"strategy.attention": "cpu"},
        {"strategy.barrier": "true"},
        {"strategy.prefetch": "0"},
        {"link.toy-pcie.bandwidth": "1 GB/s"},
    ],
    ids=["streamed", "cpu", "barrier", "serial", "slow-link"],
)
def test_no_other_placement_is_faster_in_the_engine(extra):
    keys = {**SMALL, **extra}
    best = simulate(toy({**keys, **OPEN}))
    assert best.fits
    others = []
    for placement in placements():
        try:
            others.append(throughput(simulate(toy({**keys, **placement}))))
        except MemroofError:  # CPUs do not attend to a cache on the accelerator
            continue
    assert max(others) > 0.0
    # latencies of copies and fill of the pipeline are not in the program
    assert throughput(best) >= 0.95 * max(others)
    planned = best.metrics["planned_throughput"].value
    assert throughput(best) == pytest.approx(planned, rel=0.2)
    assert throughput(best) <= planned * 1.01


def test_what_binds_is_told_with_what_more_of_it_gives():
    setup = toy({**SMALL, **OPEN, "device.toy-ssd.read_bandwidth": "0.2 GB/s"})
    choice = choose(setup)
    found = {each.resource: each for each in worths(choice, "throughput")}
    text = sentences(choice, "throughput", list(found.values()))
    assert text[0].startswith("placement by linear program for throughput: weights")
    assert "in decode by nvme to dram" in text[1]
    assert any("10 GB more DRAM gives" in line and "10 % more of nvme to dram gives" in line for line in text)
    # a hundredth of a megabyte more of DRAM saves what its price says
    problem = choice.problem
    grown = {name: size + 1e4 * name.startswith("dram") for name, size in problem.capacity.items()}
    saved = choice.placing.time - place(replace(problem, capacity=grown)).time
    assert saved == pytest.approx(1e4 * found["dram"].price, rel=1e-3)
    # with 10 GB more DRAM nothing lies on flash: as fast as the engine says of such a machine
    bigger = simulate(
        toy(
            {
                **SMALL,
                **OPEN,
                "device.toy-ssd.read_bandwidth": "0.2 GB/s",
                "device.toy-dram.capacity": "10 GB",
            }
        )
    )
    gain = throughput(bigger) / throughput(simulate(setup)) - 1.0
    assert found["dram"].gain == pytest.approx(gain, rel=0.25)


def test_tables_hold_the_placement_and_the_worths():
    outcome = simulate(toy({**SMALL, **OPEN}))
    table = outcome.tables["placement"]
    shares: dict[str, float] = {}
    for name, share in zip(table["tensors"], table["share"].tolist(), strict=True):
        shares[name] = shares.get(name, 0.0) + share
    assert shares == pytest.approx({"weights": 1.0, "kv": 1.0, "hidden": 1.0})
    assert len(outcome.tables["worth"]["resource"]) == len(outcome.tables["worth"]["gain"])


def test_a_search_takes_the_best_block():
    keys = {**SMALL, **OPEN, "strategy.search": "{batch: [1, 2], batches: [1, 2, 4]}"}
    choice = choose(toy(keys))
    assert len(choice.tried) == 6
    block = choice.scenario.workload
    assert max(choice.tried, key=lambda each: each[2])[:2] == (block.batch, block.batches)
    alone = choose(
        toy({**SMALL, **OPEN, "workload.batch": str(block.batch), "workload.batches": str(block.batches)})
    )
    assert alone.placing.time == pytest.approx(choice.placing.time)


def test_latency_is_best_for_the_decode_step():
    keys = {**SMALL, **OPEN, "workload.batch": "1", "workload.batches": "1"}
    fast = simulate(toy({**keys, "strategy.objective": "latency"}))
    full = simulate(toy(keys))
    assert fast.metrics["time_per_output_token"].value <= full.metrics["time_per_output_token"].value * 1.01
    assert any("for latency" in line for line in fast.assumptions)


def test_what_is_written_out_stays_as_written():
    setup = toy({**SMALL, "strategy.weights": "optimal", "strategy.kv": "{dram: 0.5, nvme: 0.5}"})
    strategy = choose(setup).scenario.strategy
    assert (strategy.kv.dram, strategy.kv.nvme) == (0.5, 0.5)
    assert not strategy.optimised


def test_nothing_fits_says_what_is_lacking():
    tiny = {**SMALL, **OPEN, "device.toy-ssd.capacity": "1 MB", "device.toy-dram.capacity": "1 MB"}
    setup = toy(tiny)
    outcome = simulate(setup)
    assert not outcome.fits
    assert throughput(outcome) == 0.0
    assert any("no placement holds everything: it lacks" in line for line in outcome.assumptions)
    labels = [remedy.description for remedy in remedies(setup)]
    assert any("int4" in label for label in labels)
    assert not any("weights: " in label for label in labels)


def test_hidden_states_and_groups_are_placed_too():
    keys = {**SMALL, **OPEN, "strategy.hidden": "optimal", "strategy.weight_precision": "int4", "strategy.weight_group": "64",
            "workload.batches": "8"}  # fmt: skip
    outcome = simulate(toy(keys))
    assert outcome.fits
    assert outcome.metrics["planned_throughput"].value > 0.0


def test_a_problem_knows_every_tier_of_the_machine():
    setup: Setup = toy({**OPEN, "hardware": "toy-cxl-node"})
    problem = build_problem(setup, {"dram": 1e6})
    tiers = [where.tier for where in problem.items[0].places]
    assert tiers == ["gpu", "dram", "cxl", "nvme"]
    assert problem.capacity["dram in decode"] == pytest.approx(4e9 - 1e6)
    assert place(problem).shares["weights"]["gpu"] == pytest.approx(1.0)


def test_what_is_not_in_dram_is_not_pageable_any_more():
    # all of it fits on the accelerator
    setup = toy({**OPEN, "strategy.pageable": "[weights, kv]"})
    assert choose(setup).scenario.strategy.pageable == ()
    assert simulate(setup).fits


def test_stages_are_placed_with_the_fill_of_the_pipeline():
    keys = {**SMALL, **OPEN, "hardware": "{node: toy-node, nodes: 2}", "strategy.pipeline_parallel": "2"}
    outcome = simulate(toy(keys))
    assert outcome.fits
    planned = outcome.metrics["planned_throughput"].value
    assert throughput(outcome) == pytest.approx(planned, rel=0.2)


def test_channels_grow_with_the_link_that_bounds_them():
    # DRAM, CXL and drive share the switch's link to the GPU
    keys = {**SMALL, **OPEN, "hardware": "toy-cxl-node", "link.toy-pcie.bandwidth": "0.2 GB/s"}
    setup = toy(keys)
    found = {each.resource: each.gain for each in worths(choose(setup), "throughput")}
    faster = simulate(toy({**keys, "link.toy-pcie.bandwidth": "0.22 GB/s"}))
    gain = throughput(faster) / throughput(simulate(setup)) - 1.0
    assert max(found.get(name, 0.0) for name in ("dram to gpu", "cpu>pcie")) == pytest.approx(gain, rel=0.3)
