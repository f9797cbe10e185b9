"""Layouts, prefix caches and tiers as a scenario asks for them."""

import numpy as np
import pytest
from serving_cases import LLAMA_8B, LLAMA_70B, make_setup, small

from simulator.serving import PagedCache, make_plan, simulate
from simulator.serving.kv_cache import ContiguousCache, VirtualCache
from simulator.serving.tiers import Channel
from simulator.specs import MemroofError, ServingStrategy

NODE = {"node": "dgx-h100"}
CHAT = {
    "rate": "5 req/s", "requests": 60, "prompt": 200, "output": 30, "prefix": {"length": 1000, "groups": 2},
    "session": {"turns": 3, "think_time": "1 s"},
}  # fmt: skip


def test_every_layout_has_its_cache():
    assert isinstance(make_plan(make_setup()).cache, PagedCache)
    slots = make_plan(make_setup(kv_layout="contiguous", reserved_tokens=4096)).cache
    assert isinstance(slots, ContiguousCache)
    assert slots.slot == 4096 * 131072
    pages = make_plan(make_setup(kv_layout="virtual", page_size="64 KiB", mapping_latency="10 us")).cache
    assert isinstance(pages, VirtualCache)
    assert pages.growth_time == pytest.approx(10e-6 / 65536)


def test_a_slot_is_as_long_as_the_model_allows_unless_told():
    setup = make_setup(LLAMA_8B.model_copy(update={"max_position_embeddings": 8192}), kv_layout="contiguous")
    plan = make_plan(setup)
    assert plan.cache.slot == 8192 * 131072
    assert plan.policy.watermark == 0.0


def test_larger_pages_waste_more():
    def wasted(**strategy):
        return simulate(make_setup(**strategy)).metrics["kv_fragmentation"].value

    paged = wasted()
    small_pages = wasted(kv_layout="virtual", page_size="64 KiB")
    large_pages = wasted(kv_layout="virtual")
    slots = wasted(kv_layout="contiguous", reserved_tokens=4096)
    assert 0.0 < paged < small_pages < large_pages < slots < 1.0
    # about 215 of 1,024 tokens, of 4,096 tokens
    assert large_pages == pytest.approx(1 - 215 / 1024, abs=0.02)
    assert slots == pytest.approx(1 - 215 / 4096, abs=0.02)


def test_a_prefix_cache_saves_what_prompts_have_in_common():
    plain, cached = (
        simulate(make_setup(workload=CHAT, **strategy)) for strategy in ({}, {"prefix_cache": True})
    )
    rate = cached.metrics["prefix_hit_rate"].value
    # 1,000 of 1,200, 1,230 of 1,430 and 1,460 of 1,660 tokens but for the first of each group and a block each
    assert rate == pytest.approx((1000 + 1229 + 1459) / (1200 + 1430 + 1660), rel=0.06)
    ttft = "time_to_first_token_p50"
    assert cached.metrics[ttft].value < plain.metrics[ttft].value
    assert "prefix_hit_rate" not in plain.metrics
    saved = cached.metrics["prefix_tokens_saved"].value
    assert (
        saved == cached.tables["requests"]["found"].sum() == rate * cached.tables["requests"]["prompt"].sum()
    )


def test_blocks_that_hbm_evicts_are_found_in_dram():
    # room for some 500 blocks of 16 tokens beside the weights of each of 8 replicas
    few = {
        "hardware": NODE, "workload": CHAT | {"requests": 480, "session": {"turns": 3, "think_time": "60 s"}}, "memory_utilization": 0.22, "max_batched_tokens": 2048,
        "max_batch": 4,
    }  # fmt: skip
    outcome = simulate(make_setup(**few, prefix_cache={"dram": "400 GiB", "nvme": "1 TB"}))
    without = simulate(make_setup(**few, prefix_cache=True))
    assert outcome.metrics["kv_from_dram_bytes"].value > 0.0
    assert outcome.metrics["prefix_hit_rate"].value > without.metrics["prefix_hit_rate"].value
    assert [use.tier for use in outcome.memory] == ["hbm", "dram", "nvme"]
    dram = outcome.memory[1]
    assert dram.capacity == pytest.approx(50 * 2**30)
    assert dram.peak == pytest.approx(outcome.metrics["prefix_peak_bytes_dram"].value)


def test_swapping_takes_the_host_link():
    workload = {"arrival": "offline", "requests": 200, "prompt": 100, "output": 900}
    fields = {"hardware": NODE, "workload": workload, "memory_utilization": 0.235, "watermark": 0.0}
    swap = simulate(make_setup(**fields, preemption="swap", overlap_transfers=False))
    recompute = simulate(make_setup(**fields))
    assert swap.metrics["preemptions"].value > 0
    assert swap.bottlenecks["host link"] == pytest.approx(swap.metrics["kv_copy_stall"].value)
    assert swap.class_times["transfer"] == swap.bottlenecks["host link"]
    assert "host link" not in recompute.bottlenecks
    assert sum(swap.bottlenecks.values()) == pytest.approx(swap.total_time)
    assert swap.memory[1].by_category == {"swapped KV": pytest.approx(swap.memory[1].peak)}
    # PCIe 5.0 x16 carries 63 GB/s
    moved = swap.metrics["kv_swapped_out_bytes"].value + swap.metrics["kv_swapped_in_bytes"].value
    assert moved / swap.metrics["kv_copy_stall"].value < 63e9


def test_gpus_that_copy_at_once_share_what_their_ways_have_in_common():
    one, two = (
        make_plan(make_setup(LLAMA_70B, NODE, tensor_parallel=tensor, preemption="swap")).caching.swap
        for tensor in (1 + 3, 8)
    )
    # two GPUs share a switch in either case
    assert one.up.rate == two.up.rate
    alone = make_plan(make_setup(LLAMA_8B, NODE, preemption="swap")).caching.swap
    assert alone.up.rate == pytest.approx(2 * one.up.rate, rel=0.01)
    assert alone.capacity == pytest.approx(2 * 1024 * 2**30 / 8)


def test_a_copy_of_nothing_takes_no_time():
    assert Channel(10.0, 1.0).time(0.0) == 0.0
    assert Channel(10.0, 1.0).time(20.0) == 3.0


def test_classes_have_latencies_of_their_own():
    classes = [
        {"name": "chat", "prompt": 100, "output": 20},
        {"name": "long", "prompt": 4000, "output": 20, "priority": 1},
    ]
    outcome = simulate(
        make_setup(workload={"rate": "5 req/s", "requests": 60, "classes": classes}, order="priority")
    )
    chat, long = (outcome.metrics[f"time_to_first_token_p50_{name}"].value for name in ("chat", "long"))
    assert chat < long
    assert set(np.unique(outcome.tables["requests"]["kind"])) == {0, 1}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"preemption": "swap"}, "no dram for KV blocks"),
        ({"prefix_cache": {"dram": "1 GiB"}}, "no dram for KV blocks"),
        ({"kv_layout": "virtual", "page_size": "4 KiB"}, "multiples of 64 KiB"),
        ({"kv_layout": "virtual", "page_size": "100 KiB"}, "multiples of 64 KiB"),
        ({"kv_layout": "contiguous", "reserved_tokens": 100}, "must hold the longest request"),
    ],
)
def test_what_cannot_be_is_refused(strategy, message):
    with pytest.raises(MemroofError, match=message):
        make_plan(make_setup(**strategy))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"prefix_cache": {"dram": "3 TiB"}}, "exceed the 2048 GiB"),
        ({"prefix_cache": {"dram": "1 TiB"}, "preemption": "swap"}, "leaves no DRAM"),
        ({"prefix_cache": {"dram": "1 TiB"}, "preemption": "swap", "swap_space": "1.5 TiB"}, "exceed the DRAM together"),
    ],
)  # fmt: skip
def test_no_more_dram_than_there_is(strategy, message):
    with pytest.raises(MemroofError, match=message):
        make_plan(make_setup(hardware=NODE, **strategy))


def test_windows_share_no_prefixes():
    with pytest.raises(MemroofError, match="sliding window"):
        make_plan(make_setup(small(sliding_window=64), prefix_cache=True))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"batching": "static", "prefix_cache": True}, "no meaning with batching 'static'"),
        ({"batching": "static", "iteration": "mixed"}, "no meaning with batching 'static'"),
        ({"batching": "static", "preemption": "swap"}, "never preempts"),
        ({"priority_preemption": True}, "needs order 'priority'"),
        ({"priority_preemption": True, "order": "priority", "iteration": "decode-first"}, "lets decodes end"),
        ({"prefix_cache": True, "kv_layout": "virtual"}, "needs kv_layout 'paged'"),
        ({"prefix_cache": {"nvme": "1 TB"}}, "filled from DRAM"),
        ({"kv_layout": "contiguous", "preemption": "swap"}, "reserves all that a request needs"),
        ({"kv_layout": "contiguous", "watermark": 0.1}, "reserves all that a request needs"),
        ({"kv_layout": "virtual", "block_size": 32}, "'block_size' belongs to kv_layout 'paged'"),
        ({"reserved_tokens": 32}, "belongs to kv_layout 'contiguous'"),
        ({"page_size": "2 MiB"}, "belongs to kv_layout 'virtual'"),
        ({"mapping_latency": "1 us"}, "belongs to kv_layout 'virtual'"),
        ({"swap_space": "1 GiB"}, "belongs to preemption 'swap'"),
        ({"overlap_transfers": False}, "needs transfers"),
    ],
)
def test_options_that_decide_nothing_are_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        ServingStrategy.model_validate(strategy)


def test_a_prefix_cache_may_be_switched_off():
    assert ServingStrategy.model_validate({"prefix_cache": False}).prefix_cache is None
    assert ServingStrategy.model_validate({"prefix_cache": "true"}).prefix_cache is not None
