"""Frameworks of plain tensors: joined caches, logits of whole chunks, scores that go through memory (InfLLM's table 2)."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from serving_cases import make_setup

from simulator.analysis import run
from simulator.serving import make_plan
from simulator.serving.accounts import TRAFFIC
from simulator.serving.joined_cache import JoinedCache
from simulator.serving.kv_cache import LayerGroup
from simulator.specs import Catalog, MemroofError

CATALOG = Catalog()
SHORT = CATALOG.model("llama3-8b")
LONG = {"arrival": "offline", "requests": 2, "prompt": 100_000, "output": 4}


def test_an_allocator_keeps_the_tensors_of_every_chunk() -> None:
    cache = JoinedCache((LayerGroup(1000.0, np.inf, 64),), 1e9)
    # chunks end at 8, 16 and 20 tokens: 44 tokens' worth of tensors are taken, 20 are in use
    assert cache.taken([20], 8) == 44_000.0
    assert float(cache.size(20)) == pytest.approx(20_000 * (1 + 1 / 64))
    assert cache.tokens == int(1e9 / (1000 * (1 + 1 / 64)))


def test_every_step_copies_the_cache() -> None:
    plain = make_plan(make_setup(workload=LONG, hardware="dgx-h100")).pricer
    joined = make_plan(make_setup(workload=LONG, hardware="dgx-h100", kv_layout="joined")).pricer
    contexts = np.array([100_000])
    more = joined.decode(contexts, 1).total(1)[TRAFFIC] - plain.decode(contexts, 1).total(1)[TRAFFIC]
    assert more == pytest.approx(2 * 100_001 * 131072, rel=0.01)  # Llama 3.1 8B: 128 KiB a token


def test_logits_of_a_whole_chunk() -> None:
    last = make_plan(make_setup(workload=LONG, hardware="dgx-h100", max_batched_tokens=4096))
    whole = make_plan(make_setup(workload=LONG, hardware="dgx-h100", max_batched_tokens=4096, logits="all"))
    assert whole.resident["logits"] == 4096 * 128256 * 6.0
    new, cached, none = np.array([4096]), np.array([0]), np.array([], np.int64)
    seconds = [float(plan.pricer.mixed(new, cached, none, 1).seconds[0]) for plan in (last, whole)]
    assert seconds[1] - seconds[0] > 2 * 4095 * 128256 * 4096 / 989e12


def test_scores_of_plain_attention_go_through_memory() -> None:
    options = {"hit_rate": 1.0, "fused": True}
    new, cached, none = np.array([512]), np.array([50_000]), np.array([], np.int64)
    moved = [
        make_plan(make_setup(workload=LONG, hardware="dgx-h100", block_retrieval={**options, "fused": fused}))
        .pricer.mixed(new, cached, none, 1).total(1)[TRAFFIC]
        for fused in (True, False)
    ]  # fmt: skip
    # 32 heads and layers, 512 queries, a window of 4,096 with the queries themselves, 128 sinks and 16 blocks of 128
    scores = 32 * 32 * 512 * (4096 + 512 + 128 + 2048) * 2.0
    assert moved[1] - moved[0] == pytest.approx(12.5 * scores)


def test_table_2_of_infllm() -> None:
    found = [run(f"published/infllm2024/{name}", catalog=CATALOG) for name in ("infllm", "full-attention")]
    assert all(check.ok for result in found for check in result.expectations)
    memory, time = (
        found[0].outcome.metrics[key].value / found[1].outcome.metrics[key].value
        for key in ("gpu_memory", "end_to_end_mean")
    )
    assert memory == pytest.approx(26.3 / 76.6, rel=0.2)
    assert time == pytest.approx(26.7 / 40.4, rel=0.2)


def test_retrieval_reaches_beyond_the_models_positions() -> None:
    options = {"hit_rate": 0.5}
    plan = make_plan(make_setup(SHORT, workload=LONG, hardware="dgx-h100", block_retrieval=options))
    assert plan.requests.longest > plan.pricer.model.max_position_embeddings
    with pytest.raises(MemroofError, match="exceeds the 8192 positions"):
        make_plan(make_setup(SHORT, workload=LONG, hardware="dgx-h100"))


def test_layouts_without_blocks_move_none() -> None:
    with pytest.raises(ValidationError, match="moves blocks"):
        make_setup(kv_layout="joined", block_retrieval={"hit_rate": 0.5})
    with pytest.raises(ValidationError, match="has no logits"):
        make_setup(endpoint="embed", logits="all")
