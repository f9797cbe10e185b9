"""Fleets as a user writes them: routers, pools, prefill and decode apart, replicas that follow the load."""

import numpy as np
import pytest

from simulator.analysis.run import load, run
from simulator.serving.fleet_plan import make_fleet, part_of
from simulator.specs import MemroofError, SpecError

WORKLOAD = {
    "rate": "6 req/s",
    "requests": 60,
    "prompt": {"mean": 600, "sigma": 0.5, "maximum": 4000},
    "output": 40,
}
APART = {"prefill": {"replicas": 1}, "decode": {"replicas": 1}}


def scenario(fleet=None, workload=None, hardware="dgx-h100", model="llama3.1-8b", **strategy):
    content = {
        "kind": "serving", "hardware": hardware, "model": model, "workload": workload or WORKLOAD, "strategy": strategy
    }  # fmt: skip
    return content if fleet is None else {**content, "fleet": fleet}


def answer(*args, **kwargs):
    return run(scenario(*args, **kwargs))


def value(result, key):
    return result.values[key].value


def test_one_replica_behind_a_router_answers_as_it_does_alone():
    one = {"device": "h100-sxm"}
    alone, behind = answer(hardware=one), answer({"router": "least-requests"}, hardware=one)
    for key in (
        "time_to_first_token_p99",
        "time_per_output_token_p50",
        "end_to_end_mean",
        "output_throughput",
    ):
        assert value(behind, key) == pytest.approx(value(alone, key), rel=1e-9)
    np.testing.assert_allclose(
        behind.outcome.tables["requests"]["end"], alone.outcome.tables["requests"]["end"], rtol=1e-12
    )


def test_all_replicas_are_simulated_and_a_fleet_is_as_fast_as_its_parts():
    offline = {"arrival": "offline", "requests": 80, "prompt": 500, "output": 50}
    result = answer({"router": "round-robin"}, offline)
    assert result.outcome.devices == 8
    assert len(result.outcome.tables["pools"]["member"]) == 8
    assert value(result, "output_throughput") == pytest.approx(
        value(answer(None, offline), "output_throughput"), rel=0.02
    )


def test_a_router_that_looks_gives_a_shorter_tail_than_chance():
    busy = {**WORKLOAD, "rate": "130 req/s", "requests": 600}
    tails = {
        router: value(
            answer({"router": router}, busy, hardware={"device": "h100-sxm", "count": 4}),
            "time_to_first_token_p99",
        )
        for router in ("random", "least-requests")
    }
    assert tails["least-requests"] < tails["random"]


def test_a_prefix_aware_router_finds_more_of_what_is_cached():
    shared = {
        "rate": "20 req/s", "requests": 300, "prompt": 100, "output": 10,
        "prefix": {"length": 2000, "groups": 24, "share": 1.0},
    }  # fmt: skip
    found = {}
    for router in ("random", "prefix-aware"):
        result = answer(
            {"router": router},
            shared,
            hardware={"device": "h100-sxm", "count": 4},
            prefix_cache=True,
            memory_utilization=0.3,
        )
        found[router] = value(result, "time_to_first_token_mean")
    assert found["prefix-aware"] < found["random"]
    with pytest.raises(MemroofError, match="needs replicas with a 'prefix_cache'"):
        answer({"router": "prefix-aware"})


# --- apart ---


def test_decode_alone_is_not_held_up_by_prompts():
    busy = {**WORKLOAD, "rate": "25 req/s", "requests": 200}
    together = answer(None, busy, tensor_parallel=4)
    apart = answer(APART, busy, tensor_parallel=4)
    assert value(apart, "time_per_output_token_p99") < value(together, "time_per_output_token_p99")
    assert value(apart, "hand_over_p50") < 0.01
    labels = [use.label for use in apart.outcome.memory]
    assert labels == ["prefill 1", "decode 1"]


def test_a_narrow_link_holds_the_first_token_up_where_decode_sends_it():
    fast, slow = (
        answer({**APART, "bandwidth": rate, "first_token": "decode"}, tensor_parallel=4)
        for rate in ("100 GB/s", "100 MB/s")
    )
    assert value(slow, "time_to_first_token_p50") > value(fast, "time_to_first_token_p50") + 0.1
    early = answer({**APART, "bandwidth": "100 MB/s"}, tensor_parallel=4)
    assert value(early, "time_to_first_token_p50") < value(slow, "time_to_first_token_p50")
    layered = answer({**APART, "bandwidth": "1 GB/s", "transfer": "layerwise"}, tensor_parallel=4)
    after = answer({**APART, "bandwidth": "1 GB/s"}, tensor_parallel=4)
    assert value(layered, "hand_over_mean") < value(after, "hand_over_mean")


def test_a_cache_is_handed_over_at_the_rate_of_mooncakes_benchmark():
    # kvcache-ai/Mooncake, vLLM v1 with one prefill and one decode replica of Qwen3-8B over 200 GB/s: 32,768 tokens, 4,500 MB in
    # 31.65 ms; 4,096 tokens in 4.75 ms
    for tokens, seconds in ((32768, 31.65e-3), (4096, 4.75e-3)):
        workload = {"arrival": "list", "list": [{"arrival": "0 s", "prompt": tokens, "output": 2}]}
        result = answer(
            {**APART, "bandwidth": "200 GB/s"}, workload, hardware={"device": "h100-sxm", "count": 2}, model="qwen3-8b",
            max_batched_tokens=65536,
        )  # fmt: skip
        assert value(result, "hand_over_mean") == pytest.approx(seconds, rel=0.25)


def test_two_phases_on_one_gpu_take_turns_no_more():
    whole, shared = (
        answer(hardware={"device": "h100-sxm"}),
        answer({"prefill_share": 0.5}, hardware={"device": "h100-sxm"}),
    )
    assert shared.outcome.devices == 1
    assert value(shared, "time_per_output_token_p99") < value(whole, "time_per_output_token_p99")
    assert len(shared.outcome.memory) == 1


def test_a_part_of_a_device_has_that_part_of_its_units_and_peaks():
    cost = load(scenario()).cost
    half = part_of(cost, 0.5, 0.8)
    assert half.device.compute.units == cost.device.compute.units // 2
    assert half.device.compute.matrix["bf16"] == pytest.approx(cost.device.compute.matrix["bf16"] / 2)
    assert half.kernels.common["bandwidth"] == pytest.approx(0.8 * cost.kernels.common["bandwidth"])


# --- pools ---


def test_pools_may_have_hardware_and_options_of_their_own():
    fleet = {
        "router": "least-requests",
        "pools": [
            {"name": "large", "replicas": 1, "strategy": {"tensor_parallel": 2}},
            {"name": "small", "hardware": {"device": "l40s", "count": 2}},
        ],
    }
    setup = load(scenario(fleet))
    plan = make_fleet(setup, setup.scenario.fleet)
    assert [(pool.name, pool.replicas, pool.gpus) for pool in plan.pools] == [
        ("large", 1, 2),
        ("small", 2, 2),
    ]
    assert [own.hardware.device.name for own in plan.setups] == ["h100-sxm", "l40s"]
    result = answer(fleet)
    assert value(result, "mean_gpus") == pytest.approx(4.0)
    assert {use.label.split()[0] for use in result.outcome.memory} == {"large", "small"}


def test_replicas_come_with_the_load_and_go_after_it():
    scale = {"minimum": 1, "maximum": 6, "target_requests": 4, "start_delay": "2 s", "idle_time": "1 s"}
    burst = {
        "arrival": "list",
        "list": [{"arrival": f"{0.1 * i:g} s", "prompt": 500, "output": 200} for i in range(60)],
    }
    result = answer({"router": "least-requests", "pools": [{"autoscale": scale}]}, burst)
    assert 1.0 < value(result, "mean_gpus") < 6.0
    fixed = answer({"router": "least-requests", "pools": [{"replicas": 1}]}, burst)
    assert value(result, "time_to_first_token_p99") <= value(fixed, "time_to_first_token_p99") * (1 + 1e-9)
    assert value(result, "time_per_output_token_p50") < value(fixed, "time_per_output_token_p50")


def test_nothing_runs_where_a_pool_does_not_fit():
    result = answer(APART, hardware={"device": "l40s", "count": 2}, model="llama3.1-70b")
    assert not result.outcome.fits
    assert value(result, "output_throughput") == 0.0


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ({"prefill": {"replicas": 1}}, "belong together"),
        ({**APART, "pools": [{}]}, "has no meaning beside"),
        ({"bandwidth": "10 GB/s"}, "belongs to 'prefill' and 'decode'"),
        ({"prefill_share": 0.5, "bandwidth": "10 GB/s"}, "nothing is sent within a GPU"),
        ({"prefill_share": 0.5, "prefill": {"replicas": 2}, "decode": {}}, "pools differ in 'strategy' alone"),
        ({"imbalance": 3}, "belongs to router 'prefix-aware'"),
        (
            {"pools": [{"replicas": 2, "autoscale": {"maximum": 3, "target_requests": 4}}]},
            "no meaning beside 'autoscale'",
        ),
        ({"pools": [{"autoscale": {"minimum": 4, "maximum": 3, "target_requests": 4}}]}, "is below 'minimum'"),
        ({"pools": [{"replicas": 9}]}, "more GPUs than the 8"),
        ({"pools": [{}, {"replicas": 2}]}, "needs 'replicas'"),
        ({"pools": [{"hardware": {"device": "l40s"}, "replicas": 2}]}, "exceed the 1 of l40s"),
        ({"prefill": {"hardware": {"device": "l40s"}}, "decode": {"replicas": 1}}, "need 'fleet.bandwidth'"),
        (
            {"prefill": {"replicas": 1}, "decode": {"replicas": 1, "strategy": {"kv_precision": "fp8"}}},
            "same 'kv_precision'",
        ),
        (
            {"prefill": {"replicas": 1}, "decode": {"replicas": 1, "strategy": {"batching": "static"}}},
            "has no meaning where prefill and decode are apart",
        ),
        (
            {"prefill_share": 0.5, "decode": {"strategy": {"tensor_parallel": 2}}, "prefill": {}},
            "need the same degrees",
        ),
        ({"pools": [{"strategy": {"tensor_paralel": 2}}]}, "tensor_paralel"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(fleet, message):
    with pytest.raises((MemroofError, SpecError), match=message):
        answer(fleet)
