"""Slot caches: small traces by hand, laws of the policies, and hit rates against their closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import (
    ProgramError,
    SlotCache,
    hit_rate,
    inclusion,
    window_occupancy,
    zipf_trace,
    zipf_weights,
)

laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)
traces = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), max_size=30)


def outcomes(cache, items):
    return "".join("h" if cache.access(item) else "m" for item in items)


def test_belady_reference_string_under_lru():
    """Belady, Nelson and Shedler 1969: 1 2 3 4 1 2 5 1 2 3 4 5 has 10 LRU faults with 3 frames, 8 with 4."""
    string = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    for slots, faults in ((3, 10), (4, 8)):
        cache = SlotCache(slots, "lru")
        outcomes(cache, string)
        assert (cache.misses, cache.hits) == (faults, 12 - faults)


@pytest.mark.parametrize(
    ("policy", "options", "expected", "left"),
    [
        ("lru", {}, "mmhmmm", (1, 0)),
        ("lfu", {}, "mmhmmh", (1, 0)),
        ("lfu", {"bypass": True}, "mmhmhh", (1, 0)),
        # Scores when 2 comes: 0 has 1/8 + 1/2, 1 has 1/4. When 1 comes back: 0 has half of that, 2 has 1/2.
        ("decay", {"decay": 0.5}, "mmhmmm", (1, 0)),
        ("window", {"window": 2}, "mmhmmm", (1, 0)),
        ("static-hot", {"scores": [0.0, 3.0, 5.0]}, "mhmhhm", (1, 2)),
    ],
)
def test_a_trace_by_hand(policy, options, expected, left):
    """0 1 0 2 1 0 in two slots."""
    cache = SlotCache(2, policy, **options)
    assert outcomes(cache, [0, 1, 0, 2, 1, 0]) == expected
    assert sorted(cache.items) == sorted(left)


def test_the_items_of_a_step_do_not_evict_each_other():
    cache = SlotCache(3, "lru")
    cache.step([0, 1, 2])
    assert cache.step([3, 0, 1]) == ((0, 1), (3,))
    assert cache.evicted == (2,)
    assert cache.items == (3, 0, 1)


def test_a_step_larger_than_the_cache_leaves_its_last_items():
    cache = SlotCache(2, "lru")
    cache.step([0, 1])
    assert cache.step([0, 2, 3]) == ((0,), (2, 3))
    assert (cache.items, set(cache.evicted)) == ((2, 3), {0, 1})


def test_decay_between_recency_and_frequency():
    """0 was used thrice, 1 once and last: nearly no memory keeps 1, a long one keeps 0."""
    for decay, kept in ((0.1, 1), (0.9, 0)):
        cache = SlotCache(2, "decay", decay=decay)
        outcomes(cache, [0, 0, 0, 1, 2])
        assert kept in cache
    cache = SlotCache(2, "decay", decay=1.0)
    cache.step([0, 1], weights=[0.2, 0.7])
    cache.step([2], weights=[0.1])
    assert cache.evicted == (0,)


def test_a_window_keeps_what_its_last_steps_used():
    cache = SlotCache(None, "window", window=2)
    for step in ([0, 1], [2], [3]):
        cache.step(step)
    assert cache.items == (2, 3)
    assert cache.evicted == (0, 1)
    assert cache.step([2, 0]) == ((2,), (0,))


def test_a_prediction_outlasts_recency_for_its_steps():
    cache = SlotCache(2, "predicted")
    assert cache.predict([7, 8], steps=2) == (7, 8)
    assert [cache.admit(item) for item in (7, 8)] == [None, None]
    assert not cache.access(1)
    # 7 was the least recent of the protected.
    assert cache.evicted == (7,)
    assert not cache.access(2)
    assert cache.evicted == (1,)
    assert not cache.access(3)
    assert cache.evicted == (8,)


def test_admission_of_a_prefetch():
    cache = SlotCache(2, "lru")
    assert (cache.admit(0), cache.admit(1), cache.admit(0)) == (None, None, None)
    assert cache.admit(2) == 0
    assert cache.admit(3, keep=(1, 2)) is None
    assert 3 not in cache
    assert cache.admit(3, keep=(1,)) == 2
    assert (cache.hits, cache.misses, len(cache)) == (0, 0, 2)
    assert SlotCache(0, "lru").admit(1) is None


def test_a_fixed_set_is_refreshed():
    cache = SlotCache(2, "static-hot", scores=[1.0, 5.0, 3.0, 3.0])
    assert cache.items == (1, 2)
    assert cache.refresh([9.0, 5.0, 0.0, 0.0]) == (0,)
    assert (cache.items, cache.evicted) == ((0, 1), (2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, "fifo"), "no cache policy 'fifo'"),
        ((-1, "lru"), "-1 slots"),
        ((None, "lru"), "needs a number of slots"),
        ((2, "window"), "needs window"),
        ((2, "lru", {"scores": [1.0]}), "scores means nothing"),
        ((2, "lru", {"bypass": True}), "bypass means nothing"),
        ((2, "decay", {"decay": 1.5}), "between 0 and 1"),
        ((2, "window", {"window": 0}), "a step at least"),
    ],
)
def test_bad_caches_are_refused(arguments, message):
    slots, policy, *options = arguments
    with pytest.raises(ProgramError, match=message):
        SlotCache(slots, policy, **(options[0] if options else {}))


@laws
@given(traces, st.integers(0, 6))
def test_more_slots_of_an_lru_never_hit_less(trace, slots):
    """The inclusion property (Mattson et al. 1970): the smaller cache holds a part of the larger one."""
    small, large = SlotCache(slots, "lru"), SlotCache(slots + 1, "lru")
    for step in trace:
        small.step(step)
        large.step(step)
        assert set(small.items) <= set(large.items)
    assert small.hits <= large.hits


@laws
@given(traces, st.integers(0, 6), st.sampled_from(["lru", "lfu", "decay", "predicted", "window"]))
def test_a_cache_keeps_its_books(trace, slots, policy):
    options = {"decay": {"decay": 0.5}, "window": {"window": 3}}.get(policy, {})
    cache = SlotCache(slots, policy, **options)
    accesses = 0
    for step in trace:
        before = set(cache.items)
        hits, misses = cache.step(step)
        accesses += len(step)
        assert set(hits) == before & set(step)
        assert set(misses) == set(step) - before
        assert len(cache) <= slots
        assert len(set(step) & set(cache.items)) == min(len(step), slots)
        assert set(cache.items) == (before | set(step)) - set(cache.evicted) or len(step) > slots
    assert cache.hits + cache.misses == accesses


LAWS = [(100, 1.0, 1, 20), (64, 0.8, 6, 20), (8, 0.5, 2, 4), (60, 1.2, 4, 30), (64, 0.0, 6, 16)]


@pytest.mark.parametrize(("n", "exponent", "draws", "slots"), LAWS)
@pytest.mark.parametrize("policy", ["lru", "lfu", "static-hot", "window"])
def test_simulated_hit_rates_are_the_closed_forms(policy, n, exponent, draws, slots):
    weights = zipf_weights(n, exponent)
    trace = zipf_trace(weights, 15_000, draws, seed=3).tolist()
    options = {"lfu": {"bypass": True}, "static-hot": {"scores": weights}, "window": {"window": 3}}
    cache = SlotCache(None if policy == "window" else slots, policy, **options.get(policy, {}))
    for step in trace[:3000]:
        cache.step(step)
    cache.hits = cache.misses = 0
    for step in trace[3000:]:
        cache.step(step)
    expected = (
        hit_rate(policy, weights, draws=draws, window=3)
        if policy == "window"
        else hit_rate(policy, weights, slots, draws=draws)
    )
    # Three standard errors of a sample, and what the LFU has not learnt yet, or Che's law leaves out.
    assert cache.hit_rate == pytest.approx(expected, abs=3 * 0.5 / (12_000 * draws) ** 0.5 + 0.004)


def test_hit_rates_by_hand():
    weights = np.array([0.5, 0.3, 0.2])
    assert hit_rate("static-hot", weights, 2) == pytest.approx(0.8)
    assert hit_rate("window", weights, window=1) == pytest.approx(0.25 + 0.09 + 0.04)
    # With slots for the items of a step, an LRU holds those of the last one.
    assert hit_rate("lru", weights, 2, draws=2) == pytest.approx((inclusion(weights, 2) ** 2).sum() / 2)
    # All items alike: the share of them that is resident.
    np.testing.assert_allclose(hit_rate("lru", np.ones(8), [0, 2, 4, 8]), [0, 0.25, 0.5, 1], atol=1e-12)
    assert window_occupancy(weights, [1, 2], draws=3).tolist() == [3.0, 3.0]


def test_inclusion_by_hand():
    """Two draws of weights 1/2, 1/3, 1/6: an item is first, or second behind each of the others."""
    a, b, c = 1 / 2, 1 / 3, 1 / 6
    expected = [
        a + b * a / (1 - b) + c * a / (1 - c),
        b + a * b / (1 - a) + c * b / (1 - c),
        c + a * c / (1 - a) + b * c / (1 - b),
    ]
    np.testing.assert_allclose(inclusion([3, 2, 1], 2), expected, rtol=1e-7)
    np.testing.assert_allclose(inclusion([3, 2, 0], 2), [1, 1, 0])
    assert inclusion(zipf_weights(4096, 0.9), 8).sum() == pytest.approx(8.0)


@pytest.mark.parametrize("policy", ["lru", "static-hot"])
def test_hit_rates_grow_with_the_slots(policy):
    rates = hit_rate(policy, zipf_weights(64, 0.7), np.arange(65), draws=4)
    assert (np.diff(rates) >= 0.0).all()
    assert (rates[0], rates[-1]) == pytest.approx((0.0, 1.0))


def test_traces_repeat_and_draw_distinct_items():
    trace = zipf_trace(zipf_weights(16, 1.0), 500, 4, seed=5)
    np.testing.assert_array_equal(trace, zipf_trace(zipf_weights(16, 1.0), 500, 4, seed=5))
    assert all(len(set(step)) == 4 for step in trace.tolist())
    assert zipf_trace([1.0, 1.0, 0.0], 100, 2, seed=0).max() == 1
    assert zipf_trace([1.0], 0, 1, seed=0).shape == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hit_rate("decay", [1.0, 1.0], 1), "no closed form"),
        (lambda: hit_rate("window", [1.0, 1.0], 1), "of a window its steps"),
        (lambda: hit_rate("lru", [1.0, 1.0], 1, window=2), "of a window its steps"),
        (lambda: hit_rate("lru", [1.0, -1.0], 1), "not negative"),
        (lambda: zipf_trace([1.0, 0.0], 5, 2, seed=0), "2 of them"),
        (lambda: zipf_weights(0, 1.0), "needs items"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ProgramError, match=message):
        call()
