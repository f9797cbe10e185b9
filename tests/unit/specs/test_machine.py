"""Nodes and clusters as graphs: the shipped catalog, hand-computed paths and spans, wiring rules, errors."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.specs import Catalog, Hardware, Machine, MemroofError, SpecError, UnknownNameError
from simulator.specs.catalog import FOLDERS, shipped_root
from simulator.specs.scenario_base import HardwareChoice

CATALOG = Catalog(environment={})
NODES = CATALOG.names("node")
CLUSTERS = CATALOG.names("cluster")
FLASH = ("nvme", "ufs")


def node(name: str, nodes: int = 1) -> Hardware:
    return CATALOG.hardware(HardwareChoice(node=name, nodes=nodes))


def cluster(name: str) -> Hardware:
    return CATALOG.hardware(HardwareChoice(cluster=name))


def edge_names(machine: Machine, source: str, target: str) -> list[str]:
    return [edge.name for edge in machine.path(source, target).edges]


# --- the shipped catalog ---


@pytest.mark.parametrize("name", NODES)
def test_every_node_expands_into_distinct_parts_that_reach_each_other(name: str) -> None:
    machine = CATALOG.machine(name)
    stores = [store.name for store in machine.stores]
    assert len(set(stores)) == len(stores)
    ports = {edge.name for store in machine.stores for edge in (store.read, store.write)}
    wires = {edge.name for _, _, edge in machine.links}
    assert not ports & wires
    assert len(wires) == len({edge for _, _, edge in machine.links})
    for engine in machine.ranks:
        assert engine.memory is not None
        for store in machine.stores:
            route = machine.path(store.name, engine.memory)
            assert route.bandwidth <= min(edge.bandwidth for edge in route.edges)
            assert route.bandwidth > 0
            assert route.edges[0] is store.read


@pytest.mark.parametrize("name", NODES)
def test_flash_reaches_every_accelerator_through_links_that_carry_it(name: str) -> None:
    machine = CATALOG.machine(name)
    for drive in (store for tier in FLASH for store in machine.tier(tier)):
        for engine in machine.ranks:
            assert engine.memory is not None
            there, back = machine.path(drive.name, engine.memory), machine.path(engine.memory, drive.name)
            assert there.bandwidth <= drive.read.bandwidth
            assert back.bandwidth <= drive.write.bandwidth
            assert there.latency >= drive.read.latency


@pytest.mark.parametrize("name", NODES)
def test_a_node_spans_all_of_its_accelerators(name: str) -> None:
    hardware = node(name)
    span = hardware.span(hardware.size)
    assert span.size == hardware.size
    assert all(tier.bandwidth > 0 and tier.latency > 0 for tier in span.tiers)


@pytest.mark.parametrize("name", [name for name in NODES if CATALOG.node(name).network])
def test_a_node_with_a_network_multiplies(name: str) -> None:
    hardware = node(name).with_nodes(4)
    span = hardware.span(hardware.size)
    assert span.size == hardware.size
    assert span.tiers[-1].name in [level.name for level, _ in hardware.network]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_expands(name: str) -> None:
    hardware = cluster(name)
    assert hardware.size > hardware.nodes // 2 > 0
    assert hardware.span(hardware.size).size == hardware.size
    assert [tier.bandwidth for tier in hardware.span(hardware.size).tiers] == sorted(
        (tier.bandwidth for tier in hardware.span(hardware.size).tiers), reverse=True
    )


def shipped_files() -> list[Path]:
    folders = [shipped_root() / FOLDERS[kind] for kind in ("device", "link", "node", "cluster")]
    return [file for folder in folders for file in sorted(folder.glob("*.yaml"))]


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_has_its_name_a_source_and_dated_prices(file: Path) -> None:
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert data["name"] == file.stem
    assert len(data["source"]) > 10
    for figure in data.get("price", {}).values():
        assert str(figure["date"])[:3] == "202" or str(figure["date"])[:3] == "201"
        assert figure["source"]


def test_memory_devices_hang_on_links_that_exist() -> None:
    for name in CATALOG.names("device"):
        link = getattr(CATALOG.device(name), "link", None)
        assert link is None or CATALOG.link(link).bandwidth > 0
    for name in ("host_link", "fabric"):
        for device in CATALOG.names("device"):
            link = getattr(CATALOG.device(device), name, None)
            assert link is None or link in CATALOG.names("link"), f"{device}: {link}"


@pytest.mark.parametrize(
    ("link", "gigabytes_per_second"),
    [
        ("pcie-3.0-x16", 8 * 128 / 130 / 8 * 16),  # PCI-SIG: GT/s, line coding, lanes
        ("pcie-4.0-x16", 16 * 128 / 130 / 8 * 16),
        ("pcie-5.0-x4", 32 * 128 / 130 / 8 * 4),
        ("pcie-6.0-x16", 64 * 242 / 256 / 8 * 16),  # a flit of 256 bytes carries 242
        ("cxl-2.0-x8", 32 * 128 / 130 / 8 * 8 * 64 / 68),  # a flit of 68 bytes carries 64
        ("nvlink-5", 18 * 50),
        ("infiniband-ndr", 400 / 8),
        ("ddr5-4800", 4.8 * 8),
        ("upi-11.2gt", 11.2 * 2),
        ("ufs-4.0", 2 * 23.32 * 8 / 10 / 8),
    ],
)
def test_link_rates_follow_from_their_signalling(link: str, gigabytes_per_second: float) -> None:
    assert CATALOG.link(link).bandwidth == pytest.approx(gigabytes_per_second * 1e9, rel=2e-3)


# --- paths ---


def test_dgx_a100_drive_to_its_gpu() -> None:
    machine = CATALOG.machine("dgx-a100-80gb")
    assert edge_names(machine, "nvme0", "gpu0.hbm") == [
        "nvme0.read", "nvme0>pcie_switch0", "pcie_switch0>gpu0", "gpu0.hbm",
    ]  # fmt: skip
    assert machine.path("nvme0", "gpu0.hbm").bandwidth == 7.0e9
    assert machine.path("gpu0.hbm", "nvme0").bandwidth == 3.8e9


def test_dgx_a100_dram_of_the_other_socket_goes_between_sockets_not_through_a_gpu() -> None:
    machine = CATALOG.machine("dgx-a100-80gb")
    assert edge_names(machine, "dram0", "gpu7.hbm") == [
        "dram0.bus", "dram0-cpu0", "cpu0>cpu1", "cpu1>pcie_switch3", "pcie_switch3>gpu7", "gpu7.hbm",
    ]  # fmt: skip
    assert machine.path("dram0", "gpu7.hbm").bandwidth == 31.5e9


def test_a_drive_does_not_take_the_shorter_way_through_another_gpu() -> None:
    machine = CATALOG.machine("mi300x-node")
    assert edge_names(machine, "nvme0", "gpu7.hbm")[1:-1] == [
        "nvme0>pcie_switch0", "pcie_switch0>cpu0", "cpu0>cpu1", "cpu1>pcie_switch3", "pcie_switch3>gpu7",
    ]  # fmt: skip


def test_peers_take_the_nvswitch_rather_than_their_pcie_switch() -> None:
    machine = CATALOG.machine("dgx-h100")
    assert [edge.name for edge in machine.peer_edges(0, 1)] == ["gpu0>nvswitch", "nvswitch>gpu1"]


def test_two_gpus_behind_one_switch_share_its_uplink() -> None:
    machine = CATALOG.machine("dgx-a100-80gb")
    first, second = machine.path("dram0", "gpu0.hbm"), machine.path("dram0", "gpu1.hbm")
    assert "cpu0>pcie_switch0" in {edge.name for edge in set(first.edges) & set(second.edges)}
    far = machine.path("dram0", "gpu2.hbm")
    assert "cpu0>pcie_switch0" not in {edge.name for edge in far.edges}


def test_gb200_reaches_remote_memory_through_a_gpu_where_nothing_else_leads() -> None:
    machine = CATALOG.machine("gb200-nvl72")
    route = edge_names(machine, "dram35", "gpu0.hbm")
    assert route[1:-1] == ["dram35-cpu35", "cpu35>gpu70", "gpu70>nvswitch", "nvswitch>gpu0"]


def test_flexgen_and_ratel_machines_as_published() -> None:
    flexgen = CATALOG.machine("gcp-n1-t4")
    assert flexgen.path("nvme", "gpu.hbm").bandwidth == 2.65e9
    assert flexgen.path("gpu.hbm", "nvme").bandwidth == 1.4e9
    assert flexgen.store("dram").capacity == 208e9
    assert flexgen.path("dram", "gpu.hbm").bandwidth == pytest.approx(15.75e9)
    ratel = CATALOG.machine("server-1x4090")
    assert len(ratel.tier("nvme")) == 12
    assert sum(store.capacity for store in ratel.tier("dram")) == 768e9
    assert ratel.path("dram0", "gpu.hbm").bandwidth == 31.5e9


def test_unified_memory_is_the_accelerators_own() -> None:
    machine = CATALOG.machine("laptop-m2-max")
    assert machine.hosts == ()
    assert machine.path("nvme", "gpu.dram").bandwidth == 7.4e9
    phone = CATALOG.machine("phone-snapdragon-8-gen-3")
    assert phone.path("ufs", f"{phone.ranks[0].memory}").bandwidth == 4.2e9


def test_a_cpu_only_server_ranks_its_sockets_and_owns_wired_dram() -> None:
    hardware = node("epyc-9654-2s")
    assert [engine.name for engine in hardware.machine.ranks] == ["cpu0", "cpu1"]
    assert [engine.memory for engine in hardware.machine.ranks] == ["dram0", "dram1"]
    assert hardware.memory.read.bandwidth == pytest.approx(460.8e9)
    assert hardware.span(2).tiers[0].bandwidth == 4 * 64e9


def test_cxl_reads_are_bound_by_the_link_and_share_the_card_both_ways() -> None:
    machine = CATALOG.machine("cxl-server")
    assert machine.path("cxl0", "dram0").bandwidth == 29.65e9
    card = machine.store("cxl0")
    assert card.read is card.write


# --- spans ---


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (1, 1, []),
        (8, 1, [("node", 8, 300e9)]),
        (4, 2, [("node", 4, 300e9)]),
        (16, 1, [("node", 8, 300e9), ("infiniband", 2, 25e9)]),
        (8, 8, [("infiniband", 8, 25e9)]),
        (16, 4, [("node", 2, 300e9), ("infiniband", 8, 25e9)]),
        (4, 16, [("infiniband", 4, 25e9)]),
        (12, 1, [("node", 6, 300e9), ("infiniband", 2, 25e9)]),
    ],
)
def test_span_of_eight_dgx_a100(size: int, stride: int, expected: list[tuple[str, int, float]]) -> None:
    tiers = node("dgx-a100-80gb", nodes=8).span(size, stride).tiers
    assert [(tier.name, tier.size, tier.bandwidth) for tier in tiers] == expected


def test_only_switches_that_reduce_say_so() -> None:
    assert node("dgx-h100").span(8).tiers[0].reduces
    assert not node("dgx-a100-80gb").span(8).tiers[0].reduces
    assert not node("mi300x-node").span(8).tiers[0].reduces


@pytest.mark.parametrize(("size", "stride", "links"), [(8, 1, 7), (4, 2, 3), (2, 1, 1), (2, 4, 1)])
def test_all_to_all_wired_gpus_use_every_link_into_their_group(size: int, stride: int, links: int) -> None:
    assert node("mi300x-node").span(size, stride).tiers[0].bandwidth == links * 64e9


def test_azure_gb200_trays_share_an_nvlink_domain_of_18() -> None:
    hardware = node("azure-nd128isr-gb200-v6", nodes=36)
    assert [(t.name, t.size, t.bandwidth) for t in hardware.span(144).tiers] == [
        ("node", 4, 900e9), ("nvlink", 18, 900e9), ("infiniband", 2, 50e9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (24576, 1, [("node", 8, 450e9), ("pod", 384, 50e9), ("cluster", 8, 50e9 / 7)]),
        (16, 8, [("pod", 16, 50e9)]),
        (8, 3072, [("cluster", 8, 50e9 / 7)]),
        (64, 384, [("pod", 8, 50e9), ("cluster", 8, 50e9 / 7)]),
    ],
)
def test_llama_3_pods_are_oversubscribed_one_to_seven(
    size: int, stride: int, expected: list[tuple[str, int, float]]
) -> None:
    tiers = cluster("llama3-24k").span(size, stride).tiers
    assert [(t.name, t.size) for t in tiers] == [(name, count) for name, count, _ in expected]
    assert [t.bandwidth for t in tiers] == pytest.approx([bandwidth for *_, bandwidth in expected])


@given(
    name=st.sampled_from(["dgx-a100-80gb", "mi300x-node", "server-4x4090"]),
    sizes=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), max_size=3),
    stride=st.integers(1, 40),
)
def test_tiers_multiply_to_the_group_and_never_exceed_a_nodes_links(
    name: str, sizes: list[int], stride: int
) -> None:
    hardware = SIXTY_FOUR[name]
    size = 1
    for factor in sizes:
        size *= factor
    if (size - 1) * stride >= hardware.size:
        with pytest.raises(MemroofError, match="needs"):
            hardware.span(size, stride)
        return
    span = hardware.span(size, stride)
    assert span.size == size
    assert all(tier.size > 1 for tier in span.tiers)
    assert hardware.span(size, stride) is span


SIXTY_FOUR = {
    "dgx-a100-80gb": node("dgx-a100-80gb", 64),
    "mi300x-node": node("mi300x-node", 64),
    "server-4x4090": node("server-4x4090", 1),
}


# --- a user's own files ---


def write(root: Path, kind: str, name: str, text: str) -> Catalog:
    file = root / FOLDERS[kind] / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"name: {name}\nsource: an example of the tests\n" + textwrap.dedent(text), encoding="utf-8"
    )
    return Catalog(paths=[root], environment={})


def own_node(root: Path, components: str, wires: str = "", more: str = "") -> Catalog:
    text = "kind: node\ncomponents:\n" + textwrap.indent(textwrap.dedent(components).strip(), "  ") + "\n"
    if wires:
        text += "wires:\n" + textwrap.indent(textwrap.dedent(wires).strip(), "  ") + "\n"
    return write(root, "node", "mine", text + more)


def test_a_new_device_is_one_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "device",
        "npu-x",
        """\
        kind: npu
        vendor: Example
        architecture: example
        compute: {matrix: {bf16: 500 TFLOP/s}, vector: {fp32: 30 TFLOP/s}, units: 64, clock: 1.5 GHz}
        memory: {hbm: {technology: HBM3, capacity: 64 GiB, bandwidth: 2 TB/s}}
        power: {limit: 400 W}
        """,
    )
    catalog = own_node(
        tmp_path,
        "npu: {device: npu-x, count: 2}\nnvme: {device: samsung-990-pro-2tb, count: 2}",
        "- {between: [npu, npu], link: pcie-5.0-x16, lanes: 2}\n- {between: [nvme, npu], link: pcie-4.0-x4}",
    )
    hardware = catalog.hardware(HardwareChoice(node="mine"))
    assert hardware.device.name == "npu-x"
    assert hardware.memory.capacity == 64 * 2**30
    assert hardware.span(2).tiers[0].bandwidth == pytest.approx(2 * 63e9)
    assert hardware.machine.path("nvme1", "npu1.hbm").bandwidth == 7.45e9


TWO_SOCKETS = """
    gpu: {device: rtx-4090, count: 4}
    cpu: {device: xeon-gold-5320, count: 2}
    dram: {device: ddr4-3200-8ch, count: 2}
"""


def two_sockets(root: Path) -> Hardware:
    catalog = own_node(
        root,
        TWO_SOCKETS,
        """
        - {between: [gpu, cpu], link: pcie-4.0-x16}
        - {between: [dram, cpu], link: ddr4-3200, lanes: 8}
        - {between: [cpu, cpu], link: upi-11.2gt}
        """,
    )
    return catalog.hardware(HardwareChoice(node="mine"))


@pytest.mark.parametrize(
    ("size", "stride", "bandwidth"),
    [
        (2, 1, 31.5e9),  # (0,1) and (2,3): each pair on its own socket
        (4, 1, 22.4e9),  # one ring crosses the socket link once in each direction
        (2, 2, 11.2e9),  # (0,2) and (1,3): both pairs cross it
    ],
)
def test_groups_that_cross_sockets_share_the_link_between_them(
    tmp_path: Path, size: int, stride: int, bandwidth: float
) -> None:
    assert two_sockets(tmp_path).span(size, stride).tiers[0].bandwidth == pytest.approx(bandwidth)


def test_a_half_duplex_link_is_one_edge_that_both_directions_share(tmp_path: Path) -> None:
    write(
        tmp_path,
        "link",
        "bus",
        "kind: link\ntechnology: bus\nbandwidth: 10 GB/s\nduplex: half\nlatency: 1 us\n",
    )
    catalog = own_node(
        tmp_path, "gpu: {device: t4, count: 2}\nhub: {switch: true}", "- {between: [gpu, hub], link: bus}"
    )
    hardware = catalog.hardware(HardwareChoice(node="mine"))
    there, back = hardware.machine.peer_edges(0, 1), hardware.machine.peer_edges(1, 0)
    assert set(there) == set(back)
    assert hardware.span(2).tiers[0].bandwidth == 5e9
    direct = own_node(tmp_path, "gpu: {device: t4, count: 2}", "- {between: [gpu, gpu], link: bus}")
    assert direct.hardware(HardwareChoice(node="mine")).span(2).tiers[0].bandwidth == 5e9


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ("[gpu, cpu]", [("gpu0", "cpu0"), ("gpu1", "cpu0"), ("gpu2", "cpu1"), ("gpu3", "cpu1")]),
        ("[cpu, gpu]", [("cpu0", "gpu0"), ("cpu0", "gpu1"), ("cpu1", "gpu2"), ("cpu1", "gpu3")]),
        ("[dram, cpu]", [("dram0", "cpu0"), ("dram1", "cpu1")]),
        ("[gpu, gpu]", [(f"gpu{i}", f"gpu{j}") for i in range(4) for j in range(i + 1, 4)]),
    ],
)
def test_wiring_rules(tmp_path: Path, wire: str, expected: list[tuple[str, str]]) -> None:
    machine = own_node(tmp_path, TWO_SOCKETS, f"- {{between: {wire}, link: pcie-4.0-x16}}").machine("mine")
    assert [(a, b) for a, b, _ in machine.links[::2]] == expected
    assert [(b, a) for a, b, _ in machine.links[1::2]] == expected


def test_a_node_configures_the_memory_of_its_parts(tmp_path: Path) -> None:
    catalog = own_node(
        tmp_path,
        "gpu: {device: t4, capacity: 8 GB, bandwidth: 100 GB/s}\n"
        "dram: {device: ddr4-3200-8ch, capacity: 16 GB}",
        "- {between: [gpu, dram], link: pcie-3.0-x16}",
    )
    machine = catalog.machine("mine")
    assert machine.store("gpu.hbm").capacity == 8e9
    assert machine.store("gpu.hbm").read.bandwidth == 100e9
    assert machine.store("dram").capacity == 16e9
    assert machine.store("dram").read.bandwidth == pytest.approx(204.8e9)


RACKS = """\
    kind: cluster
    groups: [{node: dgx-h100, count: 256}]
    network:
      - {name: rack, link: infiniband-ndr, links_per_node: 8, nodes: 4}
      - {name: pod, link: infiniband-ndr, links_per_node: 8, nodes: 16, oversubscription: 2}
      - {name: hall, link: infiniband-hdr, links_per_node: 8, nodes: 64, oversubscription: 2}
      - {name: spine, link: infiniband-ndr, links_per_node: 8, nodes: 256}
"""


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (
            2048,
            1,
            [
                ("node", 8, 450e9),
                ("rack", 4, 50e9),
                ("pod", 4, 25e9),
                ("hall", 4, 12.5e9),
                ("spine", 4, 12.5e9),
            ],
        ),
        (32, 16, [("rack", 2, 50e9), ("pod", 4, 25e9), ("hall", 4, 12.5e9)]),
        (8, 64, [("pod", 2, 25e9), ("hall", 4, 12.5e9)]),
        (4, 128, [("hall", 4, 12.5e9)]),
        (8, 256, [("hall", 2, 12.5e9), ("spine", 4, 12.5e9)]),
        (4, 512, [("spine", 4, 12.5e9)]),
    ],
)
def test_four_levels_of_network(
    tmp_path: Path, size: int, stride: int, expected: list[tuple[str, int, float]]
) -> None:
    hardware = write(tmp_path, "cluster", "racks", RACKS).hardware(HardwareChoice(cluster="racks"))
    tiers = hardware.span(size, stride).tiers
    assert [(tier.name, tier.size, tier.bandwidth) for tier in tiers] == expected
    assert all(tier.latency == pytest.approx(2.7e-6) for tier in tiers if tier.name != "node")


# --- errors ---


def spec_problems(catalog: Catalog) -> list[tuple[int, str, str]]:
    with pytest.raises(SpecError) as error:
        catalog.node("mine")
    return [(problem.line, problem.key, problem.message) for problem in error.value.problems]


def test_unknown_names_and_uneven_counts_are_told_together_with_their_lines(tmp_path: Path) -> None:
    catalog = own_node(
        tmp_path,
        "gpu: {device: h100-smx, count: 8}\ncpu: {device: xeon-8480c, count: 3}",
        "- {between: [gpu, cpu], link: pcie-5.0-x16}\n- {between: [gpu, cpus], link: nvlink-44}",
        "network:\n  - {name: ib, link: infiniband-ndrr, links_per_node: 8}\n",
    )
    problems = spec_problems(catalog)
    assert [(line, key) for line, key, _ in problems] == [
        (5, "components.gpu.device"), (8, "wires[0].between"), (9, "wires[1].between[1]"),
        (9, "wires[1].link"), (11, "network[0].link"),
    ]  # fmt: skip
    messages = [message for *_, message in problems]
    assert "did you mean 'h100-sxm'" in messages[0]
    assert messages[1] == "8 parts cannot be spread evenly over 3"
    assert "did you mean 'cpu'" in messages[2]
    assert "'nvlink-4'" in messages[3]
    assert "'infiniband-ndr'" in messages[4]


@pytest.mark.parametrize(
    ("components", "wires", "message"),
    [
        ("cpu: {device: xeon-8480c, capacity: 1 GB}", "", "component 'cpu' has no memory of its own"),
        (
            "gpu: {device: t4}\nhub: {switch: true, bandwidth: 1 GB/s}",
            "",
            "component 'hub' has no memory of its own",
        ),
        ("gpu: {device: t4}", "- {between: [gpu, gpu], link: pcie-3.0-x16}", "needs at least two parts"),
        (
            "gpu: {device: t4}\ncpu: {device: xeon-8480c}",
            "- {between: [gpu, cpu], link: pcie-3.0-x16}\n- {between: [cpu, gpu], link: pcie-3.0-x8}",
            "two wires join cpu and gpu; use one, with 'lanes'",
        ),
        ("nvme: {device: samsung-990-pro-2tb}", "", "no component computes"),
    ],
)
def test_nodes_that_cannot_be_meant(tmp_path: Path, components: str, wires: str, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        own_node(tmp_path, components, wires).machine("mine")


def test_parts_that_nothing_joins_say_so(tmp_path: Path) -> None:
    catalog = own_node(tmp_path, "gpu: {device: t4, count: 2}\nnvme: {device: samsung-990-pro-2tb}")
    hardware = catalog.hardware(HardwareChoice(node="mine"))
    with pytest.raises(MemroofError, match=r"no path from nvme to gpu0\.hbm; add a wire"):
        hardware.machine.path("nvme", "gpu0.hbm")
    with pytest.raises(MemroofError, match="no path from gpu0 to gpu1"):
        hardware.span(2)
    with pytest.raises(MemroofError, match=r"has no memory 'gpu0\.hmb'; did you mean 'gpu0\.hbm'"):
        hardware.machine.store("gpu0.hmb")
    with pytest.raises(MemroofError, match="has no rank 2; it has 2"):
        hardware.machine.peer_edges(0, 2)


def test_groups_that_do_not_fit_say_what_they_need() -> None:
    hardware = node("dgx-a100-80gb", nodes=2)
    with pytest.raises(
        MemroofError, match="a group of 3 ranks with stride 8 needs 17 ranks; dgx-a100-80gb has 16"
    ):
        hardware.span(3, 8)
    with pytest.raises(MemroofError, match="at least 1"):
        hardware.span(0)
    assert hardware.with_nodes(4).span(3, 8).size == 3
    assert hardware.with_nodes(4).size == 32


def test_nodes_without_a_network_or_beyond_its_reach_say_so() -> None:
    with pytest.raises(MemroofError, match="no network that joins 2 nodes; give it a 'network' level"):
        node("server-4x4090", nodes=2).span(8)
    assert node("server-4x4090", nodes=2).span(4).size == 4
    with pytest.raises(MemroofError, match="no network that joins 3073 nodes"):
        cluster("llama3-24k").with_nodes(3073).span(16)


def test_unknown_node_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="dgx-h100"):
        CATALOG.machine("dgx-h10")
