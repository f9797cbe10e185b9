"""The catalog: search path, overrides, references, scenarios from files and mappings."""

from pathlib import Path

import pytest

from simulator.specs import Catalog, MemroofError, SpecError, UnknownNameError, scenario_with
from simulator.specs.scenario_base import HardwareChoice

SCENARIO = """kind: training
hardware: dgx-a100-80gb
model: gpt3-175b
workload: {global_batch: 8, sequence: 2048}
strategy: {tensor_parallel: 8}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "scenarios" / "mine").mkdir(parents=True)
    (tmp_path / "scenarios" / "mine" / "one.yaml").write_text(SCENARIO)
    return tmp_path


def problems(error: SpecError) -> list[str]:
    return [str(problem) for problem in error.problems]


def test_a_users_folder_comes_first(root: Path) -> None:
    (root / "hardware_specs" / "links").mkdir(parents=True)
    shipped = Catalog(environment={}).file("link", "nvlink-3")
    own = root / "hardware_specs" / "links" / "nvlink-3.yaml"
    own.write_text(shipped.read_text().replace("300 GB/s", "200 GB/s"))
    for catalog in (Catalog([root], environment={}), Catalog(environment={"MEMROOF_PATH": str(root)})):
        assert catalog.file("link", "nvlink-3") == own
        assert catalog.link("nvlink-3").bandwidth == 200e9


def test_scenarios_by_path_by_stem_and_by_file(root: Path) -> None:
    catalog = Catalog([root], environment={})
    for name in ("mine/one", "one", str(root / "scenarios" / "mine" / "one.yaml")):
        scenario = catalog.scenario(name)
        assert scenario.name == "one"
        assert scenario.strategy.tensor_parallel == 8


def test_a_stem_that_two_folders_hold_is_not_guessed(root: Path) -> None:
    (root / "scenarios" / "yours").mkdir()
    (root / "scenarios" / "yours" / "one.yaml").write_text(SCENARIO)
    with pytest.raises(UnknownNameError, match="'mine/one' or 'yours/one'"):
        Catalog([root], environment={}).scenario("one")


def test_overrides_of_scenario_device_and_model(root: Path) -> None:
    overrides = {
        "strategy.tensor_parallel": "4",
        "workload.global_batch": "16",
        "model": "llama3.1-8b",
        "model.llama3.1-8b.num_hidden_layers": "8",
        "device.a100-80gb-sxm.memory.hbm.bandwidth": "3 TB/s",
        "node.dgx-a100-80gb.components.gpu.count": "4",
    }
    catalog = Catalog([root], overrides, environment={})
    scenario = catalog.scenario("one")
    assert (scenario.strategy.tensor_parallel, scenario.workload.global_batch) == (4, 16)
    assert catalog.model(scenario.model).num_hidden_layers == 8
    hardware = catalog.hardware(scenario.hardware)
    assert hardware.device.memory["hbm"].bandwidth == 3e12
    assert hardware.size == 4


def test_overrides_of_unknown_names(root: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown device 'a100-80gb'; did you mean 'a100-80gb-sxm'"):
        Catalog([root], {"device.a100-80gb.memory.hbm.bandwidth": "3 TB/s"}, environment={})
    with pytest.raises(SpecError) as caught:
        Catalog([root], {"strategy.tensor_paralel": "4"}, environment={}).scenario("one")
    assert problems(caught.value) == [
        "--set strategy.tensor_paralel: unknown key; did you mean 'tensor_parallel'?"
    ]


def test_wrong_references_stand_with_their_lines(root: Path) -> None:
    file = root / "scenarios" / "mine" / "one.yaml"
    file.write_text(SCENARIO.replace("dgx-a100-80gb", "dgx-a100-80bg").replace("gpt3-175b", "gpt-175b"))
    with pytest.raises(SpecError) as caught:
        Catalog([root], environment={}).scenario("mine/one")
    first, second = problems(caught.value)
    assert first.startswith(
        f"{file}:2:1: hardware.node: unknown node 'dgx-a100-80bg'; did you mean 'dgx-a100-80gb'"
    )
    assert second.startswith(f"{file}:3:1: model: unknown model 'gpt-175b'; did you mean 'gpt3-175b'")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "kind: training",
            "kind: trainig",
            "kind: found 'trainig', expected one of training, serving, offload; did you mean 'training'",
        ),
        ("kind: training\n", "", "kind: missing, expected one of training, serving, offload"),
        ("kind: training", "kind: [a]", "kind: found ['a'], expected one of"),
    ],
)
def test_kinds(root: Path, old: str, new: str, message: str) -> None:
    (root / "scenarios" / "mine" / "one.yaml").write_text(SCENARIO.replace(old, new))
    with pytest.raises(SpecError) as caught:
        Catalog([root], environment={}).scenario("mine/one")
    assert message in problems(caught.value)[0]


def test_scenarios_from_keys_and_values() -> None:
    catalog = Catalog(environment={})
    content = {
        "kind": "training",
        "hardware": {"node": "dgx-h100"},
        "model": "llama3.1-8b",
        "workload": {"global_batch": 8, "sequence": 128},
    }
    assert catalog.scenario_from(content).hardware.node == "dgx-h100"
    with pytest.raises(SpecError, match="scenario: model: unknown model"):
        catalog.scenario_from({**content, "model": "llama"}, file="scenario")


def test_a_checked_scenario_with_some_keys_set(root: Path) -> None:
    scenario = Catalog([root], environment={}).scenario("one")
    changed = scenario_with(scenario, {"strategy.recompute": "full", "hardware.nodes": "2"})
    assert (changed.strategy.recompute, changed.hardware.nodes, changed.strategy.tensor_parallel) == (
        "full",
        2,
        8,
    )
    with pytest.raises(SpecError, match=r"strategy.recompute"):
        scenario_with(scenario, {"strategy.recompute": "most"})


def test_hardware_by_device_node_and_cluster() -> None:
    catalog = Catalog(environment={})
    assert catalog.hardware(HardwareChoice(device="h100-sxm", count=4)).size == 4
    assert catalog.hardware(HardwareChoice(node="dgx-h100", nodes=3)).size == 24
    assert catalog.hardware(HardwareChoice(node="h100-sxm")).size == 1
    cluster = catalog.hardware(HardwareChoice(cluster="dgx-h100-superpod", nodes=5))
    assert (cluster.size, cluster.name) == (40, "dgx-h100-superpod")
    assert (
        catalog.hardware(HardwareChoice(node="dgx-h100-superpod")).nodes
        == catalog.cluster("dgx-h100-superpod").groups[0].count
    )


def test_bare_devices_are_joined_by_what_they_have() -> None:
    """Two A40 share an NVLink bridge; four talk over PCIe, since a bridge joins only pairs."""
    catalog = Catalog(environment={})
    pair = catalog.hardware(HardwareChoice(device="a40", count=2)).span(2).tiers[0].bandwidth
    four = catalog.hardware(HardwareChoice(device="a40", count=4)).span(4).tiers[0].bandwidth
    assert pair == catalog.link("nvlink-bridge-3").bandwidth
    eight = catalog.hardware(HardwareChoice(device="mi300x", count=8)).span(8).tiers[0].bandwidth
    assert eight == 7 * catalog.link("infinity-fabric-mi300x").bandwidth
    assert four == catalog.link("pcie-4.0-x16").bandwidth


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (HardwareChoice(device="xeon-8480-plus"), "xeon-8480-plus has no memory of its own; name a node"),
        (HardwareChoice(device="intel-p5510-7.68tb"), "only stores"),
        (HardwareChoice(node="dgx-h10"), "unknown hardware 'dgx-h10'; did you mean 'dgx-h100'"),
    ],
)
def test_hardware_that_cannot_run(choice: HardwareChoice, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        Catalog(environment={}).hardware(choice)


def test_names_must_equal_the_files(tmp_path: Path) -> None:
    (tmp_path / "hardware_specs" / "links").mkdir(parents=True)
    (tmp_path / "hardware_specs" / "links" / "a.yaml").write_text(
        "kind: link\nname: b\ntechnology: t\nsource: s\nbandwidth: 1 GB/s\nlatency: 1 us\n"
    )
    with pytest.raises(SpecError, match=r"a.yaml:2:1: name: found 'b', expected the file's name 'a'"):
        Catalog([tmp_path], environment={}).link("a")


def test_models_from_a_path(tmp_path: Path) -> None:
    catalog = Catalog(environment={})
    file = tmp_path / "mine.yaml"
    file.write_text(catalog.file("model", "llama3.1-8b").read_text())
    assert catalog.model(str(file)).hidden_size == 4096
    with pytest.raises(SpecError, match="cannot be read"):
        catalog.model(str(tmp_path / "none.yaml"))


def test_fitted_constants_lie_over_the_class(tmp_path: Path) -> None:
    """A device's own file over its architecture's over its kind's, key by key."""
    (tmp_path / "hardware_specs" / "calibration").mkdir(parents=True)
    (tmp_path / "hardware_specs" / "calibration" / "hopper.yaml").write_text(
        "kind: calibration\nname: hopper\nsource: made up\nmatmul: {peak_efficiency: 0.77}\nerror: {matmul: 0.03}\n"
    )
    catalog = Catalog([tmp_path], environment={})
    pcie, sxm, volta = (
        catalog.calibration(catalog.processor(n)) for n in ("h100-pcie", "h100-sxm", "v100-32gb-sxm")
    )
    assert (pcie.matmul.peak_efficiency, pcie.error["matmul"]) == (0.77, 0.03)
    assert pcie.attention == volta.attention
    assert pcie.name == "hopper"
    assert pcie.source.startswith("made up; ")
    assert sxm.name == "h100-sxm"
    assert sxm.matmul.peak_efficiency != 0.77
    assert "matmul" in sxm.fits
    assert volta.name == "gpu"


def test_a_kind_without_constants_is_named(tmp_path: Path) -> None:
    catalog = Catalog(environment={})
    catalog.roots = (tmp_path,)
    device = Catalog(environment={}).processor("h100-sxm")
    with pytest.raises(
        MemroofError, match=r"no calibration for kind 'gpu'; add hardware_specs/calibration/gpu.yaml"
    ):
        catalog.calibration(device)


def test_a_scenario_may_change_the_hardware_that_it_names(root: Path) -> None:
    catalog = Catalog(environment={})
    choice = HardwareChoice.model_validate(
        {"node": "server-1x4090", "changes": {"components": {"nvme": {"count": 3}}}}
    )
    assert len(catalog.hardware(choice).machine.tier("nvme")) == 3
    assert len(catalog.hardware(HardwareChoice(node="server-1x4090")).machine.tier("nvme")) == 12
    set_on_top = Catalog(overrides={"node.server-1x4090.components.nvme.count": "2"}, environment={})
    assert len(set_on_top.hardware(choice).machine.tier("nvme")) == 2
    device = HardwareChoice.model_validate({"node": "t4", "changes": {"power": {"limit": "60 W"}}})
    assert catalog.hardware(device).device.power.limit == 60.0


def test_keys_of_hardware_are_set_on_its_short_form_too(root: Path) -> None:
    for extra in ({}, {"hardware": "server-4x4090"}):
        catalog = Catalog(
            [root], {**extra, "hardware.changes.components.cpu0.device": "epyc-9654"}, environment={}
        )
        choice = catalog.scenario("one").hardware
        assert choice.node == extra.get("hardware", "dgx-a100-80gb")
        assert choice.changes == {"components": {"cpu0": {"device": "epyc-9654"}}}


def test_a_change_that_the_hardware_does_not_have_is_refused() -> None:
    choice = HardwareChoice.model_validate(
        {"node": "server-1x4090", "changes": {"components": {"nvme": {"cuont": 3}}}}
    )
    with pytest.raises(SpecError) as caught:
        Catalog(environment={}).hardware(choice)
    assert problems(caught.value) == [
        "hardware.changes.components.nvme.cuont: unknown key; did you mean 'count'?"
    ]
    with pytest.raises(SpecError) as caught:
        Catalog(overrides={"device.t4.power.limti": "60 W"}, environment={}).device("t4")
    assert problems(caught.value) == ["--set device.t4.power.limti: unknown key; did you mean 'limit'?"]


def test_offload_is_checked_by_its_method(root: Path) -> None:
    content = {
        "kind": "offload",
        "hardware": "gcp-n1-t4",
        "model": "opt-30b",
        "strategy": {"method": "zigzg"},
    }
    with pytest.raises(
        SpecError, match=r"strategy\.method: found 'zigzg', expected one of .*did you mean 'zigzag'"
    ):
        Catalog(environment={}).scenario_from(content)
    with pytest.raises(
        SpecError, match="kind: found 'ofload', expected one of training, serving, offload; did you mean"
    ):
        Catalog(environment={}).scenario_from({**content, "kind": "ofload"})
