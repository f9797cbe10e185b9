"""Training over tiers as a user asks for it."""

from __future__ import annotations

import json

from user_catalog import UserCatalog


def step_time(user: UserCatalog, *options: str) -> float:
    result = user.memroof("run", "7b-zero-offload", "--json", *options)
    assert result.exit_code == 0, result.stderr
    value: float = json.loads(result.stdout)["metrics"]["step_time"]["value"]
    return value


def test_a_delayed_update_is_one_option_away(user: UserCatalog) -> None:
    assert step_time(user, "--set", "strategy.update=delayed") < step_time(user)


def test_drives_of_the_machine_are_swept(user: UserCatalog) -> None:
    result = user.memroof("whatif", "175b-rtx-4090", "--vary", "hardware.changes.components.nvme.count=3,12")
    assert result.exit_code == 0, result.stderr
    assert "storage" in result.stdout.splitlines()[1]  # three drives bind


def test_what_does_not_fit_names_the_tier_the_bytes_and_a_way_out(user: UserCatalog) -> None:
    result = user.memroof(
        "run", "7b-zero-offload", "--set", "strategy.states=gpu", "--set", "strategy.gradients=gpu"
    )
    assert "gpu.hbm: needs" in result.stdout
    assert "bytes) short" in result.stdout
    assert "--set strategy.gradients=dram --set strategy.states=dram" in result.stdout


def test_a_wrong_option_is_one_line_with_the_right_ones(user: UserCatalog) -> None:
    result = user.memroof("run", "7b-zero-offload", "--set", "strategy.update=nightly")
    assert result.exit_code != 0
    assert "strategy.update: found 'nightly', expected one of step, layer, delayed" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    result = user.memroof("run", "7b-zero-offload", "--set", "strategy.states=cxl")
    assert "the machine has no cxl; it has gpu, dram, nvme" in result.stderr
