"""A CPU that issues operators to a device: closed form against a plain loop, and what it does to a step."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.result import Result
from simulator.cost import Breakdown
from simulator.training.passes import Issued, OperatorPass, issued

Train = Callable[..., Result]
times = st.floats(0.0, 10.0, allow_nan=False)


def passes(pairs: list[tuple[float, float]]) -> list[OperatorPass]:
    return [OperatorPass("op", Breakdown(), device, host) for host, device in pairs]


def replayed(pairs: list[tuple[float, float]]) -> float:
    """End of the last operator: each starts when it is issued and the one before has ended."""
    issue = end = 0.0
    for host, device in pairs:
        issue += host
        end = max(issue, end) + device
    return end


@given(st.lists(st.tuples(times, times), min_size=1, max_size=12), st.integers(1, 6))
@settings(derandomize=True, deadline=None)
def test_a_sequence_repeated_ends_as_its_replay(pairs: list[tuple[float, float]], count: int) -> None:
    sums = issued(passes(pairs))
    assert sums.end == pytest.approx(replayed(pairs))
    assert sums.times(count).end == pytest.approx(replayed(pairs * count))
    assert sums.then(sums).end == pytest.approx(replayed(pairs * 2))


@given(st.lists(st.tuples(times, times, st.booleans()), min_size=1, max_size=12), st.integers(1, 6))
@settings(derandomize=True, deadline=None)
def test_a_cpu_that_reads_counts_waits_for_the_device(
    found: list[tuple[float, float, bool]], count: int
) -> None:
    def replayed(repeats: int) -> float:
        issue = end = 0.0
        for host, device, reads in found * repeats:
            issue = max(issue, end if reads else 0.0) + host
            end = max(issue, end) + device
        return end

    operators = [OperatorPass("op", Breakdown(), device, host, reads=reads) for host, device, reads in found]
    sums = issued(operators)
    assert sums.end == pytest.approx(replayed(1))
    assert sums.times(count).end == pytest.approx(replayed(count))
    assert sums.then(sums).end == pytest.approx(replayed(2))
    assert sums.end >= issued([replace(op, reads=False) for op in operators]).end
    assert sums.busy == pytest.approx(sum(device for _, device, _ in found))


def test_experts_without_a_capacity_cost_a_wait(train: Train) -> None:
    options = {"model": "mixtral-8x7b", "batch": 8, "sequence": 1024, "zero_stage": 1, "expert_parallel": 8}
    free, fixed = train(**options), train(**options, expert_capacity=1.0)
    captured = train(**options, cuda_graphs=True)
    assert free.outcome.bottlenecks["host"] > fixed.outcome.bottlenecks.get("host", 0.0)
    assert "host" not in captured.outcome.bottlenecks


def test_the_slower_side_sets_the_pace() -> None:
    # three operators of 1 s each way: the first waits to be issued, then both sides keep step
    assert issued(passes([(1.0, 1.0)] * 3)).end == 4.0
    assert issued(passes([(2.0, 1.0)] * 3)).end == 7.0
    assert issued(passes([(1.0, 2.0)] * 3)).end == 7.0
    assert Issued().times(0).end == 0.0


def test_a_short_step_waits_for_the_cpu(train: Train) -> None:
    eager = train(batch=8, sequence=64, data_parallel=8)
    captured = train(batch=8, sequence=64, data_parallel=8, cuda_graphs=True)
    assert captured.headline.value < eager.headline.value
    assert eager.bottleneck[0] == "host"
    assert "host" not in captured.shares


def test_transformer_engine_issues_more_slowly_than_plain_modules(train: Train) -> None:
    plain = train(batch=8, sequence=64, data_parallel=8)
    engine = train(batch=8, sequence=64, data_parallel=8, transformer_engine=True)
    assert engine.headline.value > 1.5 * plain.headline.value


def test_a_long_step_does_not(train: Train) -> None:
    options = {
        "model": "gpt3-175b",
        "batch": 8,
        "sequence": 2048,
        "tensor_parallel": 8,
        "pipeline_parallel": 8,
        "nodes": 8,
    }
    eager, captured = train(**options), train(**options, cuda_graphs=True)
    assert eager.headline.value == pytest.approx(captured.headline.value, rel=5e-3)


def test_detail_takes_the_same_time_when_the_cpu_binds(train: Train) -> None:
    options = {
        "batch": 32,
        "sequence": 64,
        "pipeline_parallel": 4,
        "recompute": "full",
        "overlap_gradient_reduction": True,
    }
    plain, detailed = train(**options), train(**options, detail=True)
    assert detailed.headline.value == pytest.approx(plain.headline.value, rel=1e-9)


@pytest.mark.parametrize(
    ("option", "slower"),
    [("fused_loss", False), ("fused_accumulation", False), ("overlap_tensor_parallel", "none")],
)
def test_kernels_of_their_own_cost_time(train: Train, option: str, slower: bool) -> None:
    options = {"model": "gpt3-13b", "batch": 8, "sequence": 2048, "tensor_parallel": 8, "cuda_graphs": True}
    assert train(**options, **{option: slower}).headline.value > train(**options).headline.value


def test_doubt_of_a_step_is_never_below_that_of_its_software(train: Train) -> None:
    result = train()
    metric = result.outcome.metrics["step_time"]
    assert metric.error >= float(result.setup.cost.calibration.error["step"]) > 0.0
