"""Every technique of a training step as a user sets it: laws of time and memory, and what is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

from simulator.analysis import run
from simulator.analysis.result import Result
from simulator.specs import Catalog, MemroofError
from simulator.training.schedules import SCHEDULES

Train = Callable[..., Result]


def seconds(result: Result) -> float:
    return result.headline.value


def peak(result: Result) -> float:
    return max(use.peak for use in result.memory)


def categories(result: Result) -> dict[str, float]:
    return dict(max(result.memory, key=lambda use: use.peak).by_category)


# --- states cut over replicas


def test_each_zero_stage_holds_less(train: Train) -> None:
    """Rajbhandari et al. 2020, figure 1: optimizer states, then gradients, then parameters are cut over replicas."""
    found = [categories(train(zero_stage=stage)) for stage in range(4)]
    for name, since in (("optimizer states", 1), ("gradients", 2), ("weights", 3)):
        for stage in range(4):
            whole = found[0][name]
            assert found[stage][name] == pytest.approx(whole / 8 if stage >= since else whole, rel=1e-3)


def test_sharded_parameters_cost_their_gathers(train: Train) -> None:
    plain, cut = train(zero_stage=2), train(zero_stage=3)
    assert seconds(cut) > seconds(plain)
    assert categories(cut)["gathered parameters"] > 0
    ahead = [seconds(train(zero_stage=3, prefetch=count)) for count in (0, 1, 2)]
    assert ahead[0] > ahead[1] >= ahead[2]


def test_collectives_of_single_tensors_cost_more_the_more_ranks_there_are(train: Train) -> None:
    """DeepSpeed's ZeRO-3 of 2021: Narayanan et al. 2021, table 2, where four times the GPUs take half the time at best."""
    lost = []
    for nodes in (2, 8):
        layer, tensor = (
            seconds(train(nodes=nodes, batch=8 * nodes, zero_stage=3, prefetch=0, gather_unit=unit))
            for unit in ("layer", "tensor")
        )
        lost.append(tensor - layer)
    assert 0.0 < 2.0 * lost[0] < lost[1]
    again = [seconds(train(zero_stage=3, gather_unit="tensor", recompute=kind)) for kind in ("none", "full")]
    assert again[0] < again[1]


def test_parameters_that_stay_are_gathered_once(train: Train) -> None:
    again, kept = train(zero_stage=3), train(zero_stage=3, reshard_after_forward=False)
    assert seconds(kept) <= seconds(again)
    assert categories(kept)["gathered parameters"] > 2 * categories(again)["gathered parameters"]


def test_hybrid_shards_hold_more_and_stay_in_the_node(train: Train) -> None:
    """HSDP over two nodes: states cut over one node's GPUs, replicas of the node reduce between them."""
    flat, hybrid = train(nodes=2, zero_stage=3), train(nodes=2, zero_stage=3, shard_group=8)
    assert categories(hybrid)["optimizer states"] == pytest.approx(
        2 * categories(flat)["optimizer states"], rel=1e-3
    )
    assert seconds(hybrid) < seconds(flat)


def test_updated_parameters_can_arrive_beside_the_next_step(train: Train) -> None:
    options = {"nodes": 2, "zero_stage": 1, "overlap_gradient_reduction": True}
    assert seconds(train(**options, overlap_parameter_gather=True)) < seconds(train(**options))


# --- cuts of the sequence and of products


@pytest.mark.parametrize("exchange", ["all-gather", "ring", "all-to-all"])
def test_context_parallelism_cuts_activations(train: Train, exchange: str) -> None:
    options = {"sequence": 2048, "batch": 8}
    whole, cut = (
        train(**options, data_parallel=4),
        train(**options, context_parallel=2, context_exchange=exchange),
    )
    assert categories(cut)["activations"] == pytest.approx(categories(whole)["activations"] / 2, rel=0.02)
    assert cut.outcome.bottlenecks.get("context-parallel link", 0.0) > 0


def test_chunks_hide_tensor_parallel_collectives(train: Train) -> None:
    options = {"tensor_parallel": 4, "sequence_parallel": True, "sequence": 2048, "cuda_graphs": True}
    times = [
        seconds(train(**options, overlap_tensor_parallel=how)) for how in ("none", "backward", "chunked")
    ]
    assert times[0] > times[1] > times[2]


# --- schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_the_same_passes(train: Train, name: str) -> None:
    kind = SCHEDULES[name]
    chunks = 1 if kind.chunks is not None else 2
    result = train(schedule=name, pipeline_parallel=4, data_parallel=2, batch=32, virtual_stages=chunks)
    stages = result.outcome.tables["stages"]
    plain = train(schedule="1f1b", pipeline_parallel=4, data_parallel=2, batch=32).outcome.tables["stages"]
    # an operator apart from its other half hides less
    assert sum(plain["busy"]) <= sum(stages["busy"]) * (1 + 1e-9)
    assert sum(stages["busy"]) < 1.15 * sum(plain["busy"])
    assert seconds(result) >= max(stages["busy"])


def test_schedules_in_order_of_their_bubbles(train: Train) -> None:
    """Narayanan et al. 2021, section 2.2; Qi et al. 2023, table 1."""
    options = {"pipeline_parallel": 4, "data_parallel": 2, "batch": 16}
    bubble = {
        name: train(schedule=name, **options).values["pipeline_bubble"].value
        for name in ("naive", "1f1b", "zb-h1", "zb-v")
    }
    assert bubble["naive"] > bubble["1f1b"] > bubble["zb-h1"] > bubble["zb-v"]


def test_pairs_hide_the_exchange_of_experts(train: Train) -> None:
    options = {
        "model": "qwen1.5-moe-a2.7b", "sequence": 1024, "batch": 32, "expert_parallel": 4, "pipeline_parallel": 2,
        "data_parallel": 4, "schedule": "dualpipe", "zero_stage": 1,
    }  # fmt: skip
    alone, paired = train(**options), train(**options, overlap_expert_parallel=True)
    assert seconds(paired) < seconds(alone)
    link = "expert-parallel link"
    assert paired.outcome.bottlenecks.get(link, 0.0) < alone.outcome.bottlenecks[link]


def test_padded_slots_are_no_model_flops(train: Train) -> None:
    options = {
        "model": "qwen1.5-moe-a2.7b",
        "sequence": 1024,
        "batch": 32,
        "expert_parallel": 4,
        "zero_stage": 1,
    }
    free, padded = train(**options), train(**options, expert_capacity=2.0)
    assert seconds(padded) > seconds(free)
    ratio = padded.values["model_flops_utilization"].value / free.values["model_flops_utilization"].value
    assert ratio == pytest.approx(seconds(free) / seconds(padded), rel=1e-6)


# --- recomputation


def test_layers_that_recompute_trade_bytes_for_seconds(train: Train) -> None:
    some = [train(recompute="full", recompute_layers=count) for count in (0, 4, 8)]
    assert [seconds(r) for r in some] == sorted(seconds(r) for r in some)
    assert [peak(r) for r in some] == sorted((peak(r) for r in some), reverse=True)
    assert seconds(some[0]) == seconds(train())
    assert peak(some[2]) == peak(train(recompute="full"))


def test_micro_batches_that_recompute_trade_too(train: Train) -> None:
    """Korthikanti et al. 2022, appendix C: only as many as must."""
    options = {"pipeline_parallel": 4, "data_parallel": 2, "recompute": "full"}
    some = [train(**options, recompute_micro_batches=count) for count in (0, 2, 4)]
    assert [seconds(r) for r in some] == sorted(seconds(r) for r in some)
    assert peak(some[0]) > peak(some[1]) > peak(some[2])


def test_operators_by_name(train: Train) -> None:
    plain, again = train(), train(recompute_operators=["mlp.activation", "mlp.norm"])
    assert peak(again) < peak(plain)
    assert seconds(again) > seconds(plain)
    with pytest.raises(
        MemroofError, match=r"no layer has an operator mlp.activatio; did you mean mlp.activation"
    ):
        train(recompute_operators=["mlp.activatio"])


def test_the_optimal_choice_fills_the_memory(catalog: Catalog) -> None:
    """Llama-3-8B does not fit without recomputation; what must not be repeated is not, and never is full faster."""

    def answer(recompute: str) -> Result:
        scenario = {
            "kind": "training", "hardware": "dgx-h100", "model": "llama3-8b",
            "workload": {"global_batch": 64, "sequence": 8192},
            "strategy": {"zero_stage": 3, "micro_batch": 4, "recompute": recompute},
        }  # fmt: skip
        return run(scenario, catalog=catalog)

    none, full, optimal = answer("none"), answer("full"), answer("optimal")
    assert not none.fits
    assert full.fits
    assert optimal.fits
    assert seconds(none) < seconds(optimal) < seconds(full)
    assert peak(full) < peak(optimal)


# --- what is trained, formats, codecs, long runs


def test_adapters_need_no_gradients_of_frozen_weights(train: Train) -> None:
    full, lora = train(cuda_graphs=True), train(cuda_graphs=True, trainable={"method": "lora", "rank": 8})
    assert seconds(lora) < seconds(full)
    assert categories(lora)["gradients"] < 0.05 * categories(full)["gradients"]
    packed = train(trainable={"method": "qlora", "rank": 8})
    assert categories(packed)["weights"] < 0.7 * categories(lora)["weights"]


def test_layers_updated_in_the_backward_pass_keep_no_gradients(train: Train) -> None:
    plain, layer = train(batch=8), train(batch=8, optimizer_update="layer")
    assert categories(layer)["gradients"] < 0.6 * categories(plain)["gradients"]


def test_coded_gradients_and_boundaries(train: Train) -> None:
    codec = {"ratio": 4, "encode": "2 TB/s", "decode": "2 TB/s", "chunks": 8}
    options = {"nodes": 2, "pipeline_parallel": 2}
    plain = train(**options)
    assert seconds(train(**options, compression={"gradients": codec})) < seconds(plain)
    slow = {**codec, "encode": "1 GB/s"}
    assert seconds(train(**options, compression={"gradients": slow})) > seconds(plain)
    assert peak(train(**options, compression={"activations": codec})) < peak(plain)


def test_a_long_run_fails_and_waits(catalog: Catalog) -> None:
    scenario: dict[str, Any] = {
        "kind": "training", "hardware": {"node": "dgx-a100-80gb", "nodes": 128}, "model": "toy",
        "workload": {"global_batch": 2048, "sequence": 1024, "tokens": "1 T tokens"}, "strategy": {"zero_stage": 1},
    }  # fmt: skip
    plain = run(scenario, catalog=catalog)
    scenario["operations"] = {
        "mtbf_per_gpu": "40000 h", "checkpoints": {"storage_bandwidth": "10 GB/s"}, "restart_time": "10 min",
        "straggler_spread": 0.01,
    }  # fmt: skip
    real = run(scenario, catalog=catalog)
    assert real.values["sustained_step_time"].value > seconds(real) == seconds(plain)
    assert real.values["effective_training_time"].value < 1.0
    assert real.values["run_time"].value > plain.values["run_time"].value
    assert not any("no failures" in line for line in real.assumptions)


# --- unequal accelerators


@pytest.fixture(scope="module")
def mixed(catalog: Catalog) -> Callable[..., Result]:
    def answer(**strategy: Any) -> Result:
        scenario = {
            "kind": "training", "hardware": {"cluster": "aws-p5-p4d"}, "model": "toy",
            "workload": {"global_batch": 128, "sequence": 1024}, "strategy": {"tensor_parallel": 8, "cuda_graphs": True, **strategy},
        }  # fmt: skip
        return run(scenario, catalog=catalog)

    return answer


def test_faster_accelerators_take_more_micro_batches(mixed: Callable[..., Result]) -> None:
    even, given, balanced = mixed(), mixed(batch_split=[40, 40, 24, 24]), mixed(batch_split="balanced")
    assert seconds(balanced) <= seconds(given) < seconds(even)
    assert balanced.values["tokens_per_second"].value == pytest.approx(128 * 1024 / seconds(balanced))


def test_faster_accelerators_take_more_layers(mixed: Callable[..., Result]) -> None:
    even, balanced = mixed(pipeline_parallel=2), mixed(pipeline_parallel=2, layer_split="balanced")
    assert seconds(balanced) < seconds(even)
    assert seconds(mixed(pipeline_parallel=2, layer_split=[5, 3])) < seconds(
        mixed(pipeline_parallel=2, layer_split=[3, 5])
    )


def test_more_memory_takes_more_states(mixed: Callable[..., Result]) -> None:
    even, shared = mixed(zero_stage=1), mixed(zero_stage=1, state_split="memory")

    def by_capacity(result: Result) -> list[float]:
        return [
            use.by_category["optimizer states"] for use in sorted(result.memory, key=lambda use: use.capacity)
        ]

    small, large = by_capacity(shared)
    assert small < by_capacity(even)[0] < large
    assert 2 * small + 2 * large == pytest.approx(4 * by_capacity(even)[0])


def test_placed_ranks_are_faster_over_measured_regions(catalog: Catalog) -> None:
    """Eight regions whose links differ by an order of magnitude: neighbours in the pipeline move next to each other."""

    def answer(**strategy: Any) -> Result:
        scenario = {
            "kind": "training", "hardware": {"cluster": "aws-eight-regions"}, "model": "toy",
            "workload": {"global_batch": 64, "sequence": 1024}, "strategy": {"pipeline_parallel": 8, "precision": "fp16", **strategy},
        }  # fmt: skip
        return run(scenario, catalog=catalog)

    plain, placed = answer(), answer(placement="annealed", placement_seed=1)
    assert seconds(placed) < 0.9 * seconds(plain)
    assert seconds(placed) == seconds(answer(placement="annealed", placement_seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_parallel": 2, "sequence": 1022}, "sequence 1022 is no multiple of 2 x context_parallel 2"),
        ({"context_exchange": "ring"}, "strategy.context_exchange: ring needs context_parallel of 2 or more"),
        ({"context_parallel": 2, "fused_attention": False}, "strategy.context_parallel: needs fused_attention"),
        ({"shard_group": 4}, "strategy.shard_group: needs zero_stage of 1 or more"),
        ({"shard_group": 3, "zero_stage": 1}, "strategy.shard_group: 3 does not divide the 8 ranks"),
        ({"prefetch": 2}, "strategy.prefetch: needs zero_stage 3"),
        ({"reshard_after_forward": False, "zero_stage": 2}, "strategy.reshard_after_forward: needs zero_stage 3"),
        ({"overlap_parameter_gather": True}, "strategy.overlap_parameter_gather: needs zero_stage 1 or 2, found 0"),
        ({"recompute_layers": 2}, "strategy.recompute_layers: nothing is recomputed"),
        ({"recompute": "optimal", "recompute_layers": 2}, "strategy.recompute: optimal chooses layers and operators itself"),
        ({"overlap_tensor_parallel": "chunked", "tensor_parallel": 2}, "chunked needs sequence_parallel"),
        ({"overlap_expert_parallel": True}, "strategy.overlap_expert_parallel: needs a model with experts"),
        ({"overlap_shared_experts": True}, "strategy.overlap_shared_experts: needs a model with shared experts"),
        ({"expert_capacity": 1.5}, "strategy.expert_capacity: toy has no experts"),
        ({"schedule": "dualpipe", "pipeline_parallel": 4, "batch": 8, "data_parallel": 2}, "strategy.schedule: dualpipe needs"),
        ({"layer_split": [4, 3], "pipeline_parallel": 2}, "strategy.layer_split: counts add up to 7; toy has 8 layers"),
        ({"layer_split": [4, 4], "pipeline_parallel": 4}, "strategy.layer_split: 2 counts for 4 model chunks"),
        ({"batch_split": [16, 16]}, "strategy.batch_split: 2 counts for 8 replicas"),
        ({"batch_split": [4] * 7 + [5]}, "strategy.batch_split: 33 micro-batches of 1 are no batch of 32 sequences"),
        ({"batch_split": "balanced", "zero_stage": 2}, "strategy.batch_split: zero_stage 2 reduces after every micro-batch"),
        ({"state_split": "memory"}, "strategy.state_split: needs zero_stage of 1 or more"),
        ({"compression": {"boundaries": {"ratio": 2, "encode": "1 GB/s", "decode": "1 GB/s"}}}, "needs pipeline_parallel of 2"),
        ({"optimizer_update": "layer"}, "strategy.optimizer_update"),
        ({"fp8_recipe": "block"}, "strategy.fp8_recipe: needs precision fp8, found bf16"),
        ({"attention_kernel": "flash-1", "fused_attention": False}, "strategy.attention_kernel: flash-1 needs fused_attention"),
        ({"wide_loss": False, "fused_loss": False}, "strategy.wide_loss: a loss of several kernels"),
        ({"trainable": {"method": "lorra", "rank": 8}}, "method: found 'lorra', expected one of full, lora"),
        ({"trainable": {"method": "lora", "rank": 8, "target": ["mlp"]}}, "trainable.target: unknown key; did you mean 'targets'?"),
        ({"trainable": {"method": "lora", "rank": 8, "targets": ["mlq"]}}, "no layer is called 'mlq'; did you mean 'mlp"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(train: Train, options: dict, message: str) -> None:
    with pytest.raises(MemroofError) as caught:
        train(**options)
    assert message in str(caught.value)
