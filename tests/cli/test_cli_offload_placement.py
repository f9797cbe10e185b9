"""Placements as a user asks for them: left to the program, and what is refused in one line."""

from __future__ import annotations

import json

from user_catalog import UserCatalog

FLAGS = (
    "offload",
    "opt-30b",
    "gcp-n1-t4",
    "--prompt",
    "128",
    "--output",
    "8",
    "--batch",
    "16",
    "--batches",
    "2",
)
OPEN = ("--set", "strategy.weights=optimal", "--set", "strategy.kv=optimal")


def test_an_optimal_placement_says_what_binds_and_what_more_gives(user: UserCatalog) -> None:
    result = user.memroof(*FLAGS, *OPEN)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "placement by linear program for throughput: weights" in text
    assert "bound in prefill by" in text
    assert "10 GB more GPU memory gives" in text
    assert "output tokens per second that the linear program expects" in text


def test_json_has_the_placement_and_two_blocks_to_choose_from(user: UserCatalog) -> None:
    result = user.memroof(*FLAGS, *OPEN, "--set", "strategy.search={batch: [8, 16]}", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert any("best of 2 blocks" in line for line in data["assumptions"])
    found, planned = (
        data["metrics"][key]["value"] for key in ("generation_throughput", "planned_throughput")
    )
    assert 0.8 * planned < found < 1.05 * planned


def test_a_search_without_a_free_placement_is_refused_in_one_line(user: UserCatalog) -> None:
    result = user.memroof(*FLAGS, "--weights-dram", "1.0", "--set", "strategy.search={batch: [8, 16]}")
    assert result.exit_code != 0
    assert "'search' decides nothing where no placement is 'optimal'" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_cxl_that_is_not_there_is_refused_by_name(user: UserCatalog) -> None:
    result = user.memroof(*FLAGS, "--weights-cxl", "0.5")
    assert result.exit_code != 0
    assert "strategy.weights.cxl: gcp-n1-t4 has no cxl; it has gpu, dram, nvme" in " ".join(
        result.stderr.split()
    )
