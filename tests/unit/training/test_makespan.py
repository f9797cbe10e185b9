"""The recurrence of schedule tables: published bubbles, hand-derived steps, periods, layers that communicate."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_oracle import engine_ends, random_times

from simulator.training.dependencies import recurrence
from simulator.training.layer_walk import LayerSeconds, Link
from simulator.training.makespan import MessageSeconds, PassSeconds, makespan
from simulator.training.recurrence import PARTS
from simulator.training.schedules import SCHEDULES, faults

F, B, W = 1.0, 1.5, 0.75


def equal(stages: int, chunks: int = 1) -> PassSeconds:
    """Every chunk of every stage takes the same time; chunks share a stage's second."""
    shape = (stages, chunks, 1)
    return PassSeconds(
        np.full(shape, F / chunks),
        np.full(shape, (B - W) / chunks),
        np.full(shape, W / chunks),
        np.full(shape, B / chunks),
    )


@pytest.mark.parametrize(
    ("name", "chunks", "bubble"),
    [
        ("gpipe", 1, lambda p: (p - 1) * (F + B)),  # Huang et al. 2019, section 2.3
        ("1f1b", 1, lambda p: (p - 1) * (F + B)),  # Narayanan et al. 2021, section 2.2.1
        ("1f1b-interleaved", 2, lambda p: (p - 1) * (F + B) / 2),  # Narayanan et al. 2021, section 2.2.2
    ],
)
@pytest.mark.parametrize("micro_batches", [8, 400])
def test_published_bubbles(name: str, chunks: int, bubble: Any, micro_batches: int) -> None:
    stages = 4
    ends = makespan(name, stages, micro_batches, chunks, equal(stages, chunks))
    assert ends.makespan == pytest.approx(micro_batches * (F + B) + bubble(stages))


def test_zero_bubble_h1_leaves_a_third_of_the_bubble() -> None:
    """(p - 1)(F + B - W) with equal parts, B the input gradient (Qi et al. 2023, section 2.3)."""
    shape = (4, 1, 1)
    passes = PassSeconds(np.ones(shape), np.ones(shape), np.ones(shape))
    assert makespan("zb-h1", 4, 12, 1, passes).makespan == pytest.approx(12 * 3.0 + 3.0)


def test_messages_add_latency_and_queue_on_their_link() -> None:
    """GPipe on two stages: forwards end at 1, 2, 3; messages of 2 s after 0.5 s arrive at 3.5, 5.5 and 7.5."""
    one = np.ones((2, 1, 1))
    sent = MessageSeconds(*(np.full((2, 1), value) for value in (0.5, 2.0, 0.0, 0.0)))
    ends = makespan("gpipe", 2, 3, 1, PassSeconds(one, 0 * one, 0 * one), sent)
    assert ends.last[:, 0].tolist() == [8.5, 8.5]


def test_long_steps_are_extrapolated() -> None:
    ends = makespan("1f1b", 4, 10_000, 1, equal(4))
    assert ends.simulated.tolist() == [24]
    assert ends.makespan == pytest.approx((10_000 + 3) * (F + B))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    stages=st.sampled_from([1, 2, 3, 4, 6]),
    micro_batches=st.sampled_from([12, 60, 132]),
    chunks=st.sampled_from([1, 2, 3]),
    pair=st.booleans(),
    even=st.booleans(),
    message=st.sampled_from([0.0, 0.05, 0.4]),
    seed=st.integers(0, 1000),
)
def test_extrapolation_is_exact(
    name: str, stages: int, micro_batches: int, chunks: int, pair: bool, even: bool, message: float, seed: int
) -> None:
    if faults(name, stages, micro_batches, chunks, pair=pair):
        return
    kind = SCHEDULES[name]
    passes, sent = random_times(
        np.random.default_rng(seed),
        stages,
        kind.chunks or chunks,
        kind.places(stages, chunks),
        3,
        even=even,
        message=message,
    )
    short = makespan(name, stages, micro_batches, chunks, passes, sent, pair=pair)
    full = makespan(name, stages, micro_batches, chunks, passes, sent, pair=pair, shortcut=False)
    np.testing.assert_allclose(short.last, full.last, rtol=1e-9)
    assert (full.simulated == micro_batches).all()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    stages=st.sampled_from([1, 2, 4]),
    micro_batches=st.sampled_from([4, 8, 12]),
    chunks=st.sampled_from([1, 2, 3]),
    pair=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_tables_end_as_in_the_engine(
    name: str, stages: int, micro_batches: int, chunks: int, pair: bool, seed: int
) -> None:
    if faults(name, stages, micro_batches, chunks, pair=pair):
        return
    kind = SCHEDULES[name]
    passes, sent = random_times(
        np.random.default_rng(seed),
        stages,
        kind.chunks or chunks,
        kind.places(stages, chunks),
        1,
        even=False,
        message=0.01,
    )
    # two messages of a pair at once share a link as a fluid; alone, they do not contend
    rel = 5e-3 if pair or kind.copies > 1 else 1e-9
    ends = makespan(name, stages, micro_batches, chunks, passes, sent, pair=pair)
    expected = engine_ends(name, stages, micro_batches, chunks, passes, sent, pair=pair)
    np.testing.assert_allclose(ends.last[:, 0], expected, rtol=rel)


def by_layer(rows: set[Any], compute: list[float], gather: float, reduce: float, **more: Any) -> LayerSeconds:
    """One stage, one chunk; forward and backward layers of the given seconds."""
    count = len(compute)
    shape = (len(PARTS), count, 1)
    columns = [np.zeros(shape) for _ in range(5)]
    columns[0][:] = np.array(compute)[None, :, None]
    columns[1][:2] = gather
    columns[2][1] = reduce
    return LayerSeconds(frozenset(rows), *columns, np.full(len(PARTS), count), **more)


def one_stage(compute: list[float]) -> PassSeconds:
    whole = np.full((1, 1, 1), sum(compute))
    return PassSeconds(whole, 0 * whole, whole)


def test_gradients_are_reduced_beside_the_last_backward_pass() -> None:
    """Layers end at 1, 2, 3 of the last pass (from 9 on); reductions of 2 s queue: 12, 14, 16."""
    compute = [1.0, 1.0, 1.0]
    ends = makespan("1f1b", 1, 2, 1, one_stage(compute), layers=by_layer({"final"}, compute, 0.0, 2.0))
    assert (ends.last.item(), ends.reduced.item()) == (12.0, 16.0)


def test_two_buffers_of_gradients_hold_up_the_backward_pass() -> None:
    """A third layer waits for the reduction of the first: it begins at 6 (3 + 1 + 2), not at 5."""
    compute = [1.0, 1.0, 1.0]
    layers = by_layer({"gradients"}, compute, 0.0, 2.0, bounded=True)
    ends = makespan("1f1b", 1, 1, 1, one_stage(compute), layers=layers)
    assert (ends.last.item(), ends.reduced.item()) == (7.0, 10.0)


@pytest.mark.parametrize(("prefetch", "expected"), [(0, 18.0), (1, 13.0)])
def test_gathers_run_ahead_as_far_as_asked(prefetch: int, expected: float) -> None:
    """Three layers of 1 s, gathers of 2 s, forward and backward.

    Nothing ahead: each layer takes 3 s. One ahead: a gather begins with the layer before, so that the second stream is never
    idle: 6 gathers and a layer.
    """
    compute = [1.0, 1.0, 1.0]
    layers = by_layer({"all"}, compute, 2.0, 0.0, prefetch=prefetch)
    ends = makespan("1f1b", 1, 1, 1, one_stage(compute), layers=layers)
    assert ends.last.item() == expected


def test_gathers_of_the_first_pass_begin_with_the_step() -> None:
    """3 gathers of 2 s from the start, the last layer behind them: 7 s; then a pass of 3 s."""
    compute = [1.0, 1.0, 1.0]
    ends = makespan("1f1b", 1, 1, 1, one_stage(compute), layers=by_layer({"first"}, compute, 2.0, 0.0))
    assert ends.last.item() == 10.0


def test_a_gather_and_a_reduction_share_their_link() -> None:
    """Both at the full rate of the link: what is a second each alone takes two together."""
    compute = [1.0, 1.0, 1.0]
    shape = (len(PARTS), 3, 1)
    free = by_layer({"all"}, compute, 1.0, 1.0, bounded=True)
    none, full = np.zeros(shape), np.full(shape, 1e9)
    shared = by_layer(
        {"all"}, compute, 1.0, 1.0, bounded=True, link=Link(np.full((1, 1), 1e9), none, full, none, full)
    )
    times = [
        makespan("1f1b", 1, 4, 1, one_stage(compute), layers=one).reduced.item() for one in (free, shared)
    ]
    assert times[0] < times[1] <= 2.0 * times[0]


def test_an_update_by_layer_waits_for_its_gradients() -> None:
    """Each backward layer of 1 s is reduced in 1 s and updated in 1 s before the next one begins: 3 + 9."""
    compute = [1.0, 1.0, 1.0]
    layers = by_layer({"gradients"}, compute, 0.0, 1.0)
    layers.update[1] = 1.0
    assert makespan("1f1b", 1, 1, 1, one_stage(compute), layers=layers).last.item() == 12.0


def test_levels_hold_each_row_once() -> None:
    table = recurrence("1f1b", 4, 8, 1)
    assert table.levels[0][0] == 0
    assert [high for _, high in table.levels[:-1]] == [low for low, _ in table.levels[1:]]
    assert table.levels[-1][1] == len(table.before) == 4 * 8 * 2
