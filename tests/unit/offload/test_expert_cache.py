"""Generation with a cache of experts: what moves, what waits, and laws that no routing breaks."""

from __future__ import annotations

import numpy as np
import pytest
from expert_cases import EXPERT, content, experts, with_model

from simulator.analysis.run import load, run
from simulator.offload import remedies, simulate
from simulator.offload.expert_cache.balance import (
    activation_movement,
    balanced_experts,
    parameter_movement,
    split_by_load,
)
from simulator.offload.expert_cache.plan import make_plan
from simulator.offload.expert_cache.prices import array_edge
from simulator.specs import Catalog, MemroofError, SpecError

FETCH = EXPERT / 10e9
"""Seconds of an expert over the toy's PCIe."""
PREFETCH = {"accuracy": 1.0, "lead": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture
def outcome(folder):
    return lambda **keys: simulate(experts(folder, **keys))


def carried(outcome) -> float:
    """Bytes over the toy's PCIe towards the GPU."""
    table = outcome.tables["links"]
    return dict(zip(table["link"], table["bytes"].tolist(), strict=True)).get("cpu>gpu", 0.0)


def value(outcome, name: str) -> float:
    return outcome.metrics[name].value


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_what_a_layer_of_experts_moves():
    # MoNDE, section 3.1: all 128 experts of a layer of NLLB-MoE are 4.3e9 elements; 512 tokens there and back are 2.1e6
    assert parameter_movement(128, 2048, 8192) == 2 * 128 * 2048 * 8192
    assert activation_movement(512, 2048) == 2 * 512 * 2048


def test_balance_of_two_paths_is_the_limit_of_the_split_by_load():
    # both paths bound by bandwidth: the 512 GB/s device keeps what 31.5 GB/s of PCIe cannot bring meanwhile
    count, weight, link, memory = 10_000, 67e6, 31.5e9, 512e9
    split = split_by_load([weight / link] * count, [weight / memory] * count)
    assert split == pytest.approx(balanced_experts(count, link, memory), abs=1.0)
    assert balanced_experts(128, link, memory) == pytest.approx(128 * 31.5 / 543.5)


def test_the_busiest_experts_are_fetched_first():
    # one expert of 100 s at home is worth 10 s of fetching; the others are not
    assert split_by_load([10.0, 10.0, 10.0], [100.0, 1.0, 1.0]) == 1
    assert split_by_load([10.0], [1.0]) == 0


def test_arrays_pad_rows():
    # MoNDE: 64 arrays of 4 x 4
    device = Catalog(environment={}).processor("monde-cxl")
    assert array_edge(device, device.compute.matrix["bf16"]) == 4


def test_bytes_of_published_models():
    # MoNDE, table 2: experts and everything else, in GB, from a summary
    for model, size, rest in (("switch-large-128", 51.5, 1.1), ("nllb-moe-54b", 103.1, 5.7)):
        plan = make_plan(load(content(hardware="monde-server", model=model, experts="cxl", policy="none")))
        assert plan.all_experts * plan.whole_expert_bytes == pytest.approx(size * 1e9, rel=0.002)
        assert plan.other_weights == pytest.approx(rest * 1e9, rel=0.04)


def test_a_token_of_deepseek_moe():
    # 27 layers of 6 experts of 3 x 2048 x 1408: 2.80 GB, of which half in 58.1 ms are 24.1 GB/s (ProMoE, section 7)
    plan = make_plan(load(content(hardware="desktop-4090", model="deepseek-moe-16b", cached=0.5)))
    token = plan.moe_layers * plan.per_token * plan.expert_bytes
    assert token == pytest.approx(2.80e9, rel=0.002)
    assert 0.5 * token / plan.fetch.rate == pytest.approx(58.1e-3, rel=0.08)


# --- where time goes -------------------------------------------------------------------------------------------------


def test_all_resident_is_pure_computation(outcome):
    found = outcome(cached=1.0)
    assert value(found, "decode_slowdown") == pytest.approx(1.0)
    assert value(found, "decode_hit_rate") == 1.0
    assert found.busy_fraction == pytest.approx(1.0)
    assert carried(found) == 0.0


def test_each_miss_is_a_fetch_that_the_accelerator_waits_for(outcome):
    found = outcome(policy="none", loads="in-turn")
    # two of a token's experts in each of four layers, one after the other; shared with nothing
    assert value(found, "decode_expert_wait") == pytest.approx(4 * 2 * FETCH, rel=1e-6)
    assert value(found, "decode_hit_rate") == 0.0
    passes = 2 * 8 * 4 * 2  # requests, steps, layers, experts
    prefill = carried(found) - passes * EXPERT
    assert prefill == pytest.approx(value(found, "prefill_expert_wait") * 2 * 10e9, rel=1e-6)


@pytest.mark.parametrize("keys", [
    {"cached": 0.5}, {"cached": 0.5, "policy": "lfu"}, {"cached": 0.5, "policy": "decay", "decay": 0.9},
    {"cached": 0.5, "policy": "static"}, {"cached": 0.5, "loads": "in-turn"}, {"cached": 0.5, "order": "index"},
    {"cached": 0.25, "prefetch": {"accuracy": 0.6, "lead": 2, "latency": "20 us"}},
    {"policy": "layers", "cached": 0.5, "loads": "whole-layer"}, {"routing": {"hit_rate": 0.4}, "cached": 0.5},
])  # fmt: skip
def test_no_run_beats_its_link_or_its_computation(outcome, keys):
    found = outcome(**{**keys, "routing": {"skew": 0.5, **keys.get("routing", {})}})
    total = 2 * value(found, "prefill_time") + 16 * value(found, "time_per_output_token")
    assert total == pytest.approx(found.timeline.makespan)
    assert total >= carried(found) / 10e9 * (1 - 1e-9)
    for phase in ("prefill", "decode"):
        assert value(found, f"{phase}_slowdown") >= 1.0 - 1e-9
        assert 0.0 <= value(found, f"{phase}_hit_rate") <= 1.0
    assert sum(found.bottlenecks.values()) == pytest.approx(found.total_time)
    assert sum(found.class_times.values()) == pytest.approx(found.total_time)


@pytest.mark.parametrize("policy", ["lru", "lfu", "static"])
def test_bytes_are_those_of_the_misses(folder, policy):
    setup = experts(folder, policy=policy, cached=0.5, routing={"skew": 0.7})
    found = simulate(setup)
    moved = carried(found)
    copies = [name for name in found.timeline.program.names if name.startswith("expert ")]
    assert moved == pytest.approx(len(copies) / 3 * EXPERT)  # three chunks each
    # 2 requests of 8 steps through 4 layers of 2 experts; what else was fetched, the prefills did
    in_decode = (1.0 - value(found, "decode_hit_rate")) * 2 * 8 * 4 * 2
    in_prefill = len(copies) / 3 - in_decode
    assert in_prefill == pytest.approx(round(in_prefill), abs=1e-6)
    assert 0 < in_prefill <= 2 * 4 * 8 * (1.0 - value(found, "prefill_hit_rate"))


def test_more_slots_wait_less(outcome):
    waits = [
        value(outcome(cached=share, policy="static"), "decode_expert_wait") for share in (0.0, 0.25, 0.5, 1.0)
    ]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_prefill_in_turn_walks_through_an_lru_cache(outcome):
    # all eight experts in order through four slots: each is thrown out before its turn; resident ones first hit all four
    assert value(outcome(cached=0.5, loads="in-turn", workload={"prompt": 128}), "prefill_hit_rate") < 0.25
    assert value(outcome(cached=0.5, workload={"prompt": 128}), "prefill_hit_rate") == pytest.approx(0.5)


def test_prefetch_hides_fetches_where_the_link_has_time(outcome):
    slow = {"execution": "eager", "issue_time": "100 us", "cached": 0.5}
    alone, ahead = outcome(**slow), outcome(**slow, prefetch=PREFETCH)
    assert value(ahead, "decode_expert_wait") < 0.5 * value(alone, "decode_expert_wait")
    assert value(ahead, "prediction_accuracy") == 1.0
    assert value(ahead, "good_prediction") == pytest.approx(value(ahead, "fetch_rate"))
    useless = outcome(**slow, prefetch={"accuracy": 0.0, "lead": 1})
    assert value(useless, "time_per_output_token") > value(ahead, "time_per_output_token")


def test_substitutes_move_nothing(outcome):
    keys = {"policy": "predicted", "predicted": {"accuracy": 0.8, "prompts": 20}, "cached": 0.5}
    found = outcome(**keys, misses="substitute")
    assert carried(found) == 0.0
    assert value(found, "decode_slowdown") == pytest.approx(1.0)
    assert value(found, "decode_substituted_share") == pytest.approx(1.0 - value(found, "decode_hit_rate"))
    # 4 layers of 4 experts over 10 GB/s, for each of 20 prompts
    assert value(found, "set_load_time_per_prompt") == pytest.approx(16 * FETCH / 20, rel=1e-3)


def test_experts_on_the_cpu_read_dram_and_send_activations(outcome):
    found = outcome(policy="none", misses="home")
    table = outcome(policy="none", misses="home").tables["links"]
    bytes_of = dict(zip(table["link"], table["bytes"].tolist(), strict=True))
    passes = 2 * 8 * 4  # requests, steps, layers
    tokens = passes + 2 * 4 * 16
    # 2·B·S·d over the link, half of it each way (MoNDE, section 3.1)
    assert bytes_of["cpu>gpu"] == pytest.approx(tokens * 256 * 2)
    # each expert from 20 GB/s of DRAM, and one token's 2 x 0.5 MFLOP at 1 TFLOP/s hide behind it
    assert value(found, "decode_expert_wait") == pytest.approx(4 * 2 * EXPERT / 20e9, rel=0.05)


def test_near_data_experts_beat_fetching_them():
    setup = content(
        hardware="monde-server", model="nllb-moe-54b", experts="cxl", policy="none", misses="balanced",
        baseline={"misses": "fetch"}, workload={"prompt": 128, "output": 3, "requests": 1},
    )  # fmt: skip
    setup["strategy"]["precision"] = "bf16"
    found = run(setup).outcome
    assert value(found, "encoder_speedup") > 3.0
    assert value(found, "decode_elsewhere_share") == 1.0
    # the fetched share of the rest is near what bandwidth alone says: 31.5 of 31.5 + 512
    assert 1.0 - value(found, "prefill_elsewhere_share") == pytest.approx(
        balanced_experts(1, 31.5, 512.0), abs=0.06
    )


def test_a_baseline_runs_beside_it(outcome):
    found = outcome(cached=0.5, baseline={"loads": "in-turn"})
    alone = outcome(cached=0.5, loads="in-turn")
    assert value(found, "baseline_time_per_output_token") == value(alone, "time_per_output_token")
    ratio = value(alone, "time_per_output_token") / value(found, "time_per_output_token")
    assert value(found, "decode_speedup") == pytest.approx(ratio)


def test_the_same_again(outcome):
    first, second = (outcome(cached=0.25, prefetch=PREFETCH) for _ in range(2))
    assert {k: m.value for k, m in first.metrics.items()} == {k: m.value for k, m in second.metrics.items()}
    other = outcome(cached=0.25, prefetch=PREFETCH, routing={"seed": 1})
    assert value(other, "generation_time") != value(first, "generation_time")


def test_a_given_hit_rate(outcome):
    found = outcome(routing={"hit_rate": 0.75}, cached=0.75, workload={"requests": 8})
    assert value(found, "decode_hit_rate") == pytest.approx(0.75, abs=0.06)


def test_reuse_table_says_what_hangs_on_locality(outcome):
    table = outcome(cached=0.5).tables["reuse"]
    assert np.all(np.diff(table["decode_hit_rate"]) > 0.0)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_slots_take_what_is_free(folder):
    # 1 GB less weights and cache holds all 32 experts; 20 MB hold what is left beside everything else
    assert sum(make_plan(experts(folder)).slots) == 32
    plan = make_plan(experts(folder, pinned=0.02))
    assert 0 < sum(plan.slots) < 32
    found = simulate(experts(folder, pinned=0.02))
    use = found.memory[0]
    assert use.by_category["expert cache"] == sum(plan.slots) * EXPERT
    assert 0 <= use.free < EXPERT * (1 + plan.moe_layers)


def test_slots_are_spread_over_layers(folder):
    assert make_plan(experts(folder, cached=0.6)).slots == (5, 5, 5, 4)  # 19 of 32
    assert make_plan(experts(folder, cached=0.5, policy="layers")).slots == (8, 8, 0, 0)


def test_what_does_not_fit_says_what_would(folder):
    setup = experts(folder, pinned=0.02, cached=1.0)
    found = simulate(setup)
    assert not found.fits and value(found, "generation_throughput") == 0.0
    first = next(iter(remedies(setup)))
    ((key, share),) = first.overrides.items()
    assert key == "strategy.cached"
    assert simulate(experts(folder, pinned=0.02, cached=float(share))).fits


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "message"), [
    ({"routing": {"hit_rate": 0.5}, "policy": "lru"}, "hit_rate stands for a cache policy"),
    ({"policy": "decay"}, "'decay' belongs to policy decay"),
    ({"policy": "predicted"}, "'predicted' belongs to policy predicted"),
    ({"policy": "none", "cached": 0.5}, "policy none keeps no expert"),
    ({"policy": "static", "prefetch": PREFETCH}, "'prefetch' needs a cache that takes what arrives"),
    ({"loads": "in-turn", "prefetch": PREFETCH}, "'prefetch' needs loads: at-gate"),
    ({"loads": "whole-layer"}, "whole-layer needs misses: fetch and policy layers or none"),
    ({"loads": "in-turn", "misses": "home"}, "'loads' needs misses: fetch"),
    ({"loads": "in-turn", "order": "ready"}, "leave out 'order'"),
    ({"issue_time": "10 us"}, "'issue_time' belongs to execution: eager"),
    ({"experts": "nvme", "misses": "home"}, "experts on nvme have no processor"),
    ({"baseline": {"polcy": "lru"}}, r"baseline.polcy"),
    ({"routing": {"trace": "x.csv", "skew": 1.0}}, "leave out 'skew' and 'reuse'"),
])  # fmt: skip
def test_what_decides_nothing_is_refused(folder, keys, message):
    with pytest.raises(SpecError, match=message):
        experts(folder, **keys)


@pytest.mark.parametrize(("keys", "message"), [
    ({"experts": "cxl"}, "toy-node has no cxl; it has gpu, dram, nvme"),
    ({"tensor_parallel": 2}, "found 2, expected as many or fewer"),
    ({"expert_precision": "fp32"}, "fp32 is wider than the products' fp16"),
    ({"routing": {"trace": "/nowhere.csv"}}, "/nowhere.csv: cannot be read"),
])  # fmt: skip
def test_what_the_machine_lacks_is_named(folder, keys, message):
    with pytest.raises(MemroofError, match=message):
        simulate(experts(folder, **keys))


def test_a_dense_model_has_no_experts(folder):
    with pytest.raises(MemroofError, match="toy-model has none"):
        simulate(load(content(model="toy-model"), catalog=with_model(folder)))
