"""Graph networks with features in host memory: rates by hand, laws of sampling and caching, published ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis import run
from simulator.cost.storage import zero_copy_rate
from simulator.offload.feature_gather.access import accesses, caught, mini_batch
from simulator.offload.feature_gather.reads import (
    HEADER_BYTES,
    PACKET_BYTES,
    READ_LATENCY,
    gather_rate,
    read_rate,
    reads_under_way,
)
from simulator.offload.tiers import Channel, Host
from simulator.specs import Catalog, Graph, MemroofError, SpecError

CATALOG = Catalog()
DEVICE = CATALOG.processor("rtx-3090")
CHANNEL = Channel("dram to gpu", (("pcie", 31.5e9),), 0.0, 25.8e9)
HOST = Host(
    CATALOG.processor("threadripper-3960x"), 1, Channel("dram to cpu", (("port", 102.4e9),), 0.0, 84e9)
)


def graph(nodes: int = 10_000, edges: int = 200_000, exponent: float = 0.6, reached: float = 1.0) -> Graph:
    return Graph(
        kind="graph", name="toy", source="toy", nodes=nodes, edges=edges, features=64, classes=4, train_nodes=nodes // 10,
        access_exponent=exponent, reached=reached,
    )  # fmt: skip


def content(**strategy: Any) -> dict[str, Any]:
    return {
        "kind": "offload", "hardware": {"node": "workstation-3090"},
        "workload": {"graph": "ogbn-papers100m", "fan_outs": [25, 10], "batch": 1000},
        "strategy": {"method": "feature-gather", "transfer": "zero-copy", **strategy},
    }  # fmt: skip


# --- rates -----------------------------------------------------------------------------------------------------------


def test_whole_lines_are_read_as_the_primitive_says() -> None:
    raw = CHANNEL.rate * (PACKET_BYTES + HEADER_BYTES) / PACKET_BYTES
    expected = zero_copy_rate(raw, READ_LATENCY, 768, 512.0, header=HEADER_BYTES)
    for shifted in (True, False):
        assert read_rate(CHANNEL, DEVICE, 512.0, shifted=shifted, share=1.0) == pytest.approx(expected)
    # 128 bytes of payload in 152, where a copy has 256 in 280
    assert expected / CHANNEL.rate == pytest.approx(128 / 152 * 280 / 256)


def test_rows_that_begin_anywhere_need_more_packets() -> None:
    # rows of 2,408 bytes begin at multiples of 8: 19 warps of two packets each, or on average 19.75 lines where shifted
    raw = CHANNEL.rate * 280 / 256
    sectors = 32 * (1 + (2408 - 8) / 32)
    plain = read_rate(CHANNEL, DEVICE, 2408.0, shifted=False, share=1.0)
    shifted = read_rate(CHANNEL, DEVICE, 2408.0, shifted=True, share=1.0)
    assert shifted == pytest.approx(raw * 2408 / (sectors + (1 + 2400 / 128) * 24))
    assert plain == pytest.approx(raw * 2408 / (sectors + 19 * (1 + 120 / 128) * 24))
    assert plain < shifted < CHANNEL.rate


def test_few_units_cannot_ask_for_enough() -> None:
    # Little's law: 2 of 82 units with 48 warps hold 78.7 lines of 128 bytes for 1.5 us
    slow = read_rate(CHANNEL, DEVICE, 512.0, shifted=True, share=0.02)
    assert slow == pytest.approx(0.02 * 82 * 48 * 128 / READ_LATENCY)
    assert read_rate(CHANNEL, DEVICE, 512.0, shifted=True, share=0.1) == pytest.approx(
        read_rate(CHANNEL, DEVICE, 512.0, shifted=True, share=1.0)
    )


def test_reads_under_way_follow_the_link() -> None:
    # seed claims of Min et al. 2021 (VLDB): 256 over PCIe 3.0, 768 over PCIe 4.0
    assert reads_under_way(CATALOG.processor("t4")) == 256
    assert reads_under_way(DEVICE) == 768
    assert reads_under_way(CATALOG.processor("h100-sxm")) == 768


def test_gather_is_bound_by_threads_and_then_by_dram() -> None:
    assert gather_rate(HOST, 1, 90e-9) == pytest.approx(10 * 64 / 90e-9)  # 7.1 GB/s a thread
    assert gather_rate(HOST, 24, 90e-9) == pytest.approx(84e9 / 3)


# --- sampling and caching --------------------------------------------------------------------------------------------


@given(
    exponent=st.floats(0.1, 1.5), seeds=st.integers(1, 5000), fans=st.lists(st.integers(1, 30), min_size=1, max_size=3)
)  # fmt: skip
def test_a_mini_batch_never_exceeds_its_draws_or_the_graph(
    exponent: float, seeds: int, fans: list[int]
) -> None:
    found = accesses(graph(exponent=exponent))
    assert float(found.counts @ found.chance) == pytest.approx(1.0)
    batch = mini_batch(found, seeds, fans)
    for before, after, edges, fan in zip(batch.nodes, batch.nodes[1:], batch.edges, fans, strict=False):
        assert edges <= before * fan * (1 + 1e-9)
        assert before * (1 - 1e-9) <= after <= min(10_000 * (1 + 1e-9), before + edges + 1e-6)


@given(exponent=st.floats(0.1, 1.5), shares=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2))
def test_hotter_nodes_catch_more_than_their_share(exponent: float, shares: list[float]) -> None:
    found = accesses(graph(exponent=exponent))
    batch = mini_batch(found, 100, (10, 5))
    low, high = (caught(found, batch.gathered, share) for share in sorted(shares))
    assert 0.0 <= low <= high <= 1.0 + 1e-12
    assert low >= min(shares) - 1e-9


def test_draws_match_a_sampled_graph() -> None:
    # one hop drawn with replacement from Zipf's law, against the expectation
    toy = graph(exponent=0.8)
    rng = np.random.default_rng(7)
    weight = np.arange(1, toy.nodes + 1) ** -0.8
    chance = weight / weight.sum()
    degree = np.minimum(toy.edges * chance, toy.nodes)
    sizes = []
    for _ in range(40):
        seeds = rng.choice(toy.nodes, 200, replace=False)
        draws = rng.choice(toy.nodes, int(np.minimum(10, degree[seeds]).sum()), p=chance)
        sizes.append(len(set(seeds.tolist()) | set(draws.tolist())))
    expected = mini_batch(accesses(toy), 200, (10,)).nodes[1]
    assert np.mean(sizes) == pytest.approx(expected, rel=0.02)


def test_pre_sampling_of_papers100m() -> None:
    # GNNLab's sampling of ogbn-papers100M (8,000 seeds, fan-outs 5, 10, 15): what the share in reach was derived from
    papers = CATALOG.graph("ogbn-papers100m")
    found = accesses(papers)
    batch = mini_batch(found, 8000, (5, 10, 15))
    assert caught(found, batch.gathered, 0.1 / papers.reached) == pytest.approx(0.9, abs=0.02)
    assert caught(found, batch.gathered, 0.1) < 0.3  # by degree alone


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_published_ratios_hold_but_for_one() -> None:
    names = [
        name for name in CATALOG.names("scenario")
        if name.startswith(("published/pytorch-direct2021", "published/large-gcn2021", "published/data-tiering2021"))
    ]  # fmt: skip
    assert len(names) == 5
    checks = [(name, check) for name in names for check in run(name, catalog=CATALOG).expectations]
    off = [(name.rsplit("/", 1)[-1], check.key) for name, check in checks if not check.ok]
    assert off == [
        ("graphsage-ogbn-products", "transfer_reduction")
    ]  # a mean over graphs, of which this is the worst: 17 % off


@settings(max_examples=8, deadline=None)
@given(hot=st.sampled_from([0.01, 0.03, 0.05, 0.1]), overlap=st.sampled_from(["none", "sampling", "all"]))
def test_hot_features_never_add_traffic_or_time(hot: float, overlap: str) -> None:
    without = run(content(overlap=overlap), catalog=CATALOG).outcome.metrics
    tiered = run(content(overlap=overlap, hot=hot), catalog=CATALOG).outcome.metrics
    assert tiered["host_bytes"].value < without["host_bytes"].value == without["feature_bytes"].value
    assert tiered["iteration_time"].value <= without["iteration_time"].value * (1 + 1e-9)


def test_more_overlap_is_faster_and_no_stage_is_beaten() -> None:
    times = []
    for overlap in ("none", "sampling", "all"):
        metrics = run(content(overlap=overlap), catalog=CATALOG).outcome.metrics
        times.append(metrics["iteration_time"].value)
        stages = [metrics[key].value for key in ("sampling_time", "transfer_time", "training_time")]
        assert times[-1] >= max(stages) * (1 - 1e-6)
        if overlap == "none":
            assert times[-1] == pytest.approx(sum(stages))
    assert times == sorted(times, reverse=True)


def test_several_gpus_share_hot_features_and_dram() -> None:
    scenario = content(hot=0.1)
    scenario["hardware"]["changes"] = {"components": {"gpu": {"count": 2}}}
    shared = run(scenario, catalog=CATALOG).outcome
    scenario["strategy"]["interleaved"] = False
    copied = run(scenario, catalog=CATALOG).outcome
    held = [
        next(use for use in outcome.memory if use.memory == "gpu0.hbm").by_category["features"]
        for outcome in (shared, copied)
    ]
    assert held[1] == pytest.approx(2 * held[0])
    assert (
        shared.metrics["transfer_time"].value > copied.metrics["transfer_time"].value
    )  # half of it from the peer
    assert (
        shared.metrics["epoch_time"].value
        < 0.6 * run(content(transfer="gather"), catalog=CATALOG).outcome.metrics["epoch_time"].value
    )


def test_features_that_exceed_a_memory_are_said_by_how_much() -> None:
    scenario = content(hot=0.9)
    result = run(scenario, catalog=CATALOG)
    hbm = result.outcome.memory[0]
    assert not result.fits and hbm.by_category["features"] == pytest.approx(0.9 * 111_059_956 * 512)
    auto = run(content(hot="auto"), catalog=CATALOG)
    assert auto.fits and auto.outcome.memory[0].free < 0.01 * auto.outcome.memory[0].capacity


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"transfer": "gather", "shifted": True}, "'shifted' decides nothing"),
        ({"threads": 4}, "'threads' decides nothing"),
        ({"sm_share": 0.2}, "'sm_share' decides nothing"),
        ({"ranking": "degree"}, "'ranking' decides nothing"),
        ({"transfer": "dma"}, "expected one of gather, zero-copy"),
        ({"hot": 1.5}, "hot"),
    ],
)
def test_options_without_effect_are_errors(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        run(content(**strategy), catalog=CATALOG)


def test_wrong_names_are_said() -> None:
    scenario = content()
    scenario["workload"]["graph"] = "ogbn-papers"
    with pytest.raises(SpecError, match="did you mean 'ogbn-papers100m'"):
        run(scenario, catalog=CATALOG)
    with pytest.raises(SpecError, match="name no model"):
        run({**content(), "model": "llama3-8b"}, catalog=CATALOG)
    with pytest.raises(MemroofError, match="needs a CPU that is wired to DRAM"):
        run({**content(), "hardware": {"device": "h100-sxm"}}, catalog=CATALOG)
