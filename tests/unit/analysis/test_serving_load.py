"""Largest load, cost against load, fleets, Pareto fronts and distributions of serving, on a small model."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis import load as load_scenario
from simulator.analysis.capacity import LargestLoad, largest_load, largest_rate
from simulator.analysis.curve import LoadCurve, load_curve
from simulator.analysis.distribution import distributions, plot_series, requests_csv, series
from simulator.analysis.fleet import Fleet, fleet
from simulator.analysis.offered_load import at_load, knob_of, own_load, serving
from simulator.analysis.pareto import Pareto, pareto, pareto_front
from simulator.analysis.run import answer, run
from simulator.analysis.slo import Goal, Sample, attainment, goal_of, judge, sample, tightest
from simulator.report.serving import (
    capacity_lines,
    curve_lines,
    fleet_document,
    fleet_lines,
    latency_document,
    latency_lines,
    pareto_lines,
    replica_interval,
)
from simulator.specs import Catalog, MemroofError, ServiceObjective

SLO = {"time_to_first_token": "15 ms", "time_per_output_token": "4 ms"}


def scenario(
    workload: Mapping[str, Any] | None = None, hardware: Mapping[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """Qwen2.5-0.5B on one H100, 512 tokens in and 16 out."""
    return {
        "kind": "serving", "name": "little", "model": "qwen2.5-0.5b", "hardware": hardware or {"device": "h100-sxm"},
        "workload": workload or {"rate": "200 req/s", "requests": 300, "prompt": 512, "output": 16}, **fields,
    }  # fmt: skip


@cache
def found() -> LargestLoad:
    return largest_rate(scenario(slo=SLO))


def seen_at(rate: float, largest: LargestLoad, requests: int | None = None) -> Sample:
    setup = replace(largest.result.setup, scenario=load_scenario(scenario(slo=SLO)).scenario)
    return sample(answer(at_load(setup, rate, requests=requests or largest.requests)))


# --- judging a run ---


def test_the_largest_rate_holds_and_five_per_cent_more_does_not() -> None:
    largest = found()
    assert largest.knob == "rate"
    assert judge(seen_at(largest.value, largest), largest.goal).holds
    assert not judge(seen_at(1.05 * largest.value, largest), largest.goal).holds
    assert largest.value < largest.misses <= 1.0101 * largest.value
    assert largest.rate == pytest.approx(largest.value)
    assert largest.binding in (*SLO, "queue")


def test_the_interval_holds_the_value_and_sampling_is_small() -> None:
    largest = found()
    assert largest.low < largest.value < largest.high
    assert 0.0 < largest.sampling < 0.1
    low, high = largest.sampling_interval
    assert low * high == pytest.approx(largest.value**2)


def test_attainment_falls_with_load() -> None:
    largest = found()
    objective = largest.goal.slo
    assert objective is not None
    rates = [share * largest.value for share in (0.3, 0.7, 1.0, 1.2, 1.6)]
    shares = [attainment(seen_at(rate, largest, 800), objective) for rate in rates]
    assert all(after <= before + 0.01 for before, after in itertools.pairwise(shares))
    assert shares[0] > 0.99 > shares[-1]


def test_two_replicas_hold_twice_the_rate() -> None:
    two = largest_rate(scenario(hardware={"device": "h100-sxm", "count": 2}, slo=SLO), draws=0)
    assert two.seen.replicas == pytest.approx(2.0)
    # arrivals that are dealt in turn are smoother than Poisson ones: a little more than twice
    assert 1.9 < two.value / found().value < 2.4


def test_a_queue_with_fixed_service_is_that_of_pollaczek_and_khinchine() -> None:
    """M/D/1: the mean wait in units of the service time is u / (2 (1 - u)); a wait of 1 is met up to u = 2/3."""
    strategy = {"max_batch": 1, "max_batched_tokens": 2048, "schedule_ahead": False, "host_overhead": "0 s"}
    workload = {"rate": "10 req/s", "prompt": 1024, "output": 1, "requests": 3000}
    plain = scenario(workload, strategy=strategy)
    service = (
        run({**plain, "workload": {**workload, "rate": "1 req/s", "requests": 3}})
        .values["end_to_end_p50"]
        .value
    )
    held = largest_rate({**plain, "limit": {"queue_time_mean": f"{service * 1e6:.6f} us"}}, draws=0)
    assert held.binding == "queue_time_mean"
    assert held.value * service == pytest.approx(2.0 / 3.0, rel=0.08)


def test_without_a_goal_the_queue_is_what_binds() -> None:
    strategy = {"max_batch": 1, "schedule_ahead": False, "host_overhead": "0 s"}
    workload = {"rate": "10 req/s", "prompt": 1024, "output": 1, "requests": 2000}
    held = largest_rate(scenario(workload, strategy=strategy), draws=0)
    assert held.binding == "queue"
    assert held.goal.text() == "a queue that does not grow"
    service = 1.0 / held.value
    alone = (
        run(scenario({**workload, "rate": "1 req/s", "requests": 3}, strategy=strategy))
        .values["end_to_end_p50"]
        .value
    )
    # some 2 % of the requests may wait at the end of the run
    assert service == pytest.approx(alone, rel=0.04)


def test_slower_iterations_are_the_same_run_on_a_slower_clock() -> None:
    seen, goal = found().seen, found().goal
    slower = replace(seen, latencies={key: 1.3 * values for key, values in seen.latencies.items()})
    assert judge(seen, goal, slower=1.3).margin == pytest.approx(judge(slower, goal).margin)
    later = {**seen.latencies, "time_to_first_token": 4.0 * seen.latencies["time_to_first_token"]}
    assert judge(seen, goal, later=4.0) == judge(replace(seen, latencies=later), goal)
    assert (
        tightest(replace(seen, latencies=later), judge(seen, goal, later=4.0), goal) == "time_to_first_token"
    )


def hand_made(**fields: Any) -> Sample:
    latencies = {
        "time_to_first_token": np.array([1.0, 2.0, 3.0, 4.0]), "time_per_output_token": np.array([0.1, 0.2, np.nan, 0.4]),
        "end_to_end": np.array([5.0, 6.0, 7.0, 8.0]), "queue_time": np.zeros(4),
    }  # fmt: skip
    plain = {
        "latencies": latencies, "waiting": 0.0, "count": 4, "span": 10.0, "life": 1.0, "others": {"preemptions": 3.0},
        "errors": (0.1, 0.2), "output_rate": 1.0, "busy": 1.0, "replicas": 1.0,
    }  # fmt: skip
    return Sample(**{**plain, **fields})


def test_an_objective_is_judged_by_its_share_of_requests() -> None:
    three_of_four = ServiceObjective.model_validate({"time_to_first_token": "3 s", "share": 0.75})
    all_of_them = three_of_four.model_copy(update={"share": 1.0})
    assert judge(hand_made(), Goal(three_of_four, {})).margin == 0.0
    assert judge(hand_made(), Goal(all_of_them, {})).margin == pytest.approx(math.log(3.0 / 4.0))
    assert attainment(hand_made(), all_of_them) == 0.75
    both = ServiceObjective.model_validate({"time_to_first_token": "3 s", "time_per_output_token": "100 ms"})
    # the answer of one token has no time per output token, and holds any
    assert attainment(hand_made(), both) == 0.5


def test_limits_are_judged_on_the_steady_part() -> None:
    assert judge(hand_made(), Goal(None, {"time_to_first_token_p50": 2.5})).margin == pytest.approx(0.0)
    assert judge(hand_made(), Goal(None, {"end_to_end_mean": 13.0})).margin == pytest.approx(math.log(2.0))
    assert not judge(hand_made(), Goal(None, {"preemptions": 0.0})).holds
    assert judge(hand_made(others={"preemptions": 0.0}), Goal(None, {"preemptions": 0.0})).holds
    assert judge(hand_made(waiting=0.04), Goal(None, {})).binding == "queue"


def test_a_goal_says_what_it_asks_for() -> None:
    plain = run(scenario())
    limited = scenario(slo=SLO, limit={"time_to_first_token_p99": "40 ms", "preemptions": "3"})
    goal = goal_of(serving(load_scenario(limited)), plain)
    assert goal.share == 0.99
    assert "90 % of requests" in goal.text()
    assert "time to first token p99 at most 40.0 ms; preemptions at most 3" in goal.text()
    lower = serving(load_scenario(scenario(limit={"output_throughput": "> 5"})))
    with pytest.raises(MemroofError, match="asks for at least something"):
        goal_of(lower, plain)


# --- searches that end otherwise ---


def test_an_objective_that_a_lone_request_misses_holds_at_no_load() -> None:
    none = largest_rate(scenario(slo={"time_per_output_token": "1 us"}))
    assert none.value == none.rate == 0.0
    assert none.binding == "time_per_output_token"
    assert "requests that come alone miss time per output token" in "\n".join(capacity_lines(none))


def test_what_does_not_fit_holds_no_load() -> None:
    none = largest_rate({**scenario(), "model": "llama3.1-70b"})
    assert not none.result.fits
    assert none.value == 0.0
    assert "it does not fit" in "\n".join(capacity_lines(none))


def test_a_closed_loop_has_a_largest_number_of_clients() -> None:
    workload = {"arrival": "closed", "concurrency": 4, "prompt": 512, "output": 16}
    clients = largest_rate(scenario(workload, slo=SLO), draws=1)
    assert clients.knob == "concurrency"
    assert clients.value == int(clients.value) >= 1
    assert clients.misses > clients.value
    setup = load_scenario(scenario(workload, slo=SLO))
    assert judge(sample(answer(at_load(setup, clients.value, requests=clients.requests))), clients.goal).holds
    assert "clients" in "\n".join(capacity_lines(clients))
    with pytest.raises(MemroofError, match=r"no concurrency up to .* misses"):
        largest_rate(scenario({**workload, "requests": 60}, strategy={"max_batch": 2}), requests=60)


def test_a_trace_has_a_largest_speed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    moments = np.cumsum(rng.exponential(0.02, 250))
    rows = "\n".join(f"{moment},512,16" for moment in moments)
    (tmp_path / "trace.csv").write_text(f"arrival,prompt,output\n{rows}\n")
    workload = {"arrival": "trace", "trace": {"file": str(tmp_path / "trace.csv")}}
    speed = largest_rate(scenario(workload, slo=SLO))
    assert speed.knob == "speed"
    assert speed.sampling == 0.0
    assert speed.rate == pytest.approx(speed.value * 249 / (moments[-1] - moments[0]))
    lines = "\n".join(capacity_lines(speed))
    assert "times as recorded" in lines
    assert "a single sequence of requests" in lines


def test_what_has_no_load_is_refused() -> None:
    offline = {"arrival": "offline", "prompt": 512, "output": 16}
    with pytest.raises(MemroofError, match="'offline' has no load to vary"):
        largest_rate(scenario(offline))
    with pytest.raises(MemroofError, match="load is that of serving"):
        largest_rate("training/gpt3-175b-64xa100")
    with pytest.raises(MemroofError, match="tolerance must be above 0"):
        largest_rate(scenario(), tolerance=0.0)


def test_runs_too_short_to_miss_say_so() -> None:
    with pytest.raises(MemroofError, match="misses in runs of 2 requests"):
        largest_rate(scenario(slo={"time_to_first_token": "10 s"}), requests=2)


def test_arrivals_come_at_exactly_the_rate() -> None:
    setup = load_scenario(scenario())
    result = answer(at_load(setup, 123.0, requests=50, seed=7))
    assert result.values["offered_request_rate"].value == pytest.approx(123.0)
    assert knob_of(serving(setup)) == "rate"
    assert own_load(serving(setup)) == 200.0


def test_a_length_that_is_asked_for_is_kept() -> None:
    assert largest_rate(scenario(slo=SLO), requests=150, draws=0, tolerance=0.1).requests == 150


# --- metrics of the plain answer ---


def test_goodput_is_the_rate_of_requests_that_hold_the_objective() -> None:
    result = run(scenario(slo=SLO))
    values, requests = result.values, result.outcome.tables["requests"]
    held = (requests["time_to_first_token"] <= 0.015) & (requests["time_per_output_token"] <= 0.004)
    share = values["slo_attainment"]
    assert share.value == held.mean()
    assert share.low <= share.value <= share.high
    assert values["goodput"].value == pytest.approx(held.mean() * values["request_throughput"].value)
    assert values["slo_attainment_time_to_first_token"].value >= share.value
    (check,) = result.limits
    assert check.key == "slo_attainment"
    assert check.ok == (share.value >= 0.9)
    assert "slo_attainment" not in run(scenario()).values


def test_an_objective_of_what_does_not_fit_is_missed() -> None:
    result = run({**scenario(slo=SLO), "model": "llama3.1-70b"})
    assert result.values["slo_attainment"].value == result.values["goodput"].value == 0.0
    assert not result.ok


@pytest.mark.parametrize(
    "slo", [{}, {"share": 0.5}, {"end_to_end": "0 s"}, {"end_to_end": "1 s", "share": 1.5}]
)
def test_an_objective_needs_a_bound_above_0(slo: dict[str, Any]) -> None:
    with pytest.raises(MemroofError):
        load_scenario(scenario(slo=slo))


def test_what_binds_is_told_by_phase() -> None:
    result = run(scenario())
    assert set(result.phases) == {"prefill", "decode"}
    for shares in result.phases.values():
        assert sum(shares.values()) == pytest.approx(1.0)
    seconds = sum(sum(part.values()) for part in result.outcome.phases.values())
    busy = sum(part for name, part in result.outcome.bottlenecks.items() if name != "waiting")
    assert seconds == pytest.approx(busy)
    assert result.phases["prefill"].get("compute", 0.0) > result.phases["decode"].get("compute", 0.0)


# --- cost against load ---


@cache
def curve() -> LoadCurve:
    priced = {"device.h100-sxm.price.rent": "3 $/h"}
    return load_curve(scenario(slo=SLO), [60.0, 200.0, 600.0, 2500.0], requests=400, overrides=priced)


def test_a_token_costs_less_the_more_there_are() -> None:
    points = curve().points
    assert [point.load for point in points] == [60.0, 200.0, 600.0, 2500.0]
    for name in ("joules_per_token", "dollars_per_million_tokens"):
        costs = [getattr(point, name) for point in points]
        assert costs[:3] == sorted(costs[:3], reverse=True)
    first = points[0]
    assert first.dollars_per_million_tokens == pytest.approx(3.0 / 3600.0 / first.output_rate * 1e6)
    assert first.joules_per_token == pytest.approx(first.watts / first.output_rate)
    assert first.output_rate == pytest.approx(16 * 60.0, rel=0.15)
    assert first.busy < points[2].busy <= 1.0


def test_goodput_rises_and_falls() -> None:
    points = curve().points
    goodput = [point.goodput or 0.0 for point in points]
    assert goodput[0] == pytest.approx(60.0, rel=0.1)
    assert max(goodput) > goodput[-1]
    assert points[0].holds
    assert not points[-1].holds
    assert points[-1].misses
    assert "misses" in "\n".join(curve_lines(curve()))


def test_a_curve_scales_itself_by_the_largest_load() -> None:
    own = load_curve(scenario(slo=SLO), requests=250)
    held = [point.holds for point in own.points]
    assert len(held) == 8
    assert held[0]
    assert not held[-1]
    assert list(own.to_frame()["load"]) == sorted(point.load for point in own.points)
    assert own.plot().axes
    lines = "\n".join(curve_lines(own))
    assert "attained" in lines
    assert "no price known" not in "\n".join(curve_lines(curve()))


def test_a_curve_is_long_enough_for_its_largest_load() -> None:
    workload = {"arrival": "closed", "concurrency": 4, "prompt": 64, "output": 4}
    own = load_curve(scenario(workload), [1.0, 128.0])
    assert own.requests >= 10 * 128
    assert [point.load for point in own.points] == [1.0, 128.0]
    assert own.points[0].attainment is own.points[0].goodput is None


def test_a_curve_without_a_scale_asks_for_loads() -> None:
    with pytest.raises(MemroofError, match="name the loads"):
        load_curve(scenario(slo={"end_to_end": "1 us"}))
    with pytest.raises(MemroofError, match="above 0"):
        load_curve(scenario(), [0.0])
    with pytest.raises(MemroofError, match="does not fit"):
        load_curve({**scenario(), "model": "llama3.1-70b"}, [1.0], requests=10)


# --- fleets ---


PRICED = {"device.h100-sxm.price.rent": "3 $/h"}


@cache
def one_priced() -> LargestLoad:
    return largest_rate(scenario(slo=SLO), draws=0, overrides=PRICED)


@cache
def sized(headroom: float = 0.2, spares: int = 1) -> Fleet:
    return fleet(
        scenario(slo=SLO),
        5000.0,
        headroom=headroom,
        spares=spares,
        largest=one_priced(),
        overrides=PRICED,
    )


def test_a_fleet_holds_its_load_with_headroom_and_without_its_spares() -> None:
    size = sized()
    assert size.replicas >= math.ceil(5000.0 * 1.2 / size.per_replica * (1 - 1e-9))
    assert size.worst.holds
    assert size.normal.holds
    assert size.normal.rate == pytest.approx(5000.0)
    assert size.worst.rate == pytest.approx(6000.0)
    assert size.devices == size.replicas + size.spares == size.nodes
    assert size.dollars_per_second == pytest.approx(3.0 / 3600.0 * size.devices)
    assert size.dollars_per_million_tokens == pytest.approx(
        size.dollars_per_second / size.normal.output_rate * 1e6
    )
    assert size.watts <= size.provisioned_watts == pytest.approx(700.0 * size.devices)


def test_headroom_and_spares_make_a_fleet_larger() -> None:
    assert sized(headroom=1.0).replicas > sized().replicas
    assert sized(spares=3).devices == sized().devices + 2


def test_a_fleet_says_how_sure_its_size_is() -> None:
    fewest, most = replica_interval(sized())
    assert fewest <= sized().replicas <= most
    document = fleet_document(sized())
    assert json.loads(json.dumps(document))["replicas_high"] == most
    assert "spare" in "\n".join(fleet_lines(sized()))


def test_a_fleet_that_cannot_be_is_refused() -> None:
    for arguments in (
        {"load_asked": 0.0},
        {"load_asked": 1.0, "headroom": -0.1},
        {"load_asked": 1.0, "spares": -1},
    ):
        with pytest.raises(MemroofError, match="a fleet needs"):
            fleet(scenario(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(MemroofError, match="at any load"):
        fleet(scenario(slo={"end_to_end": "1 us"}), 1.0)
    with pytest.raises(MemroofError, match="does not fit"):
        fleet({**scenario(), "model": "llama3.1-70b"}, 1.0)


# --- Pareto ---


@cache
def front() -> Pareto:
    vary = {"strategy.tensor_parallel": ["1", "2", "3"], "strategy.precision": ["bf16", "fp8"]}
    written = json.dumps(scenario(hardware={"device": "h100-sxm", "count": 2}, slo=SLO))
    path = Path(__file__).with_name("little.json")
    path.write_text(written)
    try:
        return pareto(path, vary, concurrency=[1, 8, 32])
    finally:
        path.unlink()


def test_the_front_is_what_no_point_beats() -> None:
    points = front().points
    assert len(points) == 2 * 2 * 3
    for point in points:
        better = [
            other for other in points
            if other.tokens_per_user > point.tokens_per_user and other.tokens_per_gpu > point.tokens_per_gpu
        ]  # fmt: skip
        assert point.on_front == (not better)
    users = [point.tokens_per_user for point in front().front]
    assert users == sorted(users, reverse=True)
    assert {point.replicas for point in points} == {1, 2}


def test_more_clients_give_more_of_an_accelerator_and_less_to_a_user() -> None:
    for degree in ("1", "2"):
        own = [p for p in front().points if p.settings["strategy.tensor_parallel"] == degree]
        own = sorted(
            (p for p in own if p.settings["strategy.precision"] == "bf16"), key=lambda p: p.concurrency
        )
        assert [p.tokens_per_gpu for p in own] == sorted(p.tokens_per_gpu for p in own)
        assert own[0].tokens_per_user > own[-1].tokens_per_user


def test_what_cannot_be_says_why() -> None:
    refused = {settings["strategy.tensor_parallel"]: why for settings, why in front().refused}
    assert set(refused) == {"3"}
    assert "not possible" in "\n".join(pareto_lines(front(), every=True))
    assert front().plot().axes
    assert len(front().to_frame()) == 12


def test_processes_find_the_same_front(tmp_path: Path) -> None:
    from joblib import parallel_config

    path = tmp_path / "s.json"
    path.write_text(json.dumps(scenario(hardware={"device": "h100-sxm", "count": 2})))
    with parallel_config(backend="threading"):
        assert pareto(path, concurrency=[2], jobs=2).points == pareto(path, concurrency=[2]).points


def test_a_front_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(scenario()))
    with pytest.raises(MemroofError, match="tensor_parallel"):
        pareto(path, {"strategy.tensor_parallel": ["3"]})
    with pytest.raises(MemroofError, match="does not fit"):
        pareto(path, {"model": ["llama3.1-70b"]})
    with pytest.raises(MemroofError, match="at least 1"):
        pareto(path, concurrency=[0])
    path.write_text(
        json.dumps(scenario({"arrival": "list", "list": [{"arrival": "0 s", "prompt": 4, "output": 4}]}))
    )
    with pytest.raises(MemroofError, match="closed loop need the lengths"):
        pareto(path)
    path.write_text(json.dumps(scenario({"rate": "1 req/s", "prompt": 4, "output": 1})))
    with pytest.raises(MemroofError, match="answers of one token"):
        pareto(path)


coordinates = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20)


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(coordinates)
def test_the_front_of_any_points_is_that_of_the_definition(points: list[tuple[int, int]]) -> None:
    x, y = (np.array(column, float) for column in zip(*points, strict=True))
    beaten = [any((a >= c and b >= d) and (a > c or b > d) for a, b in points) for c, d in points]
    assert pareto_front(x, y).tolist() == [not each for each in beaten]


# --- distributions ---


def test_percentiles_are_those_of_the_requests() -> None:
    result = run(scenario())
    found = {one.key: one for one in distributions(result)}
    first = result.outcome.tables["requests"]["time_to_first_token"]
    assert found["time_to_first_token"].percentiles[95.0] == pytest.approx(np.percentile(first, 95))
    assert found["time_to_first_token"].count == 300
    gaps = found["inter_token"]
    assert gaps.count == 300 * 15
    assert gaps.mean == pytest.approx(found["time_per_output_token"].mean, rel=1e-6)
    assert list(gaps.percentiles.values()) == sorted(gaps.percentiles.values())
    assert "p99.9" in latency_lines(result, distributions(result))[2]
    assert latency_document(result, distributions(result))["latencies"]["queue_time"]["count"] == 300


def test_requests_are_written_one_a_row() -> None:
    one_token = {"rate": "100 req/s", "requests": 5, "prompt": 64, "output": 1}
    rows = list(csv.DictReader(io.StringIO(requests_csv(run(scenario(one_token))))))
    assert [row["request"] for row in rows] == list("01234")
    assert {row["time_per_output_token"] for row in rows} == {""}
    assert float(rows[2]["first_token"]) - float(rows[2]["arrival"]) == pytest.approx(
        float(rows[2]["time_to_first_token"])
    )


def test_a_series_is_what_the_replica_held() -> None:
    burst = {"arrival": "offline", "requests": 40, "prompt": 512, "output": 16}
    held = series(run(scenario(burst, strategy={"max_batch": 10})))
    assert held.waiting[0] == 40
    assert held.waiting[-1] == 0
    assert held.running.max() == 10
    assert 0.0 < held.kv_share.max() <= 1.0
    assert (np.diff(held.time) > 0.0).all()
    assert held.end > held.time[-1]


def test_a_fleet_that_is_given_is_one_unit() -> None:
    whole = scenario(hardware={"device": "h100-sxm", "count": 2}, fleet={"router": "least-requests"}, slo=SLO)
    held = largest_rate(whole, requests=300, draws=0, tolerance=0.05)
    assert 1.6 < held.value / found().value < 2.5
    both = series(held.result)
    assert len(both.kv_share) == 0
    assert both.running.max() > 1
    assert plot_series(held.result).axes
    size = fleet(whole, 2.5 * held.value, headroom=0.0, spares=0, largest=held)
    assert size.replicas == 3
    assert size.devices == 6


def test_distributions_of_what_does_not_fit_are_refused() -> None:
    with pytest.raises(MemroofError, match="no request was served"):
        distributions(run({**scenario(), "model": "llama3.1-70b"}))
    with pytest.raises(MemroofError, match="serves no requests"):
        distributions(run("training/gpt3-175b-64xa100", catalog=Catalog()))


def test_a_search_is_the_same_twice() -> None:
    one, two = (
        largest_load(load_scenario(scenario(slo=SLO)), requests=100, draws=1, tolerance=0.1) for _ in range(2)
    )
    assert (one.value, one.low, one.high, one.sampling) == (two.value, two.low, two.high, two.sampling)
