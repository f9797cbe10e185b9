"""A training step: plans refused by name, laws of the step, closed forms, bytes of each category."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.result import Result
from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.training import Elements, model_states, split_layers
from simulator.training.schedules import bubble_fraction

Train = Callable[..., Result]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 3}, "strategy.tensor_parallel: 3 does not divide toy's 16 attention heads"),
        ({"tensor_parallel": 8, "pipeline_parallel": 2}, "tensor_parallel 8 x pipeline_parallel 2 x data_parallel 1 = 16 GPUs; dgx-a100-80gb x 1 has 8"),
        ({"pipeline_parallel": 3}, "8 GPUs are no multiple of tensor_parallel 1 x pipeline_parallel 3"),
        ({"pipeline_parallel": 8, "virtual_stages": 2, "schedule": "1f1b-interleaved"}, "8 x virtual_stages 2 exceeds toy's 8 layers"),
        ({"virtual_stages": 2}, "strategy.virtual_stages: 2 needs schedule 1f1b-interleaved or wrap-around, found 1f1b"),
        ({"schedule": "1f1b-interleaved"}, "strategy.schedule: 1f1b-interleaved needs virtual_stages of 2 or more, found 1"),
        ({"expert_parallel": 2}, "strategy.expert_parallel: toy has no experts"),
        ({"sequence_parallel": True}, "strategy.sequence_parallel: needs tensor_parallel of 2 or more"),
        ({"micro_batch": 3}, "workload.global_batch: 32 is no multiple of data_parallel 8 x micro_batch 3"),
        ({"precision": "fp8"}, "has no fp8 matrix units"),
        (
            {"pipeline_parallel": 4, "virtual_stages": 2, "schedule": "1f1b-interleaved", "batch": 12, "data_parallel": 2},
            "needs micro-batches (6) in multiples of pipeline_parallel (4)",
        ),
    ],
)  # fmt: skip
def test_illegal_plans_are_refused_by_name(train: Train, options: dict, message: str) -> None:
    with pytest.raises(MemroofError) as caught:
        train(**options)
    assert message in str(caught.value)


def test_all_faults_at_once(train: Train) -> None:
    with pytest.raises(MemroofError) as caught:
        train(tensor_parallel=3, virtual_stages=2, micro_batch=5)
    assert len(str(caught.value).splitlines()) == 5


def test_learned_positions_end(train: Train) -> None:
    with pytest.raises(MemroofError, match="4096 exceeds gpt3-175b's 2048 learned positions"):
        train(model="gpt3-175b", sequence=4096, tensor_parallel=8)


@given(layers=st.integers(1, 130), parts=st.integers(1, 130))
@settings(derandomize=True, deadline=None)
def test_layers_are_cut_evenly_and_in_order(layers: int, parts: int) -> None:
    cut = split_layers(layers, parts)
    assert [i for part in cut for i in part] == list(range(layers))
    sizes = [len(part) for part in cut]
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "bf16"}, (2, 4, 12)),
        ({"precision": "fp16", "gradient_precision": "fp16"}, (2, 2, 12)),
        ({"precision": "fp32"}, (4, 4, 8)),
        ({"precision": "bf16", "optimizer": "sgd"}, (2, 4, 8)),
        ({"precision": "fp8"}, (2, 4, 12)),
    ],
)
def test_bytes_per_parameter(options: dict, expected: tuple) -> None:
    """18 bytes with fp32 gradients (Megatron-LM), 16 with 16-bit ones (Rajbhandari et al. 2020, section 3.1)."""
    states = model_states(TrainingStrategy.model_validate(options), Elements(1.0))
    assert (states.weights, states.gradients, states.optimizer) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel": 2, "pipeline_parallel": 4},
        {"tensor_parallel": 2, "sequence_parallel": True, "recompute": "selective", "fused_attention": False},
        {"pipeline_parallel": 2, "virtual_stages": 2, "schedule": "1f1b-interleaved", "recompute": "full"},
        {"pipeline_parallel": 4, "schedule": "gpipe", "micro_batch": 2},
    ],
)
def test_operators_one_by_one_take_the_same_step(train: Train, options: dict) -> None:
    together, apart = train(**options), train(**options, detail=True)
    assert apart.headline.value == pytest.approx(together.headline.value, rel=1e-9)
    assert apart.memory[0].peak == together.memory[0].peak
    assert apart.timeline.n_tasks > 10 * together.timeline.n_tasks


def test_time_is_divided_without_rest(train: Train) -> None:
    for options in (
        {"pipeline_parallel": 4},
        {"tensor_parallel": 4, "zero_stage": 1},
        {"overlap_gradient_reduction": True},
    ):
        result = train(**options)
        assert sum(result.outcome.bottlenecks.values()) == pytest.approx(result.headline.value, rel=1e-6)
        assert sum(result.outcome.class_times.values()) == pytest.approx(result.headline.value, rel=1e-6)


def test_pipeline_bubble_is_reported(train: Train) -> None:
    result = train(pipeline_parallel=4, data_parallel=1, batch=16, model="megatron-1.7b")
    assert result.values["pipeline_bubble"].value == pytest.approx(bubble_fraction("1f1b", 4, 16), rel=0.25)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_trades_time_for_memory(train: Train, recompute: str) -> None:
    options = {"tensor_parallel": 2, "fused_attention": False}
    kept, again = train(**options), train(**options, recompute=recompute)
    assert again.headline.value > kept.headline.value
    assert again.memory[0].by_category["activations"] < kept.memory[0].by_category["activations"]
    assert again.values["model_flops_utilization"].value < kept.values["model_flops_utilization"].value
    ratio = again.values["hardware_flops_utilization"].value / again.values["model_flops_utilization"].value
    assert 1.0 < ratio < 4 / 3 + 1e-9


def test_full_recomputation_repeats_all_but_the_head(train: Train) -> None:
    """Hardware over model FLOPs: 4/3 of the layers; the head is not repeated (Korthikanti et al. 2022, equations 7 and 8)."""
    result = train(
        model="megatron-22b",
        tensor_parallel=8,
        batch=4,
        micro_batch=4,
        sequence=2048,
        recompute="full",
        fused_attention=False,
        precision="fp16",
    )
    h, s, v, layers = 6144, 2048, 51200, 48
    model = 3 * (1 + s / (6 * h) + v / (12 * layers * h))
    hardware = 4 * (1 + s / (6 * h)) + 3 * v / (12 * layers * h)
    ratio = result.values["hardware_flops_utilization"].value / result.values["model_flops_utilization"].value
    assert ratio == pytest.approx(hardware / model, rel=1e-9)


def test_sequence_parallelism_saves_activations(train: Train) -> None:
    plain, cut = (train(tensor_parallel=8, sequence_parallel=on) for on in (False, True))
    assert cut.memory[0].by_category["activations"] < plain.memory[0].by_category["activations"]


def test_gradient_reduction_hides_behind_the_backward_pass(train: Train) -> None:
    exposed = train(nodes=4)
    hidden = train(nodes=4, overlap_gradient_reduction=True)
    assert hidden.headline.value < exposed.headline.value
    assert hidden.outcome.bottlenecks["network"] < exposed.outcome.bottlenecks["network"]


def test_zero_1_saves_memory_and_gathers_parameters(train: Train) -> None:
    plain, cut = train(nodes=2), train(nodes=2, zero_stage=1)
    assert cut.memory[0].by_category["optimizer states"] == pytest.approx(
        plain.memory[0].by_category["optimizer states"] / 16
    )
    tags = set(cut.timeline.to_frame()["tag"])
    assert "parameter gather" in tags


def test_a_step_is_never_faster_than_its_flops_or_its_busiest_stage(train: Train) -> None:
    result = train(pipeline_parallel=4, tensor_parallel=2)
    assert 0 < result.values["hardware_flops_utilization"].value < 1
    assert result.headline.value >= max(result.timeline.busy().values()) * (1 - 1e-12)


def test_more_nodes_divide_the_work(train: Train) -> None:
    one, two = train(nodes=1, batch=64), train(nodes=2, batch=64)
    assert one.headline.value / 2 < two.headline.value < one.headline.value


def test_experts_add_all_to_all(catalog: Catalog, train: Train) -> None:
    result = train(model="qwen1.5-moe-a2.7b", expert_parallel=4, batch=8, sequence=512, zero_stage=1)
    assert result.outcome.bottlenecks["expert-parallel link"] > 0
    assert "experts equally loaded" in result.assumptions


def test_encoder_decoders_train(train: Train) -> None:
    assert train(model="t5-large", tensor_parallel=2, sequence=512).headline.value > 0


def test_what_does_not_fit_says_what_would(train: Train) -> None:
    result = train(model="llama3.1-70b", tensor_parallel=8, batch=8, sequence=8192)
    assert not result.fits
    assert "GPU: needs" in result.shortfalls[0]
    assert "short" in result.shortfalls[0]
    remedies = result.remedies()
    assert remedies
    assert all(remedy.fits for remedy in remedies)
    assert "hardware.nodes" in remedies[0].overrides


def test_mild_remedies_come_first(train: Train) -> None:
    result = train(model="llama2-7b", tensor_parallel=2, batch=64, micro_batch=4, sequence=4096)
    assert not result.fits
    assert result.remedies()[0].description == "ZeRO-1: optimizer states cut over data-parallel ranks"


def test_too_many_tasks_are_refused(train: Train) -> None:
    with pytest.raises(MemroofError, match="a larger micro_batch"):
        train(pipeline_parallel=8, batch=1_000_000)


def test_same_input_same_answer(train: Train) -> None:
    assert train(pipeline_parallel=4).to_dict() == train(pipeline_parallel=4).to_dict()
