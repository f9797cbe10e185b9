"""Expert caches as a user asks for them."""

from __future__ import annotations

import json

from user_catalog import UserCatalog

SHORT = ("--set", "workload.output=4", "--set", "workload.requests=1", "--set", "workload.prompt=32")
NAME = "offload/mixtral-8x7b-4090-experts"


def test_run_says_what_experts_cost(user: UserCatalog) -> None:
    result = user.memroof("run", NAME, *SHORT)
    assert result.exit_code == 0
    for line in ("accelerator waits for experts", "GOODPRED", "expert cache", "experts of equal popularity"):
        assert line in result.stdout


def test_slots_are_swept(user: UserCatalog) -> None:
    result = user.memroof("whatif", NAME, *SHORT, "--vary", "strategy.cached=0.25,0.75", "--json")
    assert result.exit_code == 0
    text = json.dumps(json.loads(result.stdout))
    assert "0.25" in text and "0.75" in text


def test_a_contradiction_is_one_line_with_its_place(user: UserCatalog) -> None:
    result = user.memroof("run", NAME, "--set", "strategy.policy=static")
    assert result.exit_code == 2
    assert "'prefetch' needs a cache that takes what arrives" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_does_not_fit_names_fewer_slots(user: UserCatalog) -> None:
    result = user.memroof("run", NAME, *SHORT, "--set", "strategy.cached=1")
    assert result.exit_code == 3
    assert "slots for" in result.stdout
