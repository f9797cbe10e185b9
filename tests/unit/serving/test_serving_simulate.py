import numpy as np
import pytest
from serving_cases import LLAMA_8B, LLAMA_70B, make_setup, small

from simulator.cost import CostModel
from simulator.serving import make_plan, remedies, simulate
from simulator.specs import Catalog, MemroofError, Model, ZigzagScenario
from simulator.specs.catalog import scenario_with
from simulator.strategy import Setup

NODE = {"node": "dgx-h100"}
ONE = {"arrival": "list", "list": [{"arrival": "1 s", "prompt": 500, "output": 4}]}
OFFLINE = {"arrival": "offline", "requests": 30, "prompt": 200, "output": 30}


def test_one_request_is_its_prefill_and_its_decode_steps():
    setup = make_setup(workload=ONE)
    outcome = simulate(setup)
    pricer = make_plan(setup).pricer
    prefill = pricer.mixed(np.array([500]), np.array([0]), np.zeros(0, int), 1).seconds[0]
    decode = pricer.decode(np.array([500]), 3).seconds
    assert outcome.metrics["time_to_first_token_p50"].value == pytest.approx(prefill)
    assert outcome.metrics["time_per_output_token_mean"].value == pytest.approx(decode.mean())
    assert outcome.metrics["end_to_end_p99"].value == pytest.approx(prefill + decode.sum())
    assert outcome.metrics["output_throughput"].value == pytest.approx(4.0 / (prefill + decode.sum()))
    assert outcome.total_time == pytest.approx(prefill + decode.sum())


def test_times_divide_without_rest():
    outcome = simulate(make_setup())
    assert outcome.fits
    assert outcome.headline == "time_per_output_token_p50"
    assert sum(outcome.bottlenecks.values()) == pytest.approx(outcome.total_time)
    busy = outcome.total_time - outcome.bottlenecks["waiting"]
    assert sum(outcome.class_times.values()) == pytest.approx(busy)
    assert outcome.busy_fraction == pytest.approx(busy / outcome.total_time)
    assert 0.0 < outcome.metrics["mfu"].value < outcome.metrics["mbu"].value < 1.0


def test_memory_is_weights_context_workspace_and_the_cache_at_its_peak():
    setup = make_setup()
    outcome = simulate(setup)
    (memory,) = outcome.memory
    graph = make_plan(setup).pricer.graph()
    assert memory.capacity == pytest.approx(0.9 * setup.hardware.memory.capacity)
    assert memory.by_category["weights"] == graph.weight_bytes
    assert memory.by_category["context"] == setup.cost.calibration.host.context_bytes
    assert memory.peak == sum(memory.by_category.values())
    largest = max(outcome.tables["iterations"]["kv_bytes"])
    assert memory.by_category["KV cache"] == largest
    assert outcome.metrics["kv_peak_occupancy"].value == pytest.approx(
        largest / make_plan(setup).cache.capacity
    )


def test_little_s_law():
    outcome = simulate(make_setup(workload={"rate": "8 req/s", "requests": 100, "prompt": 300, "output": 60}))
    requests, iterations = outcome.tables["requests"], outcome.tables["iterations"]
    inside = (iterations["decoding"] + iterations["prefilling"]) @ iterations["seconds"]
    assert inside == pytest.approx((requests["end"] - requests["admitted"]).sum())


def test_offline_throughput_is_the_most_that_there_is():
    online = simulate(make_setup(workload={"rate": "1 req/s", "requests": 30, "prompt": 200, "output": 30}))
    offline = simulate(make_setup(workload=OFFLINE))
    assert offline.headline == "output_throughput"
    assert offline.metrics["output_throughput"].value > 2.0 * online.metrics["output_throughput"].value
    assert "saturated" not in offline.metrics


def test_static_batches_are_slower_where_lengths_differ():
    workload = {"arrival": "offline", "requests": 64, "prompt": 200, "output": {"uniform": [1, 200]}}
    continuous, static = (
        simulate(make_setup(workload=workload, max_batch=16, batching=b)) for b in ("continuous", "static")
    )
    # the longest of 16 uniform outputs is nearly twice the mean (Yu et al. 2022, figure 3)
    ratio = continuous.metrics["output_throughput"].value / static.metrics["output_throughput"].value
    assert 1.3 < ratio < 2.0
    assert any("until its batch ends" in line for line in static.assumptions)


def test_a_queue_without_bound_is_said():
    workload = {"rate": "50 req/s", "requests": 200, "prompt": 200, "output": 60}
    outcome = simulate(make_setup(workload=workload, max_batch=4))
    assert outcome.metrics["saturated"].value == 1.0
    assert outcome.metrics["request_throughput"].value < 0.8 * outcome.metrics["offered_request_rate"].value
    assert outcome.assumptions[0].startswith("saturated")
    calm = simulate(make_setup())
    assert calm.metrics["saturated"].value == 0.0


def test_same_seed_same_answer():
    first, again, other = (simulate(make_setup(workload={"rate": "2 req/s", "requests": 20, "prompt": {"mean": 200.0, "sigma": 0.5}, "output": 30, "seed": s})) for s in (3, 3, 4))  # fmt: skip
    assert first.metrics == again.metrics
    assert first.metrics != other.metrics


def test_detail_gives_a_task_an_iteration_and_the_same_answer():
    plain, detail = simulate(make_setup()), simulate(make_setup(), detail=True)
    assert plain.timeline.n_tasks < detail.timeline.n_tasks
    assert detail.timeline.n_tasks == plain.tables["iterations"]["steps"].sum()
    assert detail.total_time == pytest.approx(plain.total_time, rel=1e-9)


def test_replicas_take_requests_in_turn():
    workload = {"rate": "8 req/s", "requests": 80, "prompt": 200, "output": 30}
    outcome = simulate(make_setup(hardware=NODE, workload=workload, tensor_parallel=2))
    assert outcome.devices == 8
    assert len(outcome.tables["requests"]["arrival"]) == 20
    metrics = outcome.metrics
    assert metrics["output_throughput"].value == pytest.approx(8 * metrics["output_throughput_per_gpu"].value)
    assert metrics["offered_request_rate"].value == pytest.approx(8.0, rel=0.3)
    assert any("4 equal replicas" in line for line in outcome.assumptions)


def test_fewer_requests_than_replicas_leave_gpus_out():
    assert simulate(make_setup(hardware=NODE, workload=ONE)).devices == 1


def test_quantised_weights_and_experts_are_assumptions():
    moe = small(moe={"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512})
    notes = " ".join(simulate(make_setup(moe, weight_precision="fp8")).assumptions)
    assert "stored in fp8" in notes
    assert "uniformly" in notes


def test_single_tokens_have_no_time_per_output_token():
    workload = {"rate": "2 req/s", "requests": 5, "prompt": 100, "output": 1}
    outcome = simulate(make_setup(workload=workload))
    assert outcome.headline == "end_to_end_p50"
    assert "time_per_output_token_p50" not in outcome.metrics


def test_an_error_of_times_hardly_moves_a_throughput_that_arrivals_set():
    online = simulate(make_setup(workload={"rate": "1 req/s", "requests": 100, "prompt": 200, "output": 10}))
    offline = simulate(make_setup(workload=OFFLINE))
    assert online.metrics["output_throughput"].error < 0.1 * offline.metrics["output_throughput"].error


# --- what does not fit ---


def test_weights_that_do_not_fit_say_what_is_missing():
    outcome = simulate(make_setup(LLAMA_70B))
    (memory,) = outcome.memory
    assert not outcome.fits
    assert outcome.headline == "time_per_output_token_p50"
    assert outcome.metrics[outcome.headline].value == np.inf
    assert outcome.metrics["output_throughput"].value == 0.0
    assert memory.by_category["weights"] == pytest.approx(2 * 70.55e9, rel=1e-3)
    assert -memory.free == pytest.approx(memory.peak - memory.capacity)
    assert memory.largest[0].name == "weights"
    assert outcome.timeline is None


def test_a_request_longer_than_the_cache_does_not_fit():
    workload = {"arrival": "offline", "requests": 2, "prompt": 120000, "output": 10}
    setup = make_setup(workload=workload, hardware={"device": "l4"})
    outcome = simulate(setup)
    (memory,) = outcome.memory
    assert not outcome.fits
    assert memory.by_category["KV cache"] == pytest.approx(120009 * 131072, rel=1e-3)
    assert any("120009 tokens" in holding.name for holding in memory.largest)


def test_the_smallest_memory_that_fits_runs():
    workload = {"arrival": "offline", "requests": 2, "prompt": 100, "output": 28}
    setup = make_setup(workload=workload)
    share = make_plan(setup).needed / setup.hardware.memory.capacity
    assert simulate(make_setup(workload=workload, memory_utilization=share * 1.0001)).fits
    assert not simulate(make_setup(workload=workload, memory_utilization=share * 0.9999)).fits


def test_remedies_fit_a_70b_model():
    setup = make_setup(LLAMA_70B, NODE)
    proposed = list(remedies(setup))
    assert [r.description for r in proposed][:4] == [
        "memory_utilization 0.95", "max_batched_tokens 512", "max_batched_tokens 512 and memory_utilization 0.95",
        "KV cache in fp8",
    ]  # fmt: skip
    fits = []
    for remedy in proposed:
        scenario = scenario_with(setup.scenario, remedy.overrides)
        fits.append(simulate(Setup(scenario, setup.model, setup.hardware, setup.cost)).fits)
    assert fits[[r.description for r in proposed].index("tensor_parallel 4")]
    assert not fits[0]


def test_remedies_are_only_those_that_the_heads_allow():
    names = [r.description for r in remedies(make_setup(small(num_attention_heads=4, head_dim=128), NODE))]
    assert "tensor_parallel 4" in names
    assert "tensor_parallel 8" not in names


def test_nothing_is_left_to_propose_where_all_is_done():
    setup = make_setup(
        memory_utilization=0.95, max_batched_tokens=512, weight_precision="int4", kv_precision="fp8"
    )  # fmt: skip
    assert list(remedies(setup)) == []


# --- refusals ---


def refused(model=LLAMA_8B, hardware=None, workload=None, **strategy):
    with pytest.raises(MemroofError) as caught:
        simulate(make_setup(model, hardware, workload, **strategy))
    return str(caught.value)


def test_heads_must_divide():
    message = refused(hardware=NODE, tensor_parallel=3)
    assert "tensor_parallel 3" in message
    assert "32 attention heads" in message
    refused(small(num_attention_heads=12, num_key_value_heads=6, head_dim=64), NODE, tensor_parallel=4)


def test_gpus_must_be_there():
    assert "h100-sxm has 1" in refused(tensor_parallel=2)


def test_formats_must_be_there():
    message = refused(hardware={"device": "v100-32gb-sxm"}, precision="bf16")
    assert "bf16" in message
    assert "fp16" in message


def test_encoders_do_not_generate():
    bert = Model.model_validate(small().model_dump() | {"family": "encoder", "name": "bert"})
    assert "bert" in refused(bert)


def test_the_token_budget_holds_the_batch():
    assert "max_batched_tokens (100)" in refused(max_batched_tokens=100, max_batch=200)


def test_whole_prompts_need_room_in_the_budget():
    workload = {"rate": "1 req/s", "requests": 3, "prompt": 9000, "output": 10}
    assert "9010 tokens" in refused(workload=workload, chunked_prefill=False)


def test_positions_must_be_there():
    workload = {"rate": "1 req/s", "requests": 3, "prompt": 131072, "output": 1}
    assert "131072 positions" in refused(workload=workload)


def test_other_kinds_are_refused():
    scenario = ZigzagScenario.model_validate(
        {"kind": "offload", "name": "other", "hardware": {"device": "t4"}, "model": "m",
         "workload": {"prompt": 1, "output": 1, "batch": 1}}
    )  # fmt: skip
    setup = make_setup()
    other = Setup(scenario, setup.model, setup.hardware, setup.cost)
    with pytest.raises(MemroofError, match="offload"):
        simulate(other)
    assert list(remedies(other)) == []


# --- shipped scenarios ---


@pytest.mark.parametrize(
    "name", ["llama3.1-70b-8xh100", "llama3.1-8b-h100-offline", "qwen2.5-32b-2xh100-slo"]
)
def test_shipped_scenarios_fit_and_are_not_saturated(name):
    catalog = Catalog(environment={})
    scenario = catalog.scenario(f"serving/{name}")
    hardware = catalog.hardware(scenario.hardware)
    cost = CostModel(hardware.device, catalog.calibration(hardware.device))
    outcome = simulate(Setup(scenario, catalog.model(scenario.model), hardware, cost))
    assert outcome.fits
    assert outcome.headline in outcome.metrics
    assert set(scenario.limit) <= set(outcome.metrics)
    assert "saturated" not in outcome.metrics or outcome.metrics["saturated"].value == 0.0


# --- closed loops, engines that schedule ahead, what is between client and engine ---

LOOP = {
    "arrival": "closed",
    "concurrency": 8,
    "requests": 160,
    "prompt": {"uniform": [100, 300]},
    "output": {"uniform": [20, 40]},
}


def test_a_closed_loop_keeps_its_clients_busy():
    outcome = simulate(make_setup(workload=LOOP))
    metrics = outcome.metrics
    # Little: clients = rate x time in the system, but for the drain at the end
    clients = metrics["request_throughput"].value * metrics["end_to_end_mean"].value
    assert clients == pytest.approx(8, rel=0.08)
    assert metrics["largest_batch"].value == 8
    assert "saturated" not in metrics
    assert "offered_request_rate" not in metrics
    assert any("8 clients" in line for line in outcome.assumptions)


def test_the_rate_of_a_closed_loop_is_as_doubtful_as_its_iterations():
    metrics = simulate(make_setup(workload=LOOP)).metrics
    assert metrics["output_throughput"].error == metrics["end_to_end_mean"].error > 0.0


def test_replicas_share_the_clients():
    outcome = simulate(make_setup(hardware={"device": "h100-sxm", "count": 2}, workload=LOOP))
    assert outcome.metrics["largest_batch"].value == 4


def test_scheduling_ahead_hides_the_host_and_delays_a_request():
    behind = simulate(make_setup(workload=LOOP, host_overhead="0 s", schedule_ahead=False))
    ahead = simulate(make_setup(workload=LOOP, schedule_ahead=True))
    first = "time_to_first_token_p50"
    assert "host" not in ahead.class_times
    assert ahead.metrics[first].value > behind.metrics[first].value
    assert any("put together ahead" in line for line in ahead.assumptions)


def test_the_way_from_and_to_the_client_adds_to_latencies():
    near = simulate(make_setup()).metrics
    far = simulate(make_setup(frontend_latency="10 ms")).metrics
    # 10 ms, and 4.5 us for each of 200 tokens
    for key, more in (
        ("time_to_first_token_p50", 0.0109),
        ("end_to_end_p90", 0.0109),
        ("time_per_output_token_p50", 0.0),
    ):
        assert far[key].value == pytest.approx(near[key].value + more, rel=1e-9)


def test_an_engines_own_all_reduce_is_faster_for_small_messages():
    pair = {"device": "h100-sxm", "count": 2}
    token = {
        kernel: simulate(make_setup(hardware=pair, tensor_parallel=2, all_reduce=kernel)).metrics["time_per_output_token_p50"].value
        for kernel in ("library", "pull", "push")
    }  # fmt: skip
    assert token["push"] < token["pull"] < token["library"]


def test_embedding_and_logits_stay_in_16_bit_where_layers_are_quantised():
    plan = make_plan(make_setup(precision="fp8"))
    ends = 2 * 128256 * 4096
    assert plan.resident["weights"] == pytest.approx((8.03e9 - ends) * 1.0 + ends * 2.0, rel=1e-3)


def test_a_mean_of_bits_counts_for_the_whole_model():
    # 4.92 GB: the size of the Q4_K_M file of Llama 3 8B at 4.9 bits a weight
    assert make_plan(make_setup(weight_bits=4.9)).resident["weights"] == pytest.approx(4.92e9, rel=5e-3)


@pytest.mark.parametrize(
    "workload",
    [
        {**LOOP, "concurrency": None},
        {**LOOP, "arrival": "offline"},
        {"rate": "1/s", "think_time": "1 s", "prompt": 1, "output": 1},
    ],
)
def test_what_belongs_to_a_closed_loop_is_checked(workload):
    with pytest.raises(ValueError, match=r"'concurrency'|'think_time'"):
        make_setup(workload=workload)


def test_doubt_names_what_kernels_do_not_explain():
    """The spread of iterations is in the interval, and so in the outcome that the doubt is divided from."""
    outcome = simulate(make_setup())
    per_token = outcome.metrics["time_per_output_token_p50"]
    assert 0 < outcome.composition_error <= per_token.error
