"""Laws of the serving scheduler, on random workloads with a small cache and small budgets."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import LayerGroup, PagedCache, Policy, Requests, Steps, closed_loop, serve
from simulator.serving.kv_cache import ContiguousCache, VirtualCache
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefixes import Prefixes, grouped_texts, own_texts
from simulator.serving.scheduler import Replica
from simulator.serving.tiers import Channel, Tier

laws = settings(derandomize=True, max_examples=150, deadline=None, database=None)


class CurvedPricer:
    """Not linear in anything, and no two iterations alike: what a scheduler may not rely on."""

    def decode(self, contexts: Any, steps: int) -> Steps:
        grown = contexts.sum() + len(contexts) * np.arange(1.0, steps + 1.0)
        fixed = np.array([0.3 + 0.01 * len(contexts) ** 1.3, 0.0])
        varying = 0.001 * grown**0.9
        return Steps(fixed[0] + varying, fixed, ((1, varying),))

    def mixed(self, new: Any, cached: Any, contexts: Any, sampled: int) -> Steps:
        seconds = 0.31 + 0.02 * float(new.sum()) ** 0.8 + 1e-4 * float((cached + new).sum() + contexts.sum())
        return Steps(np.array([seconds]), np.array([seconds, 0.0]))


@dataclass(frozen=True)
class Case:
    requests: Requests
    policy: Policy
    cache: Any
    caching: bool = False
    lower: tuple[Tier, ...] = ()
    swap: Tier | None = None

    def serve(self, **options):
        return serve(self.requests, self.policy, self.cache, CurvedPricer(), **self.parts(), **options)

    def parts(self):
        prefixes = None
        if self.caching:
            texts = self.requests.texts or own_texts(self.requests.prompt, self.requests.output)
            block = float(self.cache.size(self.cache.block_size))
            prefixes = PrefixCache(
                texts, self.cache.block_size, [int(t.capacity // block) for t in self.lower]
            )
        return {"prefixes": prefixes, "lower": self.lower, "swap": self.swap}


EITHER = st.booleans()
LAYOUTS = st.sampled_from(["paged", "prefixes", "contiguous", "virtual"])
LINK = st.builds(Channel, st.sampled_from([5.0, 300.0]), st.sampled_from([0.0, 0.2]))


def tier(name, sizes):
    return st.builds(Tier, st.just(name), sizes, LINK, LINK)


@st.composite
def workloads(draw, session=EITHER):
    """Few requests with what they may have: priorities, shared beginnings, turns, a closed loop."""
    count = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.floats(0.0, 4.0), min_size=count, max_size=count))
    lengths = st.lists(st.integers(1, 30), min_size=count, max_size=count)
    prompt, output = np.array(draw(lengths)), np.array(draw(lengths))
    priority = np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    arrival = np.cumsum(gaps)
    group = np.array(draw(st.lists(st.integers(-1, 1), min_size=count, max_size=count)))
    texts = np.array(draw(st.lists(st.integers(1, 20), min_size=2, max_size=2)))
    whole = prompt + np.where(group >= 0, texts[group], 0)
    requests = Requests(
        arrival, whole, output, priority=priority, texts=grouped_texts(group, texts, whole, output)
    )
    if draw(session):
        # few values, so that no arrival is within rounding of the end of a step
        pauses = st.lists(st.sampled_from([0.0, 0.137, 1.9]), min_size=count, max_size=count)
        turn = np.array([index % 3 for index in range(count)])
        prompts, ends = prompt.copy(), prompt + output
        for index in np.flatnonzero(turn):
            prompts[index] = ends[index - 1] + prompt[index]
            ends[index] = prompts[index] + output[index]
        following = np.where(np.roll(turn, -1) > 0, np.arange(count) + 1, -1)
        following[-1] = -1
        parent = np.where(turn > 0, np.arange(count) - 1, -1)
        requests = Requests(
            np.where(turn > 0, np.inf, arrival), prompts, output, priority=priority, following=following,
            pause=np.array(draw(pauses)), texts=Prefixes(parent, ends, np.arange(count)),
        )  # fmt: skip
    if draw(st.booleans()):
        requests = closed_loop(requests, draw(st.integers(1, count)))
    return requests


@st.composite
def cases(draw, static=EITHER, roomy=EITHER, plain=EITHER, swap=EITHER, layouts=LAYOUTS):
    """A replica of any policy; a plain one serves first come, first served, without anything shared or swapped."""
    requests = draw(workloads())
    max_batch = draw(st.integers(1, 6))
    chunked = draw(st.booleans())
    budget = draw(st.integers(max_batch, 40)) if chunked else max(max_batch, requests.longest + 1)
    policy = Policy(
        max_batch, budget, chunked, draw(static), draw(st.sampled_from([0.0, 0.05])),
        ahead=draw(st.booleans()), turnaround=draw(st.sampled_from([0.0, 0.7])),
    )  # fmt: skip
    groups = draw(st.sampled_from([(LayerGroup(2.0),), (LayerGroup(2.0), LayerGroup(6.0, 8.0))]))
    case = Case(requests, policy, PagedCache(groups, draw(st.sampled_from([1, 4])), 0.0))
    if not policy.static and not draw(plain):
        case = draw(rich(case, swap, layouts))
    cache, room = case.cache, 1e9
    if not draw(roomy):
        room = float(cache.size(requests.longest)) * draw(st.floats(1.0, 2.5))
    return replace(
        case, cache=replace(cache, **{"capacity" if hasattr(cache, "block_size") else "room": room})
    )


@st.composite
def rich(draw, case, swap, layouts):
    """The same replica with an order, a way to preempt, and a layout or a prefix cache."""
    order = draw(st.sampled_from(["fcfs", "priority", "shortest-prompt"]))
    iteration = draw(st.sampled_from([None, "mixed", "prefill-first", "decode-first"]))
    policy = replace(
        case.policy, order=order, iteration=iteration, swap=draw(swap), overlap=draw(EITHER), round_trip=0.1,
        priority_preemption=order == "priority" and iteration != "decode-first" and draw(EITHER),
        receive_interval=draw(st.sampled_from([1, 1, 3, 10])), wait_steps=draw(st.sampled_from([0, 0, 4])),
        wait_share=draw(st.sampled_from([0.3, 1.0])),
    )  # fmt: skip
    swap = draw(tier("dram", st.sampled_from([40.0, 1e9]))) if policy.swap else None
    layout = draw(layouts)
    groups = case.cache.groups
    if layout == "prefixes":
        cache = PagedCache(groups[:1], case.cache.block_size, 0.0)
        sizes = st.sampled_from([10.0, 60.0, 1e9])
        lower = draw(st.sampled_from([(), ("dram",), ("dram", "nvme")]))
        tiers = tuple(draw(tier(name, sizes)) for name in lower)
        return replace(case, policy=policy, cache=cache, caching=True, lower=tiers, swap=swap)
    if layout == "contiguous":
        cache = ContiguousCache(groups, case.requests.longest + draw(st.integers(0, 9)), 0.0)
        return replace(case, policy=replace(policy, watermark=0.0), cache=cache, swap=swap)
    if layout == "virtual":
        cache = VirtualCache(
            groups, draw(st.sampled_from([4.0, 16.0])), 0.0, draw(st.sampled_from([0.0, 0.03]))
        )
        return replace(case, policy=policy, cache=cache, swap=swap)
    return replace(case, policy=policy, swap=swap)


@laws
@given(cases())
def test_runs_of_steps_equal_steps_one_by_one(case):
    runs, steps = case.serve(), case.serve(one_by_one=True)
    assert runs.end == pytest.approx(steps.end, rel=1e-9)
    assert runs.first_token == pytest.approx(steps.first_token, rel=1e-9)
    assert runs.admitted == pytest.approx(steps.admitted, rel=1e-9)
    assert runs.account == pytest.approx(steps.account, rel=1e-9)
    assert runs.preemptions == steps.preemptions
    assert runs.found.tolist() == steps.found.tolist()
    assert runs.moved == pytest.approx(steps.moved, rel=1e-9)
    assert (runs.stall, runs.mapping) == pytest.approx((steps.stall, steps.mapping), rel=1e-9, abs=1e-9)
    assert sum(runs.log.steps) == len(steps.log.steps)


TIGHT = cases(
    static=st.just(False),
    roomy=st.just(False),
    plain=st.just(False),
    swap=st.just(True),
    layouts=st.just("prefixes"),
)


@laws
@given(TIGHT)
def test_what_is_swapped_out_may_hold_shared_blocks(case):
    runs, steps = (
        _Audited(
            case.requests, case.policy, case.cache, CurvedPricer(), ("hbm", np.inf), {}, one, **case.parts()
        ).run()
        for one in (False, True)
    )
    assert runs.end == pytest.approx(steps.end, rel=1e-9)
    assert runs.preemptions == steps.preemptions
    assert runs.moved == pytest.approx(steps.moved, rel=1e-9)
    assert np.isfinite(runs.end).all()


@laws
@given(cases())
def test_every_request_is_complete_and_in_order(case):
    served = case.serve()
    assert (served.requests.arrival <= served.admitted).all()
    assert (served.admitted < served.first_token).all()
    assert (served.first_token <= served.end).all()
    if not served.preemptions and case.policy.order == "fcfs":
        assert (np.diff(served.first_token) >= 0.0).all()
        assert (np.diff(served.admitted) >= 0.0).all()


@laws
@given(cases())
def test_no_iteration_exceeds_batch_budget_or_cache(case):
    log = case.serve().log
    decoding = np.array(log.decoding)
    assert (decoding + np.array(log.prefilling)).max() <= case.policy.max_batch
    assert (
        np.array(log.prefill_tokens) + np.where(np.array(log.prefilling) > 0, decoding, 0)
    ).max() <= case.policy.max_tokens
    slack = case.cache.capacity * (1 + 1e-12)
    assert max(log.kv_bytes + log.idle_bytes) <= slack
    assert (log.stored_bytes <= log.kv_bytes * (1 + 1e-12)).all()


@laws
@given(cases())
def test_each_token_is_computed_once_or_again_after_preemption(case):
    served = case.serve()
    log = served.log
    prompts = served.requests.prompt.sum() - served.found.sum()
    if served.preemptions:
        assert sum(log.prefill_tokens) >= prompts - (served.found.sum() if case.caching else 0)
    else:
        assert sum(log.prefill_tokens) == prompts
        if not case.policy.static:
            decoded = np.array(log.decoding) @ np.array(log.steps)
            assert decoded + len(served.requests) == served.requests.output.sum()


class _Audited(Replica):
    """Recounts the blocks at each event."""

    def _record(self, *args: Any) -> None:
        running = [*self.decoding, *self.prefilling]
        swapped = [request for _, request in self.swapped]
        places = [*running, *swapped, *(r for r in range(len(self.requests)) if r in self.line)]
        assert len(set(places)) == len(places)
        active = self.prefixes.active * self.block if self.prefixes else 0.0
        assert self.used == self.held.sum() + active
        assert self.held.sum() == self.held[running].sum()
        assert self.tokens == self.cached[running].sum()
        assert (self.held[running] + self.shared[running] >= self.cache.size(self.cached[running])).all()
        if self.prefixes:
            self._recount([*running, *swapped])
        super()._record(*args)

    def _recount(self, referring: list[int]) -> None:
        cache = self.prefixes
        bounds = np.array(cache._bound)
        assert (np.diff(bounds, axis=0) >= 0).all()
        assert (bounds[-1] <= np.array(cache._end) - np.array(cache._first)).all()
        assert cache.lower == np.diff(bounds, axis=0).sum(axis=1).tolist()
        assert all(used <= room for used, room in zip(cache.lower, cache._room, strict=True))
        references = np.zeros(len(cache._parent), int)
        for request in referring:
            count, blocks = cache._held[request]
            references[cache._paths[request][:count]] += 1
            assert self.shared[request] == blocks * self.block
        assert references.tolist() == cache._references
        assert (cache.active, cache.idle) == (
            bounds[0][references > 0].sum(),
            bounds[0][references == 0].sum(),
        )
        assert sorted(cache._order[0]) == np.flatnonzero((references == 0) & (bounds[0] > 0)).tolist()


@laws
@given(cases())
def test_blocks_are_conserved(case):
    replica = _Audited(
        case.requests, case.policy, case.cache, CurvedPricer(), ("hbm", np.inf), {}, False, **case.parts()
    )
    served = replica.run()
    assert replica.used == 0.0
    assert replica.tokens == 0
    assert not replica.held.any()
    _, resident = served.timeline.ledger.resident("hbm")
    assert max(resident["KV cache"], default=0.0) == max(served.log.kv_bytes)
    assert resident["KV cache"][-1] == 0.0
    if case.swap:
        assert not replica.copies._sizes
        assert served.moved.get("swapped in", 0.0) <= served.moved.get("swapped out", 0.0)


@laws
@given(cases())
def test_time_is_busy_or_waiting_for_requests(case):
    served = case.serve()
    busy = served.account.sum()
    assert busy + served.stall + served.mapping == pytest.approx(sum(served.log.seconds), rel=1e-9)
    assert busy <= served.makespan * (1 + 1e-12)
    starts, seconds = np.array(served.log.start), np.array(served.log.seconds)
    assert (starts[1:] >= (starts + seconds)[:-1] * (1 - 1e-12)).all()


@laws
@given(cases(roomy=st.just(True)))
def test_a_second_run_is_the_same_to_the_byte(case):
    assert case.serve().end.tobytes() == case.serve().end.tobytes()


@laws
@given(cases(static=st.just(False), roomy=st.just(True), plain=st.just(True)), st.floats(1.0, 3.0))
def test_slower_iterations_end_later(case, factor):
    class Slower(CurvedPricer):
        def decode(self, contexts, steps):
            plain = super().decode(contexts, steps)
            return Steps(plain.seconds * factor, plain.fixed, plain.varying)

        def mixed(self, new, cached, contexts, sampled):
            plain = super().mixed(new, cached, contexts, sampled)
            return Steps(plain.seconds * factor, plain.fixed)

    offline = Requests(np.zeros(len(case.requests)), case.requests.prompt, case.requests.output)
    plain = serve(offline, case.policy, case.cache, CurvedPricer())
    slower = serve(offline, case.policy, case.cache, Slower())
    assert slower.end == pytest.approx(plain.end * factor, rel=1e-9)
