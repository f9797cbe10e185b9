"""What more hardware gives: builds near a node's, and what each changes."""

import pytest

from simulator.analysis.upgrades import builds, next_generation, upgrades
from simulator.specs import Catalog, MemroofError

SCENARIO = "offload/opt-30b-t4"


def test_builds_of_a_node_are_written_as_a_user_would_set_them() -> None:
    catalog = Catalog(environment={})
    found = dict(builds(catalog.node("server-1x4090"), catalog))
    assert found["more nvme (12 -> 13)"] == {"hardware.changes.components.nvme.count": "13"}
    assert found["twice the DRAM"] == {
        "hardware.changes.components.dram0.capacity": "768000000000 B",
        "hardware.changes.components.dram1.capacity": "768000000000 B",
    }
    assert "a CXL card (cxl-2.0-x8-256gb)" in found
    with_cards = dict(builds(catalog.node("cxl-server"), catalog))
    assert with_cards["one more cxl card"] == {"hardware.changes.components.cxl.count": "5"}
    # eight drives on four switches stay evenly spread
    assert "more nvme (8 -> 12)" in dict(builds(catalog.node("dgx-a100-80gb"), catalog))


def test_the_next_generation_of_a_link() -> None:
    assert next_generation("pcie-3.0-x4") == "pcie-4.0-x4"
    assert next_generation("ddr4-3200") == ""


def test_a_second_ssd_helps_what_waits_for_flash_and_costs_the_same_rent() -> None:
    found = upgrades(SCENARIO)
    assert found[0].description == "as it is"
    assert found[0].overrides == {}
    best = found[1]
    assert best.description == "more nvme (1 -> 2)"
    assert 0.1 < best.gain < 1.0  # flash binds half of the time: at most twice as fast
    assert [one.gain for one in found[1:]] == sorted((one.gain for one in found[1:]), reverse=True)
    document = best.to_dict()
    assert document["dollars_per_million_tokens"] < found[0].to_dict()["dollars_per_million_tokens"]
    memories = {use.memory for one in found if "CXL" in one.description for use in one.result.memory}  # type: ignore[union-attr]
    assert "cxl" in memories


def test_what_is_no_node_has_no_parts_to_change() -> None:
    with pytest.raises(MemroofError, match="is no node"):
        upgrades("serving/llama3.1-8b-h100-offline", overrides={"hardware": "{device: h100-sxm}"})
