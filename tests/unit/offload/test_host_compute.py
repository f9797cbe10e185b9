"""Weights computed on where they lie: placement of experts, times against closed forms, memory, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.analysis.run import load
from simulator.offload import remedies, simulate
from simulator.offload.host_compute.experts import held, hits, host_load, top_share
from simulator.offload.host_compute.plan import make_plan, sample
from simulator.offload.host_compute.prices import price_pass
from simulator.specs import Catalog, MemroofError, SpecError

CATALOG = Catalog(environment={})
TUTORIAL = {"gpu_weight_bits": 4.85, "cpu_weight_bits": 4.85}
"""DeepSeek-V3 in Q4_K_M on KTransformers' machine."""


def scenario(hardware="server-4090d-6454s", model="deepseek-v3", prompt=500, output=8, batch=1, **strategy):
    return load(
        {
            "kind": "offload",
            "hardware": hardware,
            "model": model,
            "workload": {"prompt": prompt, "output": output, "batch": batch},
            "strategy": {"method": "host-compute", **strategy},
        },
        catalog=CATALOG,
    )


def metrics(**keys):
    return {name: metric.value for name, metric in simulate(scenario(**keys)).metrics.items()}


# --- experts ---------------------------------------------------------------------------------------------------------


def test_the_most_used_experts_take_their_share_by_zipfs_law():
    # of four experts used as 1, 1/2, 1/3, 1/4, the first two take 1.5 of 2.083
    assert top_share(0.5, 1.0, 4) == pytest.approx(1.5 / (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert top_share(0.3, 0.0, 256) == pytest.approx(0.3)


@given(share=st.floats(0.0, 1.0), skew=st.floats(0.0, 3.0))
def test_frequency_never_hits_less_than_chance(share, skew):
    assert hits("frequency", share, skew, 64) >= share - 1e-12
    assert hits("uniform", share, skew, 64) == share


@given(share=st.floats(0.0, 1.0), layers=st.integers(1, 90))
def test_every_placement_holds_the_same_share(share, layers):
    front = sum(held("front-loading", share, layer, layers) for layer in range(layers))
    assert front == pytest.approx(share * layers, abs=1e-9)


def test_a_token_needs_its_experts_and_many_tokens_need_all():
    one = host_load(1, 8, 256, 0.0, 0.0)
    assert (one.copies, one.active, one.rows) == pytest.approx((8.0, 8.0, 1.0))
    many = host_load(4096, 8, 256, 0.0, 0.0)
    assert many.active == pytest.approx(256.0)
    assert many.rows == pytest.approx(128.0)


@given(tokens=st.integers(1, 10_000), here=st.floats(0.0, 1.0), skew=st.floats(0.0, 2.0))
def test_cpus_never_compute_more_than_was_left_to_them(tokens, here, skew):
    load_ = host_load(tokens, 8, 256, here, hits("frequency", here, skew, 256))
    assert load_.copies <= tokens * 8 * (1 + 1e-12)
    assert load_.active <= min(256 * (1 - here), max(load_.copies, 0.0)) + 1e-6


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_decode_step_is_gpu_and_cpus_one_after_the_other_without_deferral():
    setup = scenario(sockets=1, **TUTORIAL)
    plan = make_plan(setup)
    price = price_pass(plan, plan.decode[0].shape)
    experts = sum(layer.now.time for layer in price.layers if layer.now)
    # 8 of 256 experts of 58 layers: 8 x 58 x 3 x 7168 x 2048 weights at 4.85 bits
    weights = 8 * 58 * 3 * 7168 * 2048 * 4.85 / 8
    assert weights == pytest.approx(12.4e9, rel=0.01)
    rate = 307.2e9 * 0.716 * 0.91
    assert experts >= weights / rate
    found = simulate(setup).metrics
    step = found["time_per_output_token"].value
    assert step >= experts
    busy = found["cpu_utilization"].value + found["gpu_utilization"].value
    # shared experts alone run beside the CPUs
    assert 1.0 <= busy < 1.1
    assert found["dram_bytes_per_token"].value == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize(
    ("keys", "prefill", "decode"),
    [
        # kvcache-ai/ktransformers, DeepseekR1_V3_tutorial.md; the constants are fitted on the first two
        ({"sockets": 1}, 54.21, 8.73),
        ({"sockets": 1, "experts_per_token": 6}, 65.14, 10.303),
        ({"numa": "copied"}, 82.94, 12.208),
        ({"numa": "copied", "experts_per_token": 6}, 97.32, 13.69),
    ],
)
def test_ktransformers_rates_with_a_prompt_of_500_are_within_a_tenth(keys, prefill, decode):
    found = metrics(**TUTORIAL, **keys)
    assert found["prefill_throughput"] == pytest.approx(prefill, rel=0.1)
    assert found["decode_throughput"] == pytest.approx(decode, rel=0.1)


def test_deferral_gains_what_it_hides_and_no_more_than_the_gpus_share():
    plain, deferred = metrics(**TUTORIAL), metrics(**TUTORIAL, deferred_experts=3)
    gain = plain["time_per_output_token"] / deferred["time_per_output_token"]
    assert 1.05 < gain <= 1.0 / (1.0 - plain["gpu_utilization"])
    assert deferred["dram_bytes_per_token"] == pytest.approx(plain["dram_bytes_per_token"])


def test_experts_on_the_gpu_save_cpu_time_and_cost_memory():
    shares = (0.0, 0.25, 0.5, 1.0)
    found = [
        metrics(hardware="server-1x4090-48gb-8488c", model="qwen3-next-80b-a3b", gpu_weight_bits=4.0,
                cpu_weight_bits=4.0, gpu_experts=share)
        for share in shares
    ]  # fmt: skip
    times = [each["time_per_output_token"] for each in found]
    assert times == sorted(times, reverse=True)
    assert found[-1]["cpu_utilization"] == 0.0
    total = [each["gpu_weight_bytes"] + each["dram_weight_bytes"] for each in found]
    assert total == pytest.approx([total[0]] * len(total))


def test_a_copy_on_each_socket_is_as_fast_as_a_split_and_twice_as_large():
    split, copied = metrics(**TUTORIAL, numa="split"), metrics(**TUTORIAL, numa="copied")
    assert copied["decode_throughput"] == pytest.approx(split["decode_throughput"])
    assert copied["dram_weight_bytes"] == pytest.approx(2 * split["dram_weight_bytes"])
    # pages over both sockets are read half across
    assert metrics(**TUTORIAL, numa="interleaved")["decode_throughput"] < split["decode_throughput"]


def test_streamed_prompts_take_the_copy_or_the_computation():
    keys = {"prompt": 8192, "output": 1, "prefill": "streamed"}
    ahead, serial = metrics(**TUTORIAL, **keys), metrics(**TUTORIAL, **keys, prefetch=0)
    weights = 256 * 58 * 3 * 7168 * 2048 * 4.85 / 8
    copied = weights / (31.5e9 * 0.82)
    assert ahead["prefill_throughput"] == pytest.approx(8192 / copied, rel=0.15)
    assert serial["prefill_throughput"] < ahead["prefill_throughput"]


def test_launches_hold_the_gpu_up_where_no_graph_is_captured():
    graph = metrics(**TUTORIAL)
    eager = metrics(**TUTORIAL, launches=7000, launch_time="16 us")
    late = eager["time_per_output_token"] - graph["time_per_output_token"]
    # Chen et al. 2025: 7,000 launches of 16 us, in place of kernels that are shorter
    assert 0.5 * 7000 * 16e-6 < late <= 7000 * 16e-6


def test_layers_split_between_cpus_and_gpu_decode_between_the_two():
    rates = [
        metrics(hardware="desktop-4090", model="llama3-8b", prompt=32, placement="layers", gpu_layers=layers,
                gpu_weight_bits=4.9, cpu_weight_bits=4.9)["decode_throughput"]
        for layers in (0, 16, 32)
    ]  # fmt: skip
    assert rates == sorted(rates)
    # half of the layers on the CPU take about half of the time of all
    assert rates[1] == pytest.approx(2 / (1 / rates[0] + 1 / rates[2]), rel=0.1)


def test_cpus_alone_stay_under_the_bandwidth_of_their_dram():
    found = metrics(
        hardware="xeon-8480-plus-2s", model="gpt-neox-20b", prompt=32, placement="layers", sockets=1,
        kernels="kt-kernel", cpu_weight_bits=4.5,
    )  # fmt: skip
    weights = 20.5e9 * 4.5 / 8
    assert found["time_per_output_token"] >= weights / (307.2e9 * 0.716)
    # Shen et al. 2023: 80 ms a token for 20 billion parameters
    assert found["time_per_output_token"] == pytest.approx(80e-3, rel=0.2)
    assert "gpu_utilization" not in found


def test_samples_stand_for_all_passes():
    for count in (0, 1, 5, 6, 7, 400):
        chosen, weights = sample(count)
        assert sum(weights) == pytest.approx(count)
        assert len(chosen) <= 6
        assert chosen == sorted(set(chosen))


# --- memory and remedies ---------------------------------------------------------------------------------------------


def test_experts_lie_in_dram_and_the_rest_on_the_gpu():
    outcome = simulate(scenario(sockets=1, **TUTORIAL))
    used = {use.tier: use for use in outcome.memory}
    # at least 382 GiB of DRAM and 14 GB of GPU memory, says the tutorial
    assert used["dram"].peak == pytest.approx(382 * 2**30, rel=0.05)
    assert used["hbm"].peak == pytest.approx(14e9, rel=0.35)
    assert outcome.fits


def test_a_copy_too_many_is_remedied():
    setup = scenario(model="kimi-k2", numa="copied", gpu_weight_bits=4.85, cpu_weight_bits=4.85)
    outcome = simulate(setup)
    assert not outcome.fits
    assert {"strategy.numa": "split"} in [remedy.overrides for remedy in remedies(setup)]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gpu_layers": 3}, "belongs to placement 'layers'"),
        ({"placement": "layers", "gpu_experts": 0.5}, "'gpu_experts' belongs to placement 'experts'"),
        ({"expert_placement": "uniform"}, "decides nothing without 'gpu_experts'"),
        ({"gpu_experts": 0.5, "expert_skew": 1.0}, "decides nothing without expert_placement 'frequency'"),
        ({"launches": 7000}, "belong together"),
        ({"sockets": 1, "numa": "split"}, "decides nothing on one socket"),
        ({"prefetch": 1}, "decides nothing where prompts are computed in place"),
    ],
)
def test_options_that_decide_nothing_are_refused(keys, message):
    with pytest.raises(SpecError, match=message):
        scenario(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "llama3-8b"}, "llama3-8b has no experts; use 'layers'"),
        ({"sockets": 3}, "server-4090d-6454s has 2 CPUs with DRAM, not 3"),
        ({"kernels": "vektor"}, "found 'vektor', expected one of .*; did you mean 'vector'"),
        ({"deferred_experts": 8}, "8 of 8 experts; at least one"),
        ({"experts_per_token": 300}, "has 256 experts, not 300"),
        ({"placement": "layers", "gpu_layers": 62}, "has 61 layers, not 62"),
        ({"hardware": "xeon-8480-plus-2s"}, "CPUs alone; use 'layers'"),
        (
            {"hardware": "server-a40-8380", "numa": "split"},
            "numa decides nothing: server-a40-8380 has one socket",
        ),
        ({"hardware": "dgx-a100-80gb", "model": "bert-large"}, "generates with decoders"),
    ],
)
def test_what_a_machine_or_model_lacks_is_named(keys, message):
    with pytest.raises(MemroofError, match=message):
        simulate(scenario(**keys))
