"""Pipeline schedules against their published closed forms, by the engine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost import Breakdown
from simulator.engine import execute
from simulator.specs import MemroofError
from simulator.training.lower import Message, StageWork, lower
from simulator.training.passes import ChunkPass
from simulator.training.schedule import SCHEDULES, bubble_fraction, in_flight


def passes(forward: float, backward: float, saved: float = 1.0) -> ChunkPass:
    f, b = Breakdown({"matmul": forward}), Breakdown({"matmul": backward})
    return ChunkPass((), (), (b,), f, b, saved, 0.0)


def stages(name: str, p: int, m: int, v: int, f: float, b: float, send: float = 0.0) -> list[StageWork]:
    chunk = passes(f / v, b / v)
    boundary = Message(0.0, 1.0, send, 1.0) if p > 1 else None
    return [
        StageWork(SCHEDULES[name](i, p, m, v), (chunk,) * v, boundary, (), False, 0.0, None, {}, 1e9)
        for i in range(p)
    ]


def run(name: str, p: int, m: int, v: int = 1, f: float = 1.0, b: float = 2.0, send: float = 0.0):
    lowered = lower(name, stages(name, p, m, v, f, b, send))
    return lowered, execute(lowered.program)


@given(p=st.integers(1, 8), groups=st.integers(1, 4), f=st.floats(0.1, 3.0), b=st.floats(0.1, 3.0))
@settings(derandomize=True, deadline=None, max_examples=40)
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-interleaved"])
def test_bubble_is_the_closed_form(name: str, p: int, groups: int, f: float, b: float) -> None:
    """Step = (1 + bubble)·m·(f + b) for equal stages and free transfers (Narayanan et al. 2021, section 2.2)."""
    m, v = groups * p, 2 if name == "1f1b-interleaved" else 1
    if name == "1f1b-interleaved" and p == 1:
        return
    _, timeline = run(name, p, m, v, f, b)
    assert timeline.makespan == pytest.approx(m * (f + b) * (1 + bubble_fraction(p, m, v)), rel=1e-9)


@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 8), (3, 9)])
def test_activations_in_flight(p: int, m: int) -> None:
    """GPipe holds all m, 1F1B p - i on stage i, interleaved (1 + (p-1)/(pv))·p·v chunks on the first (Narayanan et al. 2021; Korthikanti et al. 2022, section 4.2.3)."""
    for stage in range(p):
        assert in_flight(SCHEDULES["gpipe"](stage, p, m, 1)) == m
        assert in_flight(SCHEDULES["1f1b"](stage, p, m, 1)) == min(p - stage, m)
    v = 3
    assert in_flight(SCHEDULES["1f1b-interleaved"](0, p, 2 * p, v)) == p * v + p - 1


@pytest.mark.parametrize(("name", "v"), [("gpipe", 1), ("1f1b", 1), ("1f1b-interleaved", 2)])
def test_ledger_holds_what_is_in_flight(name: str, v: int) -> None:
    p, m = 4, 8
    lowered, timeline = run(name, p, m, v)
    for stage in range(p):
        expected = in_flight(SCHEDULES[name](stage, p, m, v))
        assert timeline.ledger.peak(lowered.memories[stage]).bytes == expected


@given(p=st.integers(2, 6), groups=st.integers(1, 3), v=st.integers(2, 4))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_every_pass_once_and_in_order(p: int, groups: int, v: int) -> None:
    m = p * groups
    for name, chunks in (("gpipe", 1), ("1f1b", 1), ("1f1b-interleaved", v)):
        for stage in range(p):
            rows = SCHEDULES[name](stage, p, m, chunks)
            assert len(set(rows)) == len(rows) == 2 * m * chunks
            seen = set()
            for order in rows:
                if order.direction == "backward":
                    assert (order.micro_batch, order.chunk) in seen
                seen.add((order.micro_batch, order.chunk))


def test_messages_delay_the_first_stage_twice() -> None:
    """One micro-batch over p stages: p·(f + b) and 2(p-1) messages."""
    _, timeline = run("1f1b", 4, 1, send=0.25)
    assert timeline.makespan == pytest.approx(4 * 3.0 + 6 * 0.25)


def test_interleaved_needs_multiples_of_stages() -> None:
    with pytest.raises(MemroofError, match="multiples of pipeline_parallel"):
        SCHEDULES["1f1b-interleaved"](0, 4, 6, 2)


def test_plain_schedules_have_one_chunk() -> None:
    for name in ("gpipe", "1f1b"):
        with pytest.raises(MemroofError, match="virtual_stages 2 needs"):
            SCHEDULES[name](0, 4, 4, 2)
