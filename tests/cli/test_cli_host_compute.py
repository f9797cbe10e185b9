"""Generation on GPU and CPUs, as a user types it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from simulator.cli import main


def run(*args: str):
    return CliRunner().invoke(main, list(args))


def test_experts_in_dram_answer_with_rates_of_both_phases_and_both_tiers():
    found = run("run", "offload/deepseek-v3-4090d")
    assert found.exit_code == 0, found.output
    for text in (
        "tokens per second of prefill",
        "tokens per second of decode",
        "CPUs work",
        "weights in DRAM",
        "fits            yes",
    ):
        assert text in found.stdout


def test_deferral_and_sockets_are_swept():
    found = run("whatif", "offload/deepseek-v3-4090d", "--vary", "strategy.deferred_experts=0,2,4", "--json")
    assert found.exit_code == 0, found.output
    rates = [row["value"] for row in json.loads(found.stdout)["rows"]]
    assert rates == sorted(rates) and len(rates) == 3


def test_one_line_says_what_is_wrong():
    found = run("run", "offload/deepseek-v3-4090d", "--set", "strategy.kernels=vektor")
    assert found.exit_code != 0
    assert "expected one of" in found.stderr and "did you mean 'vector'" in found.stderr
    assert "Traceback" not in found.stderr


def test_streamed_weights_answer_with_their_bound():
    found = run("run", "offload/mixtral-8x22b-a40-streamed")
    assert found.exit_code == 0, found.output
    assert "by the closed form of its bounds" in found.stdout
    assert "time in which weights are copied" in found.stdout
