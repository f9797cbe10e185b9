"""Mixed nodes, measured pairs and placed ranks: hand-computed spans, laws that tie them to equal nodes, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.specs import Catalog, Hardware, MemroofError, PairRates, Part, SpecError, Tier
from simulator.specs.scenario_base import HardwareChoice

CATALOG = Catalog(environment={})
DGX = CATALOG.hardware(HardwareChoice(node="dgx-a100-80gb", nodes=8))
MIXED = CATALOG.hardware(HardwareChoice(cluster="aws-p5-p4d"))
REGIONS = CATALOG.hardware(HardwareChoice(cluster="aws-eight-regions"))
P5, P4 = range(16), range(16, 32)


def shapes(hardware: Hardware, *arguments: object) -> list[tuple[str, int, float]]:
    return [(t.name, t.size, t.bandwidth) for t in hardware.span(*arguments).tiers]  # type: ignore[arg-type]


def measured(
    between: str, rows: list[list[float]], latency: list[list[float]] | None = None, base: Hardware = DGX
) -> Hardware:
    found = tuple(map(tuple, latency)) if latency else None
    return replace(base, nodes=base.nodes, rates=PairRates(between, tuple(map(tuple, rows)), found, "a test"))  # type: ignore[arg-type]


# --- mixed nodes ---


def test_each_rank_knows_its_device_memory_and_node() -> None:
    assert MIXED.size == 32
    assert [device.name for device in MIXED.devices] == ["h100-sxm", "a100-40gb-sxm"]
    assert [MIXED.device_of(rank).name for rank in (0, 15, 16, 31)] == ["h100-sxm"] * 2 + [
        "a100-40gb-sxm"
    ] * 2
    assert [MIXED.node_of(rank) for rank in (7, 8, 23, 24)] == [0, 1, 2, 3]
    assert MIXED.memory_of(15).capacity > MIXED.memory_of(16).capacity == 40 * 2**30
    assert [part.nodes for part in MIXED.parts] == [2, 2]
    assert MIXED.ranks_per_node == 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8,), [("node", 8, 300e9)]),  # the slower node's NVLink
        ((8, 1, P5), [("node", 8, 450e9)]),
        ((16, 1, P5), [("node", 8, 450e9), ("efa", 2, 32 * 12.5e9 / 8)]),
        ((16, 1, P4), [("node", 8, 300e9), ("efa", 2, 4 * 12.5e9 / 8)]),
        ((16,), [("node", 8, 300e9), ("efa", 2, 4 * 12.5e9 / 8)]),
        ((2, 16), [("efa", 2, 4 * 12.5e9 / 8)]),  # across: the slower node's adapters
        ((32,), [("node", 8, 300e9), ("efa", 4, 4 * 12.5e9 / 8)]),
    ],
)
def test_the_slowest_edge_of_a_mixed_cluster_binds(
    arguments: tuple[object, ...], expected: list[tuple[str, int, float]]
) -> None:
    assert shapes(MIXED, *arguments) == expected


def test_a_switch_reduces_only_where_all_do() -> None:
    assert MIXED.span(8, 1, P5).tiers[0].reduces
    assert not MIXED.group((*range(8), *range(16, 24))).tiers[0].reduces


@pytest.mark.parametrize("name", ["device", "memory"])
def test_who_needs_equal_accelerators_is_told_that_they_differ(name: str) -> None:
    with pytest.raises(MemroofError, match=r"aws-p5-p4d mixes .*equal"):
        getattr(MIXED, name)


def test_a_mixed_cluster_keeps_its_counts() -> None:
    assert MIXED.with_nodes(4) is MIXED
    with pytest.raises(MemroofError, match="change the counts in its file"):
        CATALOG.hardware(HardwareChoice(cluster="aws-p5-p4d", nodes=8))


def test_machines_are_changed_in_every_part() -> None:
    renamed = MIXED.with_machines(lambda machine: replace(machine, name="x"))
    assert [part.machine.name for part in renamed.parts] == ["x", "x"]


@pytest.mark.parametrize("hardware", [DGX, MIXED, REGIONS], ids=lambda hardware: hardware.name)
def test_a_faster_network_is_faster_between_all_nodes(hardware: Hardware) -> None:
    before, after = hardware.pair_rates()[0], hardware.with_network(1.5).pair_rates()[0]
    node = np.array([hardware.node_of(rank) for rank in range(hardware.size)])
    apart = node[:, None] != node[None, :]
    assert after[apart] == pytest.approx(1.5 * before[apart])
    assert (after[~apart] == before[~apart]).all()


def test_nodes_of_different_counts_share_what_all_have(tmp_path: Path) -> None:
    """An L40S server of 8 and a server of 4: a group of all has 4 members in each of three units."""
    hardware = mixed(tmp_path, "groups: [{node: l40s-8x, count: 1}, {node: server-4x4090, count: 1}]")
    assert hardware.size == 12
    assert [(t.name, t.size) for t in hardware.span(12).tiers] == [("node", 4), ("ethernet", 3)]
    # one NIC of 12.5 GB/s for the 8 ranks of the larger node
    assert hardware.span(12).tiers[1].bandwidth == 12.5e9 / 8
    with pytest.raises(MemroofError, match="mixes nodes of 4 and 8 accelerators"):
        _ = hardware.ranks_per_node


def mixed(
    root: Path, text: str, network: str = "[{name: ethernet, link: ethernet-100g, links_per_node: 1}]"
) -> Hardware:
    folder = root / "hardware_specs" / "clusters"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(
        f"kind: cluster\nname: mine\nsource: an example\n{text}\nnetwork: {network}\n"
    )
    return Catalog([root], environment={}).hardware(HardwareChoice(cluster="mine"))


def test_equal_groups_are_one_kind_of_node(tmp_path: Path) -> None:
    hardware = mixed(tmp_path, "groups: [{node: dgx-h100, count: 1}, {node: dgx-h100, count: 3}]")
    assert hardware.plain
    assert hardware.nodes == 4
    assert hardware.with_nodes(2).size == 16


def test_a_mixed_cluster_without_network_says_so(tmp_path: Path) -> None:
    hardware = mixed(tmp_path, "groups: [{node: dgx-h100, count: 1}, {node: dgx-b200, count: 1}]", "[]")
    assert hardware.span(8).size == 8
    with pytest.raises(MemroofError, match="no network that joins 2 nodes"):
        hardware.span(16)
    with pytest.raises(MemroofError, match="no network"):
        hardware.pair_rates()


def test_levels_of_the_network_hold_for_mixed_nodes(tmp_path: Path) -> None:
    network = "[{name: rack, link: ethernet-100g, links_per_node: 8, nodes: 2}, {name: spine, link: ethernet-100g, links_per_node: 8, oversubscription: 4}]"
    hardware = mixed(
        tmp_path,
        "groups: [{node: dgx-h100, count: 2}, {node: dgx-b200, count: 2, link: ethernet-400g}]",
        network,
    )
    assert shapes(hardware, 32)[1:] == [("rack", 2, 12.5e9), ("spine", 2, 12.5e9 / 4)]
    assert shapes(hardware, 16, 1, range(16, 32))[1:] == [("rack", 2, 50e9)]
    bandwidth, _ = hardware.pair_rates()
    assert [bandwidth[0, 8], bandwidth[16, 24], bandwidth[0, 16]] == [12.5e9, 50e9, 12.5e9 / 4]


# --- laws ---


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 3]))
def test_equal_parts_span_what_equal_nodes_do(factor: int, stride: int, times: int) -> None:
    """The same nodes listed as two parts, each group looked at, give the spans that size and stride alone give."""
    size = factor * (1 if stride % 8 else times)
    if (size - 1) * stride >= DGX.size:
        return
    listed = replace(DGX, others=(Part(DGX.machine, 5),))
    assert listed.span(size, stride) == DGX.span(size, stride)


@given(st.permutations(range(16)), st.integers(1, 16))
def test_a_placement_moves_groups_and_changes_nothing_else(order: list[int], size: int) -> None:
    base = DGX.with_nodes(2)
    placed = base.placed(order)
    back = [order.index(rank) for rank in range(16)]
    assert placed.group(back[:size]).size == size
    listed = base.placed(range(16)).group(range(size))
    assert placed.group(back[:size]) == listed
    assert placed.node_of(back[3]) == 0


@given(st.integers(0, 63), st.integers(0, 63))
def test_pairs_of_equal_nodes_cross_the_fabric_or_the_network(sender: int, receiver: int) -> None:
    if sender == receiver:
        return
    (tier,) = DGX.pair(sender, receiver).tiers
    bandwidth, latency = DGX.pair_rates()
    assert tier.name == ("node" if sender // 8 == receiver // 8 else "infiniband")
    assert bandwidth[sender, receiver] == tier.bandwidth
    assert latency[sender, receiver] == pytest.approx(tier.latency)


def test_pair_rates_of_one_node_are_its_own() -> None:
    bandwidth, latency = DGX.with_nodes(1).pair_rates()
    assert np.isinf(np.diag(bandwidth)).all()
    assert (bandwidth[~np.eye(8, dtype=bool)] == 300e9).all()
    assert (np.diag(latency) == 0.0).all()


# --- measured pairs ---


def test_the_regions_of_the_paper_as_measured() -> None:
    """Yuan et al. 2022: Oregon to Virginia 0.79 Gb/s and 67 ms there and back; within a region 2 Gb/s and 10 ms."""
    assert REGIONS.device.name == "v100-16gb-sxm"
    (there,) = REGIONS.pair(0, 8).tiers
    assert (there.bandwidth, there.latency, there.measured) == pytest.approx((0.79e9 / 8, 0.0335, True))
    assert REGIONS.span(8).tiers == (Tier("network", 8, 0.25e9, 0.005, measured=True),)
    # a ring through all regions in rank order has Tokyo to Seoul and on to London at 0.342 Gb/s
    assert REGIONS.span(8, 8).tiers[0].bandwidth == pytest.approx(0.342e9 / 8)
    assert REGIONS.span(8, 8).tiers[0].latency == pytest.approx(0.119)


def test_ranks_of_a_node_share_what_was_measured_between_nodes() -> None:
    rows = [[0.0, 160e9, 80e9], [160e9, 0.0, 240e9], [80e9, 240e9, 0.0]]
    hardware = measured("nodes", rows, base=DGX.with_nodes(3))
    assert shapes(hardware, 16, 1, range(16)) == [("node", 8, 300e9), ("infiniband", 2, 20e9)]
    assert shapes(hardware, 2, 8, range(8, 24)) == [("infiniband", 2, 30e9)]
    assert shapes(hardware, 24)[1] == ("infiniband", 3, 10e9)
    assert hardware.span(24).tiers[1].latency == DGX.span(16).tiers[1].latency
    bandwidth, _ = hardware.pair_rates()
    assert (bandwidth[0, 1], bandwidth[0, 8], bandwidth[8, 23]) == (300e9, 20e9, 30e9)
    with pytest.raises(MemroofError, match="for 3 nodes, not for 2"):
        hardware.with_nodes(2)


def test_pairs_of_accelerators_bound_rings_through_a_switch_and_the_rails_between_nodes() -> None:
    rows = np.full((16, 16), 20e9)
    rows[:8, :8] = rows[8:, 8:] = 250e9
    rows[3, 4] = 100e9
    rows[2, 10] = 5e9  # the rail of rank 2
    hardware = measured("gpus", rows.tolist(), base=DGX.with_nodes(2))
    assert shapes(hardware, 8, 1, range(8)) == [("node", 8, 100e9)]
    assert shapes(hardware, 8, 1, range(8, 16)) == [("node", 8, 250e9)]
    assert hardware.span(8, 1, range(8)).tiers[0].measured
    assert shapes(hardware, 16) == [("node", 8, 100e9), ("infiniband", 2, 5e9)]
    bandwidth, _ = hardware.pair_rates()
    assert (bandwidth[3, 4], bandwidth[4, 3], bandwidth[2, 10]) == (100e9, 250e9, 5e9)


def test_a_slow_node_is_no_faster_for_a_fast_measurement() -> None:
    rows = np.full((16, 16), 900e9).tolist()
    tier = measured("gpus", rows, base=DGX.with_nodes(2)).span(8, 1, range(8)).tiers[0]
    assert (tier.bandwidth, tier.measured) == (300e9, False)


def test_uneven_members_of_measured_nodes_count_only_what_leaves_a_node() -> None:
    rows = [[0.0, 80e9], [40e9, 0.0]]
    hardware = measured("nodes", rows, base=DGX.with_nodes(2))
    # 4 members here and 2 there: three units of two, two of them in one node
    assert [(t.name, t.size, t.bandwidth) for t in hardware.group((0, 1, 2, 3, 8, 9)).tiers] == [
        ("node", 2, 300e9), ("infiniband", 3, 5e9),
    ]  # fmt: skip


MATRIX = "groups: [{node: server-1x4090, count: 2}]\nbandwidth_matrix: {between: nodes, source: s, bandwidth: {unit: Gb/s, "


def test_a_matrix_from_a_csv_file_beside_the_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "hardware_specs" / "clusters"
    folder.mkdir(parents=True)
    (folder / "rates.csv").write_text("0, 8\n16, 0\n")
    hardware = mixed(tmp_path, MATRIX + "file: rates.csv}}")
    bandwidth, latency = hardware.pair_rates()
    assert (bandwidth[0, 1], bandwidth[1, 0]) == (1e9, 2e9)
    assert latency[0, 1] == CATALOG.link("ethernet-100g").latency
    assert hardware.rates is not None
    assert hardware.rates.source == "s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MATRIX + "rows: [[0, 1]]}}", r"mine.yaml:.*bandwidth.rows: found 1 x 2 numbers, expected 2 x 2"),
        (MATRIX + "rows: [[0, 1], [0, 0]]}}", r"needs more than 0 in row 1, column 0"),
        (MATRIX.replace("Gb/s", "GHz") + "rows: [[0, 1], [1, 0]]}}", r"bandwidth.unit: .*GHz"),
        (MATRIX + "file: none.csv}}", r"none.csv: cannot be read"),
        (MATRIX + "file: bad.csv}}", r"bad.csv:2:1: found 'x', expected numbers"),
        (MATRIX + "file: below.csv}}", r"below.csv:1:1: found '0,-1', expected numbers"),
        (MATRIX + "rows: [[0, 1], [1, 0]], file: rates.csv}}", r"needs 'rows' or 'file', and not both"),
        ("groups: []", r"groups: .*at least 1 item"),
        ("groups: [{node: dgx-h10, count: 2}]", r"groups\[0\].node: unknown node 'dgx-h10'; did you mean"),
        ("groups: [{node: dgx-h100, count: 2, link: ethernet-10g}]", r"groups\[0\].link: unknown link"),
    ],
)  # fmt: skip
def test_wrong_clusters_are_refused_at_their_place(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "hardware_specs" / "clusters"
    folder.mkdir(parents=True)
    (folder / "bad.csv").write_text("0,1\nx\n")
    (folder / "below.csv").write_text("0,-1\n")
    with pytest.raises(SpecError, match=message):
        mixed(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "groups: [{node: dgx-h100, count: 2, links_per_node: 4}]",
            "has links of its own, but the cluster has no network",
        ),
        (
            MATRIX + "rows: [[0, 1], [1, 0]]}}",
            "bandwidth_matrix: needs 'latency' where the cluster has no network",
        ),
    ],
)
def test_what_needs_a_network_says_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        mixed(tmp_path, text, "[]")


# --- wrong questions ---


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: DGX.device_of(64), "has no rank 64; it has 64"),
        (lambda: DGX.group(()), "one or more ranks"),
        (lambda: DGX.group((1, 1)), "each once"),
        (lambda: DGX.group((1, 64)), "no rank 64"),
        (lambda: DGX.placed(range(63)), "names each of the 64 accelerators"),
        (lambda: MIXED.span(16, 2, P5), "needs 31 ranks; ranks 0 to 15 of aws-p5-p4d has 16"),
        (lambda: MIXED.span(0), "at least 1"),
        (lambda: DGX._rate(0, 8), "no measured bandwidth"),
    ],
)  # fmt: skip
def test_wrong_questions(ask: object, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        ask()  # type: ignore[operator]


def test_a_group_of_one_spans_nothing() -> None:
    assert MIXED.group((3,)).tiers == ()
    assert MIXED.span(1).size == 1
