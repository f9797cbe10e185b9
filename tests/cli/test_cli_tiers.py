"""memroof tiers, upgrades, largest."""

import csv
import json
from pathlib import Path

from click.testing import CliRunner

from simulator.cli import main

SCENARIO = "offload/opt-30b-t4"


def invoke(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(main, list(arguments))
    return found.exit_code, found.stdout, found.stderr


def test_tiers_prints_memories_ways_and_overlap_and_writes_residency(tmp_path: Path) -> None:
    file = tmp_path / "resident.csv"
    code, text, said = invoke("tiers", SCENARIO, "--csv", str(file))
    assert code == 0
    for word in ("gpu.hbm", "nvme to dram", "on critical path", "share of the run in which both were busy"):
        assert word in text
    assert f"wrote {file}" in said
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["memory"] for row in rows} == {"gpu.hbm", "dram", "nvme"}
    code, text, _ = invoke("tiers", SCENARIO, "--json")
    assert code == 0
    assert {flow["name"] for flow in json.loads(text)["flows"]} >= {"gpu", "nvme.read"}


def test_upgrades_prints_the_best_first_and_how_to_set_it() -> None:
    code, text, _ = invoke("upgrades", SCENARIO)
    assert code == 0
    assert "more nvme (1 -> 2)" in text.splitlines()[4]
    assert "hardware.changes.components.nvme.count=2" in text
    code, text, _ = invoke("upgrades", SCENARIO, "--json")
    assert json.loads(text)[0]["change"] == 0.0


def test_upgrades_of_a_device_alone_say_that_it_has_no_parts() -> None:
    code, _, said = invoke(
        "upgrades", "training/llama3.1-8b-lora-rtx4090", "--set", "hardware={device: rtx-4090}"
    )
    assert code == 2
    assert "is no node" in said


def test_largest_prints_what_stops_the_next() -> None:
    code, text, _ = invoke("largest", SCENARIO)
    assert code == 0
    assert "which is stopped by" in text
    code, text, _ = invoke("largest", SCENARIO, "--json")
    assert {row["what"] for row in json.loads(text)} == {"batch", "batches of a block", "prompt", "model"}
