"""``memroof search`` as a user sees it."""

from __future__ import annotations

import json

from user_catalog import UserCatalog


def test_search_is_a_table_of_the_best(user: UserCatalog) -> None:
    result = user.memroof(
        "search", "tiny-training", "--top", "2", "--vary", "zero_stage=0,1", "--vary", "micro_batch=1"
    )
    assert result.exit_code == 0, result.output
    assert "legal" in result.stdout.splitlines()[0]
    assert "bottleneck" in result.stdout


def test_search_as_json(user: UserCatalog) -> None:
    result = user.memroof(
        "search",
        "tiny-training",
        "--top",
        "1",
        "--objective",
        "cost",
        "--vary",
        "strategy.zero_stage=0",
        "--json",
    )
    data = json.loads(result.stdout)
    assert data["objective"] == "cost"
    assert data["candidates"][0]["fits"] is True
    assert data["axes"]["zero_stage"] == [0]


def test_a_field_that_is_none_is_refused(user: UserCatalog) -> None:
    result = user.memroof("search", "tiny-training", "--vary", "tensor_paralel=1")
    assert result.exit_code == 2
    assert "tensor_parallel" in result.stderr
