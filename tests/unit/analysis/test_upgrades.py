"""What more hardware gives: builds near a node's, and what each changes."""

import pytest

from simulator.analysis.money import AMORTISATION, money
from simulator.analysis.upgrades import builds, next_generation, upgrades
from simulator.report.memory import upgrade_lines
from simulator.specs import Catalog, MemoryDevice, MemroofError

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


def test_what_is_added_costs_what_its_parts_cost() -> None:
    """A second drive of $400 beside a rented node: $400 over four years on top of the rent, and twice the tokens' share of it."""
    price = {"device.gcp-ssd-1.5tb.price.purchase": "400 USD"}
    base, *found = upgrades(SCENARIO, overrides=price)
    more = next(one for one in found if one.description == "more nvme (1 -> 2)")
    assert (more.added, more.unpriced) == (400.0, ())
    assert more.result is not None
    assert base.result is not None
    rent, rate = money(base.result)["dollars_per_second"], more.result.headline.value
    assert more.dollars_per_million_tokens == pytest.approx((rent + 400.0 / AMORTISATION) / rate * 1e6)
    memory = next(one for one in found if one.description == "twice the DRAM")
    assert memory.unpriced == ("dram",)


def test_memory_is_priced_by_the_capacity_that_a_node_gives_it() -> None:
    price = {"device.ddr4-3200-8ch.price.purchase": "1000 USD"}
    catalog = Catalog(overrides=price, environment={})
    device = catalog.device("ddr4-3200-8ch")
    assert isinstance(device, MemoryDevice)
    parts = {name: dollars for name, _, dollars in catalog.machine("server-1x4090").parts}
    assert parts["dram0"] == pytest.approx(1000.0 * 384e9 / device.capacity)


def test_where_nothing_fits_each_build_says_what_it_lacks() -> None:
    found = upgrades(SCENARIO, overrides={"strategy.weights": "gpu"})
    assert not any(one.fits for one in found)
    assert {one.change for one in found} == {0.0}
    lines = upgrade_lines(found)
    assert sum("42.2 GiB" in line and "does not fit" in line for line in lines) == len(found)
    assert not any("with --set" in line and "=" in line for line in lines[-2:])
