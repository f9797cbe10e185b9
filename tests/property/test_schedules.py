"""Laws of pipeline schedules, on random degrees and times, by the longest path through the tables."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from longest_path import timing

from simulator.training.schedules import SCHEDULES, bubble_time, faults, in_flight, peak_in_flight, pipeline

laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)
names = st.sampled_from(sorted(SCHEDULES))
times = st.sampled_from([0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0])


@st.composite
def tables(draw, *, pairs=True):
    name = draw(names)
    kind, p = SCHEDULES[name], draw(st.integers(1, 9))
    m, v = draw(st.integers(1, 4 * p)), kind.chunks or draw(st.integers(2, 4))
    if kind.in_groups:
        m = p * draw(st.integers(1, 4))
    if kind.even:
        p += p % 2
        m = 2 * draw(st.integers(p, 2 * p))
    pair = pairs and kind.pairs and not kind.even and draw(st.booleans())
    assume(not faults(name, p, m, v, pair=pair))
    return pipeline(name, p, m, v, pair=pair)


@given(table=tables())
@laws
def test_every_pass_once_and_in_order(table) -> None:
    """The chunks of a stage run each micro-batch of their route once, in full; a pass follows what it needs of the stage."""
    for stage, rows in enumerate(table.orders):
        seen = set()
        for row in rows:
            key = (row.micro_batch, row.chunk)
            assert (stage, row.chunk) in table.routes[table.route_of[row.micro_batch]]
            before = {"weight-gradient": "input-gradient"}.get(row.part, "forward")
            assert row.part == "forward" or (*key, before) in seen
            assert (*key, row.part) not in seen
            seen.add((*key, row.part))
        parts = Counter(part for _, _, part in seen)
        expected = sum(len([1 for key in table.routes[route] if key[0] == stage]) for route in table.route_of)
        assert parts["forward"] == parts["backward"] + parts["input-gradient"] == expected
        assert parts["input-gradient"] == parts["weight-gradient"]


@given(table=tables())
@laws
def test_a_pair_is_a_forward_and_a_backward_pass_of_different_micro_batches(table) -> None:
    for rows in table.orders:
        for row, after in zip(rows, (*rows[1:], None), strict=True):
            if row.paired:
                assert (row.part, after.part, after.paired) == ("forward", "backward", False)
                assert row.micro_batch != after.micro_batch


@given(table=tables(), forward=times, backward=times, weight=times)
@laws
def test_tables_never_wait_for_each_other(table, forward, backward, weight) -> None:
    """Some order exists in which all rows run, and no stage takes less than its work."""
    found = timing(table, forward, backward, weight)
    passes = len(table.route_of) * table.chunks // len(table.routes)
    assert found.window >= passes * (forward + backward + weight) * (1 - 1e-12)
    assert found.makespan >= found.window * (1 - 1e-12)


@given(table=tables(pairs=False), forward=times, backward=times, weight=times)
@laws
@pytest.mark.parametrize(
    "name", ["naive", "gpipe", "1f1b", "1f1b-interleaved", "wrap-around", "2bp", "zb-h1", "zb-h2", "zb-v"]
)
def test_step_is_work_and_bubble(name, table, forward, backward, weight) -> None:
    """Closed forms equal the longest path exactly where they say so, for unequal parts too."""
    p, m, v = len(table.orders), len(table.route_of), table.chunks
    if table.name != name:
        table = pipeline(name, max(p, 2), m := max(p, 2) * 2, v := SCHEDULES[name].chunks or 3)
        p = max(p, 2)
    assume(name != "zb-h1" or m >= p)
    assume(name not in ("zb-h2", "zb-v") or m >= 2 * p - 1)
    if name == "zb-v":
        backward = max(forward, backward, weight)
    found = timing(table, forward / v, backward / v, weight / v)
    parts = {"forward": forward, "input_gradient": backward, "weight_gradient": weight}
    work = m * (forward + backward + weight)
    assert found.makespan == pytest.approx(work + bubble_time(name, p, m, v, **parts, synchronous=True))
    if name in ("zb-h2", "zb-v"):
        assert found.window == pytest.approx(work + bubble_time(name, p, m, v, **parts))


@given(
    p=st.integers(1, 4).map(lambda half: 2 * half),
    more=st.integers(0, 8),
    weight=st.floats(0.1, 1.0),
    gain=st.floats(0, 1.0),
)
@laws
def test_dualpipe_bubble(p, more, weight, gain) -> None:
    """(p/2 - 1)(F&B + B - 3W) on the middle stages, for F = B >= W and pairs that overlap (DeepSeek-V3, table 2)."""
    m = 2 * (p + more)
    table = pipeline("dualpipe", p, m)
    paired = 2.0 + weight - gain
    pairs = sum(row.paired for row in table.orders[p // 2])
    step = timing(table, 1.0, 1.0, weight, paired=paired).makespan
    idle = step - (m * (2.0 + weight) - pairs * gain)
    assert idle == pytest.approx(
        bubble_time("dualpipe", p, m, weight_gradient=weight, paired=paired), abs=1e-9
    )


@given(p=st.integers(1, 8), m=st.integers(2, 30), forward=times, backward=times, overlap=st.floats(0.0, 1.0))
@laws
def test_pairs_of_1f1b_run_back_to_back(p, m, forward, backward, overlap) -> None:
    """A step in pairs takes p (F + B) + (m - 1) F&B: once filled, a pair ends each F&B."""
    paired = max(forward, 2 * backward) + overlap * min(forward, 2 * backward)
    found = timing(pipeline("1f1b", p, m, pair=True), forward, backward, backward, paired=paired)
    assert found.makespan == pytest.approx(p * (forward + 2 * backward) + (m - 1) * paired)


@given(table=tables(pairs=False))
@laws
def test_in_flight_is_the_closed_form(table) -> None:
    p, m, share = len(table.orders), len(table.route_of), table.places / len(table.orders)
    for stage, rows in enumerate(table.orders):
        held = in_flight(rows) / share
        published = peak_in_flight(table.name, p, m, table.chunks, stage)
        assert held <= published + 1e-9
        if table.name != "zb-v" or m >= 2 * p - 1:
            assert held == pytest.approx(published)


@given(p=st.integers(1, 8), groups=st.integers(1, 4), weight=st.floats(0.1, 1.0))
@laws
def test_who_idles_less(p, groups, weight) -> None:
    """For F = B >= W: 1F1B, then ZB-H1 and 2BP, then ZB-H2 (Qi et al. 2023, section 2.3)."""
    m = 2 * p * groups
    steps = [
        timing(pipeline(name, p, m), 1.0, 1.0, weight).window for name in ("1f1b", "zb-h1", "2bp", "zb-h2")
    ]
    assert steps[0] >= steps[1] - 1e-9
    assert steps[1] == pytest.approx(steps[2])
    assert steps[2] >= steps[3] - 1e-9
