"""Lowered steps against closed forms of their schedules, by the engine."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost import Breakdown
from simulator.engine import Timeline, execute
from simulator.graph import Block
from simulator.training.liveness import Liveness
from simulator.training.lower import Lowered, Replica, lower
from simulator.training.passes import ChunkPass, Issued, LayerPass, OperatorPass
from simulator.training.schedules import Pipeline, in_flight, pipeline
from simulator.training.work import Communication, LayerMessages, Message, StageWork

SECONDS = {"forward": 1.0, "backward": 2.0, "input-gradient": 1.0, "weight-gradient": 1.0}


def layer(seconds: dict[str, float], saved: float = 1.0, peak: float = 0.0) -> LayerPass:
    operators = {
        part: (OperatorPass("matmul", Breakdown({"matmul": time}), time, 0.0),)
        for part, time in seconds.items()
    }
    times = {part: Breakdown({"matmul": time}) for part, time in seconds.items()}
    memory = Liveness(saved, peak, 2.0 * peak, 0.5 * saved, {"input": 0.25 * saved, "output": 0.75 * saved})
    return LayerPass(Block("layer", (), {}), operators, times, dict.fromkeys(seconds, Issued()), memory)


def chunk(layers: Sequence[LayerPass]) -> ChunkPass:
    parts = layers[0].operators
    operators = {
        part: tuple(one.operators[part] for one in (layers if part == "forward" else layers[::-1]))
        for part in parts
    }
    times = {
        part: Breakdown({"matmul": sum(float(one.times[part].time) for one in layers)}) for part in parts
    }
    return ChunkPass(tuple(layers), operators, times)


AFTER = Communication("end", "none")
NOTHING = LayerMessages()


def stages(
    table: Pipeline, *, layers: int = 1, communication: Communication = AFTER, messages: LayerMessages = NOTHING,
    scale: float = 1.0, reduction: tuple[Message, ...] = (), optimizer: float = 0.0,
    peak: float = 0.0,
) -> list[StageWork]:  # fmt: skip
    seconds = {part: time * scale / layers for part, time in SECONDS.items()}
    one = chunk([layer(seconds, 1.0 / layers, peak) for _ in range(layers)])
    chunks = (one,) * table.chunks
    return [
        StageWork(
            orders, chunks, chunks, (1, 1), ((messages,) * layers,) * table.chunks, communication, reduction, (), optimizer,
            {}, 1e9,
        )
        for orders in table.orders
    ]  # fmt: skip


def run(
    table: Pipeline, works: list[StageWork], send: float = 0.0, *, detail: bool = False
) -> tuple[Lowered, Timeline]:
    pairs = {(a, b) for a in range(len(works)) for b in range(len(works)) if a != b}
    boundaries = {pair: Message(0.0, 1.0, send, 1.0) for pair in sorted(pairs)}
    lowered = lower(table.name, [Replica(table, works, boundaries)], detail=detail)
    return lowered, execute(lowered.program)


@given(p=st.integers(1, 8), groups=st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=40)
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-interleaved"])
def test_bubble_is_the_closed_form(name: str, p: int, groups: int) -> None:
    """Step = (m + (p - 1)/v)(f + b) for equal stages and free transfers (Narayanan et al. 2021, section 2.2)."""
    m, v = groups * p, 2 if name == "1f1b-interleaved" else 1
    if v == 2 and p == 1:
        return
    table = pipeline(name, p, m, v)
    _, timeline = run(table, stages(table, scale=1.0 / v))
    assert timeline.makespan == pytest.approx(3.0 * (m + (p - 1) / v), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "v"), [("gpipe", 1), ("1f1b", 1), ("1f1b-interleaved", 2), ("wrap-around", 2)]
)
def test_the_ledger_holds_what_is_in_flight(name: str, v: int) -> None:
    table = pipeline(name, 4, 8, v)
    lowered, timeline = run(table, stages(table))
    for stage, memory in enumerate(lowered.memories):
        assert timeline.ledger.peak(memory).bytes == in_flight(table.orders[stage])


@pytest.mark.parametrize("name", ["2bp", "zb-h1", "zb-h2", "zb-v", "dualpipe"])
def test_split_backward_passes_free_in_two_steps(name: str) -> None:
    """Half of what a pass saved is kept until its weight gradient; never more than passes in flight."""
    table = pipeline(name, 4, 8)
    lowered, timeline = run(table, stages(table))
    ideal = 8 * 4 * 3.0 * table.places / 4
    busy = sum(timeline.end - timeline.start)
    assert busy == pytest.approx(ideal)
    for stage, memory in enumerate(lowered.memories):
        peak = timeline.ledger.peak(memory).bytes
        assert 0.5 * in_flight(table.orders[stage]) <= peak <= in_flight(table.orders[stage])


def test_messages_delay_the_first_stage_twice() -> None:
    """One micro-batch over p stages: p·(f + b) and 2(p-1) messages."""
    table = pipeline("1f1b", 4, 1)
    _, timeline = run(table, stages(table), send=0.25)
    assert timeline.makespan == pytest.approx(4 * 3.0 + 6 * 0.25)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("communication", [
    Communication("end", "none"), Communication("last", "next", crowding=0.1), Communication("each", "each"),
    Communication("each", "each", reshard=False, prefetch=2),
])  # fmt: skip
def test_operator_by_operator_is_the_same_step(name: str, communication: Communication) -> None:
    table = pipeline(name, 2, 4)
    own = Message(1.0, 10.0, 0.01, 10.0)
    messages = LayerMessages((own,) if communication.gather != "none" else (), (own,), (), 3.0, 5.0)
    works = stages(table, layers=3, communication=communication, messages=messages, peak=0.25)
    (first, plain), (second, detailed) = run(table, works, 0.1), run(table, works, 0.1, detail=True)
    assert detailed.makespan == pytest.approx(plain.makespan, rel=1e-12)
    for memory, other in zip(first.memories, second.memories, strict=True):
        assert detailed.ledger.peak(other).bytes == pytest.approx(plain.ledger.peak(memory).bytes)


def test_gathers_run_ahead_as_far_as_they_may() -> None:
    """Three layers of 1 s forward and 2 s backward behind gathers of 1 s, of which the first is exposed; none ahead: all are."""
    table = pipeline("1f1b", 1, 1)
    own = LayerMessages(gather=(Message(0.0, 1.0, 1.0, 1.0),))
    for prefetch, exposed in ((0, 6.0), (1, 1.0), (2, 1.0)):
        works = stages(
            table,
            layers=3,
            communication=Communication("each", "each", prefetch=prefetch),
            messages=own,
            scale=3.0,
        )
        _, timeline = run(table, works)
        assert timeline.makespan == pytest.approx(9.0 + exposed)


def test_reductions_hide_behind_the_layers_that_follow() -> None:
    """Of three reductions of 2 s behind backward passes of 2 s a layer, the last is exposed; the optimizer waits for it."""
    table = pipeline("1f1b", 1, 2)
    own = LayerMessages(reduce=(Message(0.0, 1.0, 2.0, 1.0),))
    works = stages(
        table, layers=3, communication=Communication("last", "none"), messages=own, scale=3.0, optimizer=0.5
    )
    _, timeline = run(table, works)
    assert timeline.makespan == pytest.approx(2 * 9.0 + 2.0 + 0.5)


def test_units_that_collectives_occupy_are_taken_from_products() -> None:
    table = pipeline("1f1b", 1, 1)
    own = LayerMessages(reduce=(Message(0.0, 1.0, 1.0, 1.0),))
    works = stages(
        table, layers=3, communication=Communication("last", "none", crowding=0.2), messages=own, scale=3.0
    )
    _, timeline = run(table, works)
    assert timeline.makespan == pytest.approx(9.0 + 3 * 0.2 + 1.0)


def test_layers_updated_inside_the_backward_pass() -> None:
    table = pipeline("1f1b", 1, 1)
    works = stages(table, layers=3, messages=LayerMessages(optimizer=0.5), scale=3.0)
    _, timeline = run(table, works)
    assert timeline.makespan == pytest.approx(9.0 + 3 * 0.5)


def test_memory_of_layers_adds_up_to_that_of_the_pass() -> None:
    """Three layers of 1/3 B and 0.25 B forward, 0.5 B backward beyond: 1 + 0.5 at the start of the backward pass."""
    table = pipeline("1f1b", 1, 1)
    lowered, timeline = run(table, stages(table, layers=3, peak=0.25))
    assert timeline.ledger.peak(lowered.memories[0]).bytes == pytest.approx(1.5)


@pytest.mark.parametrize("communication", [Communication("end", "none"), Communication("last", "none")])
def test_replicas_of_two_kinds_reduce_together(communication: Communication) -> None:
    """One has 2 micro-batches of 9 s, one 3: both reduce after 27 s, by layer or as a whole."""
    own = Message(0.0, 1.0, 1.0, 1.0)
    whole = (own,) if communication.reduce == "end" else ()
    kinds = []
    for count, label in ((2, "a"), (3, "b")):
        table = pipeline("1f1b", 1, count)
        works = stages(
            table, layers=3, communication=communication, messages=LayerMessages(reduce=(own,)), scale=3.0, reduction=whole,
            optimizer=0.5,
        )  # fmt: skip
        kinds.append(Replica(table, works, {}, label))
    lowered = lower("two kinds", kinds)
    timeline = execute(lowered.program)
    assert timeline.makespan == pytest.approx(27.0 + 1.0 + 0.5)
    assert [float(timeline.end[task]) for task in lowered.last_pass] == [18.0, 27.0]
