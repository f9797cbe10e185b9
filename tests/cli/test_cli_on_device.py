"""Models that a phone reads from flash, as a user asks about them."""

from __future__ import annotations

import json
import re

from user_catalog import UserCatalog

MIXTRAL, DRAFT = "turbosparse-mixtral-47b-phone", "llama2-13b-phone-draft"


def test_a_47b_model_on_a_phone(user: UserCatalog) -> None:
    result = user.memroof("run", MIXTRAL)
    assert result.exit_code == 0
    text = result.stdout
    assert text.startswith(f"{MIXTRAL}: offload of turbosparse-mixtral-47b on phone-oneplus-12")
    assert re.search(r"^time per decode step +\d+ ms +\(80 %", text, re.MULTILINE)
    assert re.search(r"^bytes read from flash per token +[\d.]+ MiB$", text, re.MULTILINE)
    assert re.search(r"^speed-up over mmap +\d", text, re.MULTILINE)
    assert re.search(r"^fits +yes$", text, re.MULTILINE)
    assert "predictor 2.5" in text


def test_what_dram_buys(user: UserCatalog) -> None:
    result = user.memroof("whatif", MIXTRAL, "--vary", "strategy.memory=7GB,19GB", "--json")
    assert result.exit_code == 0
    few, many = json.loads(result.stdout)["rows"]
    assert few["fits"] and many["fits"]
    assert few["value"] > 3 * many["value"]


def test_a_draft_on_a_phone_and_the_same_seed_twice(user: UserCatalog) -> None:
    first, second = (user.memroof("run", DRAFT, "--json") for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    metrics = json.loads(first.stdout)["metrics"]
    assert metrics["speedup_over_standard"]["value"] > 2
    assert metrics["speedup_over_speculative"]["value"] > 0.8


def test_bad_input_is_one_line(user: UserCatalog) -> None:
    for options, message in (
        ("strategy.dense_processor=gpu", "has no processor 'gpu'"),
        ("strategy.cache.window=3", "'window' belongs to policy 'window'"),
        ("strategy.reads.phases=3", "phases"),
        ("strategy.memory=30GB", "memory: 30 GB asked for"),
    ):
        result = user.memroof("run", MIXTRAL, "--set", options)
        assert result.exit_code == 2, options
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_too_little_memory_says_what_would_fit(user: UserCatalog) -> None:
    result = user.memroof("run", MIXTRAL, "--set", "strategy.cache.size=16GB")
    assert result.exit_code == 3
    assert "what would make it fit" in result.stdout
    assert "a cache of 8000 MB" in result.stdout
