"""Laws of fleets, on random workloads and policies."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import LayerGroup, PagedCache, Policy, ReplicaPlan, Requests, Steps, closed_loop, serve
from simulator.serving.fleet import HandOver, PoolPlan, serve_fleet
from simulator.serving.layout import Layout
from simulator.serving.router import Router
from simulator.specs import ServingStrategy
from simulator.specs.serving_fleet import Autoscaling

laws = settings(max_examples=40, deadline=None)
TIMES = ("admitted", "first_token", "end")
POLICIES = ("round-robin", "random", "least-requests", "least-tokens")


class Linear:
    """An iteration takes a second, a tenth a token and a thousandth a token that is cached."""

    def decode(self, contexts, steps):
        grown = contexts.sum() + len(contexts) * np.arange(1.0, steps + 1.0)
        seconds = 1.0 + 0.1 * len(contexts) + 0.001 * grown
        return Steps(seconds, np.zeros(1), ((0, seconds),))

    def mixed(self, new, cached, contexts, sampled):
        tokens, positions = new.sum() + len(contexts), (cached + new).sum() + (contexts + 1).sum()
        seconds = np.array([1.0 + 0.1 * tokens + 0.001 * positions])
        return Steps(seconds, seconds.copy())


@dataclass(frozen=True)
class Case:
    requests: Requests
    policy: Policy
    cache: PagedCache

    @property
    def plan(self):
        return ReplicaPlan(
            ServingStrategy(), 1, Layout(), self.requests, self.policy, Linear(), self.cache, 1e9, {}
        )

    def fleet(self, replicas, router, *, one_by_one=False, autoscale=None):
        pool = PoolPlan("replica", "whole", self.plan, replicas, autoscale)
        return serve_fleet(self.requests, [pool], Router(router), one_by_one=one_by_one)

    def apart(self, prefills, decodes, hand_over, *, bandwidth=1e9, one_by_one=False):
        pools = [
            PoolPlan("prefill", "prefill", self.plan, prefills, bandwidth=bandwidth),
            PoolPlan("decode", "decode", self.plan, decodes, bandwidth=bandwidth),
        ]
        return serve_fleet(self.requests, pools, Router("least-requests"), hand_over, one_by_one=one_by_one)


@st.composite
def cases(draw, static=True):
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    count = draw(st.integers(1, 30))
    gaps = generator.exponential(draw(st.sampled_from([0.5, 5.0, 30.0])), count)
    requests = Requests(gaps.cumsum(), generator.integers(1, 60, count), generator.integers(1, 60, count))
    clients = draw(st.sampled_from([0, 0, 1, 4, 9]))
    if clients:
        requests = closed_loop(requests, clients)
    policy = Policy(
        draw(st.integers(1, 12)), 128, draw(st.booleans()), static and draw(st.sampled_from([False, False, True])), 0.01,
        draw(st.booleans()), draw(st.sampled_from([0.0, 3.0])), order=draw(st.sampled_from(["fcfs", "shortest-prompt"])),
    )  # fmt: skip
    cache = PagedCache((LayerGroup(1.0),), 4, draw(st.sampled_from([148.0, 400.0, 2000.0])))
    return Case(requests, policy, cache)


def same(one, other):
    for name in TIMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.account, other.account, rtol=1e-9, atol=1e-6)


@laws
@given(cases(), st.sampled_from(POLICIES))
def test_one_replica_behind_a_router_is_the_replica_alone(case, router):
    alone = serve(case.requests, case.policy, case.cache, Linear())
    behind = case.fleet(1, router).whole
    same(alone, behind)
    assert alone.preemptions == behind.preemptions
    assert alone.log.kv_bytes.max() == pytest.approx(behind.log.kv_bytes.max())
    assert alone.log.steps.sum() == behind.log.steps.sum()


@laws
@given(cases(), st.sampled_from(POLICIES), st.integers(1, 4))
def test_running_ahead_gives_the_times_of_one_step_after_the_other(case, router, replicas):
    same(case.fleet(replicas, router).whole, case.fleet(replicas, router, one_by_one=True).whole)


@laws
@given(
    cases(static=False), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1e9, 7.0]), st.sampled_from([1, 4]),
    st.booleans(),
)  # fmt: skip
def test_so_it_does_where_caches_are_handed_over(case, prefills, decodes, bandwidth, layers, late):
    hand_over = HandOver(0.5, 1.0, layers, False, late)
    ahead = case.apart(prefills, decodes, hand_over, bandwidth=bandwidth)
    same(ahead.whole, case.apart(prefills, decodes, hand_over, bandwidth=bandwidth, one_by_one=True).whole)
    check(case, ahead)


@laws
@given(cases(static=False), st.integers(1, 3))
def test_two_phases_on_one_gpu_share_its_cache(case, gpus):
    served = case.apart(gpus, gpus, HandOver(within=True))
    check(case, served)
    pairs = [(served.members[f"prefill {i + 1}"], served.members[f"decode {i + 1}"]) for i in range(gpus)]
    for one, other in pairs:
        assert one.twin is other
        peak = max([*one.log.kv_bytes, 0.0]), max([*other.log.kv_bytes, 0.0])
        assert max(peak) <= case.cache.capacity


def check(case, served):
    """Everything is done, in order, and every block given back."""
    whole = served.whole
    assert (whole.requests.arrival <= whole.admitted).all()
    assert (whole.admitted <= whole.first_token).all()
    assert (whole.first_token <= whole.end + 1e-9).all()
    for member in served.members.values():
        assert member.used == pytest.approx(0.0, abs=1e-6)
        assert member.outstanding == 0 and member.tokens == 0


@laws
@given(cases(static=False), st.integers(1, 3))
def test_with_nothing_to_decode_prefill_is_a_fleet_of_its_own(case, prefills):
    short = Requests(
        case.requests.arrival,
        case.requests.prompt,
        np.ones_like(case.requests.output),
        case.requests.concurrency,
    )
    case = Case(short, case.policy, case.cache)
    same(case.apart(prefills, 1, HandOver()).whole, case.fleet(prefills, "least-requests").whole)


@laws
@given(cases(static=False))
def test_a_link_without_end_leaves_the_first_token_to_prefill(case):
    if case.requests.closed or case.cache.capacity < 2000.0:
        return  # the answers of decode bring prompts, and a full decoder keeps blocks at prefill
    roomy = Case(case.requests, case.policy, PagedCache((LayerGroup(1.0),), 4, 1e6))
    prompts = Case(
        Requests(case.requests.arrival, case.requests.prompt, np.ones_like(case.requests.output)), case.policy,
        roomy.cache,
    )  # fmt: skip
    served = roomy.apart(1, 1, HandOver(0.0, 1e-9), bandwidth=1e15).whole
    np.testing.assert_allclose(
        served.first_token, prompts.fleet(1, "round-robin").whole.first_token, rtol=1e-9
    )


@laws
@given(cases(static=False), st.integers(1, 4))
def test_replicas_that_follow_the_load_serve_everything_and_no_more_are_there_than_allowed(case, most):
    scale = Autoscaling(minimum=1, maximum=most, target_requests=2.0, start_delay="10 s", idle_time="30 s")
    served = case.fleet(most, "least-requests", autoscale=scale)
    check(case, served)
    finish = served.whole.makespan
    for spans in served.up.values():
        assert all(0.0 <= begin <= end <= finish for begin, end in spans)
    # the least that are to be there are
    assert sum(end - begin for spans in served.up.values() for begin, end in spans) >= finish * (1.0 - 1e-9)


@laws
@given(cases(), st.sampled_from(POLICIES))
def test_a_second_run_is_the_same_to_the_byte(case, router):
    one, other = case.fleet(3, router).whole, case.fleet(3, router).whole
    for name in TIMES:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
