"""Measured against predicted: what is matched, what is left over, and what ran beside what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.analysis import answer, load
from simulator.analysis.operators import predicted_operators
from simulator.graph import Collective, Matmul
from simulator.specs import Catalog, MemroofError
from simulator.strategy import Setup
from simulator.traces import Kernel, Trace, compare, occupation, read_trace
from simulator.traces.overlap import length, union
from simulator.traces.phases import phase_rate

Make = Callable[..., Setup]


def kernels(*rows: Kernel, steps: int | None = None) -> Trace:
    return Trace("made.json", "pytorch", rows, steps=steps)


# --- what is predicted ----------------------------------------------------------------------------------------------


def test_operators_of_a_training_step_add_up_to_the_answer(training: Make) -> None:
    setup = training(tensor_parallel=2, sequence_parallel=False, zero_stage=1, recompute="selective")
    result = answer(setup)
    seconds: dict[str, float] = {}
    for operator in predicted_operators(setup):
        seconds[operator.operator_class] = seconds.get(operator.operator_class, 0.0) + operator.total
    for name in ("matmul", "attention", "elementwise", "embedding"):
        assert seconds[name] == pytest.approx(result.outcome.class_times[name], rel=1e-6)
    # collectives stand with their whole time, hidden or not
    assert seconds["collective"] >= result.outcome.class_times["collective"] * (1.0 - 1e-9)


def test_a_stage_has_its_own_layers_and_messages(training: Make) -> None:
    setup = training(pipeline_parallel=4, micro_batch=1, tensor_parallel=2, data_parallel=1)
    first, inner, last = (predicted_operators(setup, stage=stage) for stage in (0, 1, 3))
    assert {"embedding"} <= {op.name for op in first} - {op.name for op in inner}
    assert {"logits", "loss"} <= {op.name for op in last} - {op.name for op in inner}
    sends = [
        sum(op.count for op in ops if isinstance(op.work, Collective) and op.work.kind == "send")
        for ops in (first, inner, last)
    ]
    assert sends == [16.0, 32.0, 16.0]  # 16 micro-batches forward, backward, or both
    qkv = next(op for op in inner if op.name == "attention.qkv" and op.part == "forward")
    assert (qkv.count, qkv.shape) == (2.0 * 16.0, (1024.0, 1536.0, 1024.0))
    with pytest.raises(MemroofError, match="stages 0 to 3"):
        predicted_operators(setup, stage=4)


def test_operators_of_serving_add_up_to_the_run(serving: Make) -> None:
    setup = serving(chunked_prefill=True)
    result = answer(setup)
    iterations = float(np.sum(result.outcome.tables["iterations"]["steps"]))
    seconds: dict[str, float] = {}
    for operator in predicted_operators(setup):
        seconds[operator.operator_class] = (
            seconds.get(operator.operator_class, 0.0) + operator.total * iterations
        )
    for name in ("matmul", "elementwise", "embedding"):
        assert seconds[name] == pytest.approx(result.outcome.class_times[name], rel=1e-6)
    for name in ("attention", "decode-attention"):  # contexts are means here
        assert seconds[name] == pytest.approx(result.outcome.class_times[name], rel=0.1)


def test_a_model_with_latent_attention_has_operators_of_both_phases(catalog: Catalog) -> None:
    content = {
        "kind": "serving", "hardware": {"node": "dgx-h100"}, "model": "deepseek-v2-lite",
        "workload": {"rate": "1 req/s", "requests": 5, "prompt": 512, "output": 16},
        "strategy": {"tensor_parallel": 2, "precision": "fp8"},
    }  # fmt: skip
    operators = predicted_operators(load(content, catalog=catalog))
    assert {"attention.kv_b", "attention.k_up", "attention.v_up"} <= {op.name for op in operators}
    head = next(op.work for op in operators if op.name == "logits" and isinstance(op.work, Matmul))
    assert head.format == "bf16"
    assert any(isinstance(op.work, Collective) for op in operators)


def test_other_kinds_and_what_does_not_fit_are_refused(serving: Make) -> None:
    with pytest.raises(MemroofError, match="of kind 'offload'"):
        predicted_operators(load("opt-30b-t4"))
    setup = serving(memory_utilization=0.01)
    with pytest.raises(MemroofError, match="does not fit"):
        predicted_operators(setup)


# --- kernels --------------------------------------------------------------------------------------------------------


def test_a_trace_against_a_training_step(training: Make, data: Path) -> None:
    comparison = compare(read_trace(data / "kineto.json"), training(zero_stage=1))
    assert comparison.steps == 2
    groups = {row.name: row for row in comparison.groups}
    assert groups["gemm"].measured == pytest.approx(20e-6)  # 40 us over two steps
    assert groups["gemm"].calls == 0.5
    assert groups["gemm"].ratio == pytest.approx(groups["gemm"].predicted / 20e-6)
    assert groups["host-copy"].ratio is None
    assert groups["optimizer"].measured == 0.0
    assert sum(row.measured_share for row in comparison.classes) == pytest.approx(1.0)
    assert sum(row.predicted_share for row in comparison.groups) == pytest.approx(1.0)
    assert [(u.name, u.time) for u in comparison.unmatched] == [
        ("a_kernel_of_our_own(float*)", pytest.approx(6e-6))
    ]
    assert comparison.classes[-1].name == "unmatched" or any(
        r.name == "unmatched" for r in comparison.classes
    )
    (qkv,) = comparison.operators
    assert (qkv.name, qkv.operator_class) == ("attention.qkv", "matmul")


def test_operators_are_matched_by_name_or_by_the_sizes_of_the_product(training: Make, data: Path) -> None:
    comparison = compare(read_trace(data / "operators.csv"), training())
    measured = {row.name: row.measured for row in comparison.operators}
    assert measured == pytest.approx({"attention.qkv": 40e-6, "mlp.up": 90e-6})
    groups = {row.name: row for row in comparison.groups}
    assert groups["gemm"].measured == pytest.approx(130e-6)
    assert groups["normalization"].measured == pytest.approx(5e-6)


def test_gradients_have_the_same_sizes_in_another_order(training: Make) -> None:
    rows = [
        Kernel("gemm", 1e-6, shape=shape)
        for shape in ((1024, 8192, 1024), (8192, 1024, 1024), (1024, 1024, 8192), (7, 8, 9), (1024, 1024))
    ]
    comparison = compare(kernels(*rows), training())
    assert [(row.name, row.calls) for row in comparison.operators] == [("mlp.up", 3.0)]


def test_in_serving_the_weights_alone_decide(serving: Make) -> None:
    rows = [Kernel("gemm", 1e-6, shape=shape) for shape in ((17, 8192, 1024), (17, 8192, 4096))]
    comparison = compare(kernels(*rows), serving())
    assert [(row.name, row.calls) for row in comparison.operators] == [("mlp.up", 1.0)]


def test_weight_gradients_stand_apart_where_the_trace_tells_them(training: Make) -> None:
    together = compare(kernels(Kernel("gemm", 1e-6)), training())
    apart = compare(kernels(Kernel("gemm", 1e-6), Kernel("x", 1e-6, category="fp8_wgrad")), training())
    before = {row.name: row.predicted for row in together.groups}
    after = {row.name: row.predicted for row in apart.groups}
    assert before["gemm"] == pytest.approx(after["gemm"] + after["weight-gradient-gemm"])


def test_a_trace_of_another_machine_part_needs_its_steps(training: Make) -> None:
    trace = kernels(Kernel("gemm", 4e-6, count=4), steps=2)
    assert compare(trace, training()).groups[0].calls in (0.0, 2.0)
    row = next(r for r in compare(trace, training(), steps=4).groups if r.name == "gemm")
    assert (row.calls, row.measured) == (1.0, pytest.approx(1e-6))


def test_the_h800_trace_scenario_has_the_traced_layers() -> None:
    setup = load("deepseek-v3-h800-training-trace")
    operators = predicted_operators(setup, stage=4)
    grouped = [
        op for op in operators if isinstance(op.work, Matmul) and op.work.grouped and op.part == "forward"
    ]
    assert {(op.name, op.count) for op in grouped} == {("moe.up", 4.0), ("moe.down", 4.0)}
    assert all(isinstance(op.work, Matmul) and op.work.format == "fp8" for op in grouped)


# --- overlap --------------------------------------------------------------------------------------------------------


def test_hidden_communication_is_told_apart(data: Path) -> None:
    found = occupation(read_trace(data / "kineto.json").kernels)
    assert found is not None
    # kernels at 10-50, 60-70, 70-100, 100-106, 150-154; NCCL at 90-140
    assert [round(x * 1e6) for x in (found.span, found.busy, found.compute)] == [144, 124, 90]
    assert [round(x * 1e6) for x in (found.communication, found.hidden, found.exposed, found.idle)] == [
        50, 16, 34, 20,
    ]  # fmt: skip


def test_sums_have_no_overlap(data: Path) -> None:
    assert occupation(read_trace(data / "cuda_gpu_kern_sum.csv").kernels) is None


intervals = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda x: (float(x[0]), float(x[0] + x[1]))),
    max_size=12,
)


@given(intervals)
def test_a_union_counts_every_moment_once(given_intervals: list[tuple[float, float]]) -> None:
    covered = {t for start, end in given_intervals for t in np.arange(start, end)}
    found = union(given_intervals)
    assert length(found) == len(covered)
    assert (found[1:, 0] > found[:-1, 1]).all()


# --- figures --------------------------------------------------------------------------------------------------------


def test_collectives_are_priced_over_the_scenarios_machine(training: Make, data: Path) -> None:
    setup = training()
    comparison = compare(read_trace(data / "all_reduce.txt"), setup)
    last = comparison.figures[-1]
    cost = setup.cost.price(Collective("all-reduce", "tensor", 268435456.0), setup.hardware.span(8))
    assert last.predicted == pytest.approx(float(cost.time))
    assert last.low < last.predicted < last.high
    assert last.label == "all-reduce of 268,435,456 B over 8"
    assert last.ratio == pytest.approx(last.predicted / 2.06e-3)


def test_a_benchmark_against_a_serving_scenario(serving: Make, training: Make, data: Path) -> None:
    setup = serving()
    comparison = compare(read_trace(data / "vllm_serve.json"), setup)
    found = {figure.key: figure for figure in comparison.figures}
    assert {"time_to_first_token_mean", "time_per_output_token_p99", "output_throughput"} <= set(found)
    assert found["time_to_first_token_mean"].predicted == pytest.approx(
        answer(setup).values["time_to_first_token_mean"].value
    )
    assert comparison.notes == ()
    two = compare(read_trace(data / "sglang.jsonl"), setup)
    assert two.notes == (
        "4.0 requests/s: 4 requests/s; the scenario has 2 requests/s",
        "concurrency 16: requests come without a rate; the scenario has 2 requests/s",
        "concurrency 16: prompts of 2,048 tokens on average; the scenario has 512",
    )
    assert len({figure.label.partition(":")[0] for figure in two.figures}) == 2
    with pytest.raises(MemroofError, match="compared with a serving scenario"):
        compare(read_trace(data / "vllm_serve.json"), training())


def test_a_benchmark_of_other_figures_is_refused(serving: Make, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text('{"median_tpot_ms": 5.0, "mean_ttft_ms": null, "total_token_throughput": null}')
    with pytest.raises(MemroofError, match="no figure of the benchmark"):
        compare(read_trace(file), serving(output=1))


def test_llama_bench_is_priced_phase_by_phase(serving: Make, training: Make, data: Path) -> None:
    setup = serving(host_overhead="0 s")
    comparison = compare(read_trace(data / "llama_bench.md"), setup)
    prompt, output, deeper, both = (figure.predicted for figure in comparison.figures)
    assert [figure.key for figure in comparison.figures] == ["pp512", "tg128", "tg128", "pp512+tg128"]
    assert deeper < output < both < prompt
    after = phase_rate(setup, 0, 128, 512)[0]
    assert deeper == pytest.approx(after)
    assert 640.0 / both == pytest.approx(512.0 / prompt + 128.0 / after)
    assert phase_rate(setup, 512, 0, 2048)[0] < prompt
    pieces = serving(host_overhead="0 s", max_batched_tokens=128, max_batch=16)
    assert phase_rate(pieces, 512, 0, 0)[0] < prompt
    with pytest.raises(MemroofError, match="compared with a serving scenario"):
        compare(read_trace(data / "llama_bench.md"), training())
    with pytest.raises(MemroofError, match="may use"):
        phase_rate(serving(memory_utilization=0.01), 512, 0, 0)


def test_a_comparison_is_plain_data(training: Make, serving: Make, data: Path) -> None:
    found = compare(read_trace(data / "kineto.json"), training()).to_dict()
    assert found["occupation"]["exposed"] == pytest.approx(34e-6)
    assert {"name", "class", "calls", "measured", "predicted", "ratio"} <= set(found["classes"][0])
    assert compare(read_trace(data / "vllm_serve.json"), serving()).to_dict()["occupation"] is None
