"""Decode from flash: bytes and times by hand, bounds that no overlap beats, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.run import load, run
from simulator.offload import remedies, simulate
from simulator.offload.neuron_cache.lower import managed_bytes
from simulator.specs import MemroofError, SpecError

laws = settings(derandomize=True, max_examples=15, deadline=None, database=None)
NEURONS = {"active": 0.10, "reuse": {"window": 5, "new": 0.024}}


def outcome(**strategy):
    return simulate(load(scenario(**strategy)))


def scenario(hardware="laptop-m1-max", model="opt-6.7b", **strategy):
    return {
        "kind": "offload", "hardware": hardware, "model": model, "workload": {"prompt": 128, "output": 256},
        "strategy": {"method": "neuron-cache", **strategy},
    }  # fmt: skip


def values(result):
    return {key: metric.value for key, metric in result.metrics.items()}


@pytest.mark.parametrize(
    ("step", "size", "time"),
    [
        ("naive", 13.4e9, 2.196),
        ("half-resident", 6.7e9, 1.090),
        ("predictor", 0.9e9, 0.738),
        ("window", 0.2e9, 0.164),
        ("bundled", 0.2e9, 0.087),
    ],
)
def test_table_2_of_llm_in_a_flash(step, size, time):
    """Alizadeh et al. 2024, table 2: each step within 20 %."""
    found = run(f"published/llm-in-a-flash2023/table2-{step}").outcome.metrics
    assert found["flash_bytes"].value == pytest.approx(size, rel=0.2)
    assert found["flash_time"].value == pytest.approx(time, rel=0.2)


def test_naive_reads_the_whole_model_by_hand():
    """6.658 billion weights of 2 bytes at 6.1 GB/s, then over 400 GB/s of DRAM at 80 %."""
    found = values(outcome(dense={"resident": 0}))
    assert found["flash_bytes"] == pytest.approx(6658473984 * 2, rel=0.001)
    assert found["flash_time"] == pytest.approx(6658473984 * 2 / 6.1e9, rel=0.01)
    assert found["compute_time"] == pytest.approx(6658473984 * 2 / 320e9, rel=0.02)
    total = found["flash_time"] + found["compute_time"]
    assert found["time_per_output_token"] == pytest.approx(total, rel=0.001)


def test_a_window_by_hand():
    """32 layers of 16384 neurons, 2.4 % of them new, 16 KiB each in one read at 2.25 GB/s."""
    found = values(outcome(neurons=NEURONS, cache={"window": 5}, management={"rate": "25 GB/s"}))
    new = 32 * 16384 * 0.024
    assert found["flash_bytes"] == pytest.approx(new * 16384, rel=1e-6)
    assert found["flash_time"] == pytest.approx(new * 16384 / 2.25e9 + 32 * 105e-6, rel=0.01)
    assert found["management_time"] == pytest.approx(4 * new * 16384 / 25e9, rel=1e-6)
    parts = found["flash_time"] + found["management_time"] + found["compute_time"]
    assert found["time_per_output_token"] == pytest.approx(parts, rel=1e-6)
    assert managed_bytes(10.0, 3.0) == 120.0


def test_what_is_in_dram_adds_up():
    result = outcome(neurons=NEURONS, predictor={"rank": 128}, cache={"window": 5})
    dram = next(use for use in result.memory if use.tier == "dram")
    shares = [
        value
        for key, value in values(result).items()
        if key.endswith("_share") and "over" in result.metrics[key].label
    ]
    assert sum(shares[1:]) == pytest.approx(shares[0], rel=1e-9)
    assert sum(dram.by_category.values()) == pytest.approx(dram.peak)
    assert result.metrics["predictor_share"].value == pytest.approx(
        128 * 32 * (4096 + 16384) / 6658473984, rel=1e-9
    )


@laws
@given(st.floats(0.05, 0.6), st.integers(1, 8), st.floats(0.0, 0.04), st.sampled_from(["lru", "static"]))
def test_no_pipeline_beats_its_longest_part_nor_loses_to_a_series(share, clusters, hot, policy):
    common = {
        "neurons": NEURONS, "predictor": {"rank": 64}, "dense_processor": "npu", "sparse_processor": "cpu",
        "cache": {"policy": policy, "share": share, "hot": hot}, "reads": {"block": "4 KiB"},
    }  # fmt: skip
    phone = {"hardware": "phone-oneplus-12", "weight_precision": "int4"}
    piped = values(outcome(**phone, **common, pipeline={"clusters": clusters}))
    series = values(outcome(**phone, **common))
    assert piped["time_per_output_token"] <= series["time_per_output_token"] * (1 + 1e-9)
    assert piped["time_per_output_token"] >= piped["flash_time"]
    assert piped["flash_bytes"] == pytest.approx(series["flash_bytes"], rel=1e-9)
    assert 0.0 <= piped["flash_wait_share"] <= 1.0


def test_two_phases_read_the_rest_of_what_passes():
    """INT4 rows of 2048 bytes: a block for the gate, one for the other two rows of four neurons in five."""
    common = {
        "weight_precision": "int4",
        "neurons": NEURONS,
        "cache": {"window": 5},
        "hardware": "phone-oneplus-12",
        "model": "bamboo-7b",
    }
    one = values(outcome(**common, reads={"block": "4 KiB"}))
    two = values(outcome(**common, reads={"block": "4 KiB", "phases": 2}))
    assert one["flash_bytes"] == pytest.approx(32 * 14336 * 0.024 * 8192, rel=1e-6)
    assert two["flash_bytes"] == pytest.approx(32 * 14336 * 0.024 * 4096 * 1.8, rel=1e-6)


def test_tokens_that_miss_more_take_longer():
    calm = values(outcome(neurons=NEURONS, cache={"window": 5}))
    bursty = values(outcome(neurons={**NEURONS, "dispersion": 0.9}, cache={"window": 5}))
    assert bursty["miss_rate"] == pytest.approx(calm["miss_rate"])
    assert bursty["miss_rate_p99"] > 3 * calm["miss_rate_p99"]
    assert bursty["flash_bytes"] == pytest.approx(calm["flash_bytes"], rel=0.05)


def test_a_cache_without_a_size_fills_the_memory():
    result = outcome(
        hardware="phone-oneplus-12", model="turbosparse-mixtral-47b", weight_precision="int4", memory="11 GB",
        neurons={"active": 0.12, "exponent": 1.5}, cache={"policy": "static"}, reads={"block": "4 KiB"},
    )  # fmt: skip
    dram = next(use for use in result.memory if use.tier == "dram")
    assert 0.0 <= dram.free < 0.002 * dram.capacity


def test_baselines_take_over_what_they_do_not_say():
    result = outcome(
        memory="8 GB", neurons=NEURONS, cache={"window": 5},
        baselines={"none": {"cache": {"window": 0}}, "mapped": {"mapped": {"readahead": "128 KiB"}}},
    )  # fmt: skip
    found = values(result)
    assert found["speedup_over_none"] > 2.0
    assert found["mapped_time_per_output_token"] > 6658473984 * 2 / 6.1e9
    assert found["speedup_over_mapped"] == pytest.approx(
        found["mapped_time_per_output_token"] / found["time_per_output_token"]
    )


def test_reading_ahead_hides_the_shorter_part():
    serial = values(outcome(dense={"resident": 0}, memory_efficiency=0.05))
    ahead = values(outcome(dense={"resident": 0, "overlap": True}, memory_efficiency=0.05))
    longest = max(ahead["flash_time"], ahead["compute_time"])
    assert longest <= ahead["time_per_output_token"] < longest * 1.1
    assert ahead["time_per_output_token"] < serial["time_per_output_token"]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"cache": {"window": 5}}, "strategy.neurons: missing"),
        ({"dense": {"resident": 0}, "dense_processor": "npu"}, "has no processor 'npu'"),
        ({"dense": {"resident": 0}, "memory": "100 GB"}, "memory: 100 GB asked for"),
    ],
)
def test_refused_by_name(strategy, message):
    with pytest.raises(MemroofError, match=message):
        outcome(**strategy)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({}, "needs one of 'cache'"),
        ({"dense": {"resident": 0}, "cache": {"window": 1}}, "found cache and dense"),
        ({"dense": {"resident": 0}, "reads": {}}, "'reads' belongs to 'cache'"),
        (
            {"neurons": NEURONS, "cache": {"policy": "lru", "window": 2}},
            "'window' belongs to policy 'window'",
        ),
        (
            {"neurons": {"active": 0.1}, "cache": {"window": 2}},
            "needs one of 'reuse', 'hottest' or 'exponent'",
        ),
        (
            {"neurons": NEURONS, "cache": {"window": 2}, "reads": {"passing": 0.5}},
            "'passing' decides nothing with one phase",
        ),
        ({"dense": {"resident": 0}, "baselines": {"a b": {"dense": {"resident": 0}}}}, "a name has letters"),
    ],
)
def test_options_that_decide_nothing_are_refused(strategy, message):
    with pytest.raises(SpecError, match=message):
        load(scenario(**strategy))


def test_no_flash_and_no_decoder():
    with pytest.raises(MemroofError, match="has no flash"):
        simulate(
            load(
                scenario(
                    hardware={
                        "node": "laptop-m1-max",
                        "changes": {"components": {"nvme": {"device": "ddr5-5600-2ch"}}},
                    },
                    dense={"resident": 0},
                )
            )
        )
    with pytest.raises(MemroofError, match="decodes with decoders"):
        simulate(load(scenario(model="t5-large", dense={"resident": 0})))


def test_remedies_shrink_what_is_kept():
    setup = load(scenario(neurons=NEURONS, cache={"window": 5}))
    assert [r.overrides for r in remedies(setup)][:2] == [
        {"strategy.cache.window": "2"},
        {"strategy.cache.window": "1"},
    ]


def test_a_slower_core_reads_slower():
    """Xue et al. 2024, section 2.3: 4 KiB reads at 1 GB/s from a core of 3.3 GHz, 0.76 GB/s from one of 2.2 GHz."""
    common = {
        "weight_precision": "int4",
        "neurons": NEURONS,
        "cache": {"window": 5},
        "hardware": "phone-oneplus-12",
        "model": "bamboo-7b",
    }
    reads = {"block": "4 KiB", "bundled": False}
    fast = values(outcome(**common, reads=reads))
    slow = values(outcome(**common, reads={**reads, "clock": "2.2 GHz"}))
    rates = [found["flash_bytes"] / (found["flash_time"] - 32 * 95e-6) for found in (slow, fast)]
    assert rates[0] / rates[1] == pytest.approx(0.76, abs=0.04)


def test_more_tokens_than_learned_positions_are_refused():
    content = scenario(dense={"resident": 0}) | {"workload": {"prompt": 2000, "output": 100}}
    with pytest.raises(MemroofError, match="has learned 2048 positions; prompt and output need 2100"):
        simulate(load(content))
