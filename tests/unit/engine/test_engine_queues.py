"""Queues of transfers: small cases by hand, and laws on random arrivals."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import ChunkQueue, Pool, Program, ProgramError, Simulation, StoreLoad

laws = settings(derandomize=True, max_examples=80, deadline=None, database=None)
BANDWIDTH = 10.0


@pytest.fixture
def machine():
    program = Program()
    program.link("read", BANDWIDTH)
    program.link("write", BANDWIDTH)
    program.stream("gpu")
    return Simulation(program)


READ, WRITE, GPU = 0, 1, 2


def test_a_higher_priority_goes_at_the_next_chunk(machine):
    """ProMoE: an expert of 3 chunks of 1 s; one that is required comes at 0.5 s and goes after the first chunk."""
    queue = ChunkQueue(machine, [READ], 10.0)
    predicted = queue.submit(30.0, priority=1, name="predicted")
    required = []
    machine.at(0.5, lambda: required.append(queue.submit(20.0, priority=0)))
    timeline = machine.run()
    assert timeline.start.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (required[0].begun, required[0].ended) == (1.0, 3.0)
    assert (predicted.begun, predicted.ended, predicted.delivered, queue.delivered) == (0.0, 5.0, 30.0, 50.0)
    assert timeline.critical_path().total == timeline.makespan == 5.0


def test_a_wrong_prediction_costs_a_chunk_at_most(machine):
    queue = ChunkQueue(machine, [READ], 10.0)
    ended = []
    wrong = queue.submit(30.0, priority=1, on_end=ended.append)
    other = queue.submit(10.0, priority=1, on_end=ended.append)
    dropped = []
    machine.at(0.5, lambda: dropped.append(queue.cancel(wrong)))
    machine.at(0.6, lambda: dropped.append(queue.cancel(wrong)))
    machine.run()
    assert dropped == [20.0, 0.0]
    assert (wrong.cancelled, wrong.done, wrong.ended, wrong.delivered) == (True, False, 0.5, 10.0)
    assert (other.begun, other.ended, ended, queue.delivered) == (1.0, 2.0, [other], 20.0)


def test_what_is_required_after_all_is_promoted(machine):
    queue = ChunkQueue(machine, [READ], 10.0, latency=0.25)
    first, second = (queue.submit(15.0, priority=1) for _ in range(2))
    assert queue.waiting == 20.0
    machine.at(0.1, lambda: queue.reprioritise(second, 0))
    machine.run()
    # 10 and 5 bytes with a latency each: 1.25 s and 0.75 s.
    assert (second.begun, second.ended, first.ended) == (1.25, 3.25, 4.0)


def test_what_a_client_asks_for_at_an_end_goes_by_priority(machine):
    queue = ChunkQueue(machine, [READ], 10.0)
    order = []

    def more(_):
        for priority in (2, 1):
            queue.submit(10.0, priority=priority, on_end=lambda request: order.append(request.priority))

    queue.submit(10.0, on_end=more)
    machine.run()
    assert order == [1, 2]


def test_a_chunk_that_is_a_third_makes_three():
    for size in (0.3, 17301504.0, 1e9 / 7):
        simulation = Simulation()
        queue = ChunkQueue(simulation, [], size / 3, max_rate=1e9)
        queue.submit(size)
        assert simulation.run().n_tasks == 3
        assert queue.delivered == pytest.approx(size, rel=1e-15)


def test_a_pool_serves_first_come_first_served(machine):
    """Two workers of at most 4 B/s: 8 B take 2 s each; the third begins when the first ends."""
    pool = Pool(machine, [READ], 2, max_rate=4.0)
    requests = [pool.submit(size) for size in (8.0, 12.0, 8.0, 8.0)]
    assert pool.cancel(requests[3])
    assert not pool.cancel(requests[0])
    machine.run()
    assert [request.begun for request in requests[:3]] == [0.0, 0.0, 2.0]
    assert [request.ended for request in requests[:3]] == [2.0, 3.0, 4.0]
    assert (pool.delivered, requests[3].done, requests[3].delivered) == (28.0, False, 0.0)


def test_a_load_is_forwarded_while_its_store_is_under_way(machine):
    """SSDTrain: activations stored in 1 s each; the last one is needed before its store has begun."""
    tiers = StoreLoad(Pool(machine, [WRITE], 1), Pool(machine, [READ], 1))
    stores = [tiers.store(layer, 10.0) for layer in range(4)]
    loads = {}

    def load(layer):
        loads[layer] = tiers.load(layer, on_end=lambda _: seen.append((layer, machine.now)))

    seen = []
    for time, layer in ((1.5, 3), (1.5, 1), (1.5, 0), (4.0, 2)):
        machine.at(time, lambda layer=layer: load(layer))
    timeline = machine.run()
    # 3 had not begun and is dropped, 1 was under way and is still stored, 0 and 2 are read.
    assert seen == [(3, 1.5), (1, 1.5), (0, 2.5), (2, 5.0)]
    assert [store.done for store in stores] == [True, True, True, False]
    assert (tiers.forwarded, tiers.dropped) == (20.0, 10.0)
    assert timeline.moved() == {"read": 20.0, "write": 30.0}
    assert [loads[layer].forwarded for layer in range(4)] == [False, True, False, True]
    with pytest.raises(ProgramError, match="nothing is stored under 3"):
        tiers.load(3)
    tiers.forget(0)
    with pytest.raises(ProgramError, match="nothing is stored under 0"):
        tiers.load(0)


def test_what_follows_a_forwarded_load_is_on_the_critical_path(machine):
    tiers = StoreLoad(Pool(machine, [WRITE], 1), Pool(machine, [READ], 1), drop_forwarded=False)
    tiers.store("a", 20.0)

    def load(_):
        tiers.load("a", on_end=lambda _: machine.compute(GPU, 3.0))

    machine.compute(GPU, 1.0, on_end=load)
    timeline = machine.run()
    path = timeline.critical_path()
    assert (timeline.makespan, path.total, path.waits.tolist()) == (4.0, 4.0, [0.0, 0.0])
    assert timeline.moved()["write"] == 20.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: ChunkQueue(s, [READ], 0.0), "a chunk must be positive"),
        (lambda s: ChunkQueue(s, [READ], 1.0).submit(-1.0, name="x"), "request 'x'"),
        (lambda s: Pool(s, [READ], 0), "a worker at least"),
        (lambda s: StoreLoad(Pool(s, [], 1), Pool(Simulation(), [], 1)), "one simulation"),
    ],
)
def test_bad_queues_are_refused(machine, call, message):
    with pytest.raises(ProgramError, match=message):
        call(machine)


@dataclass
class Arrival:
    time: float
    size: float
    priority: int
    drop: float | None
    request: object = field(default=None)


arrivals = st.lists(
    st.builds(
        Arrival,
        st.floats(0.0, 8.0),
        st.integers(0, 40).map(float),
        st.integers(0, 2),
        st.none() | st.floats(0.0, 12.0),
    ),
    min_size=1,
    max_size=8,
)


@laws
@given(arrivals, st.sampled_from([1.0, 7.0, 100.0]), st.sampled_from([0.0, 0.25]))
def test_chunks_keep_the_books(cases, chunk, latency):
    program = Program()
    link = program.link("link", BANDWIDTH)
    simulation = Simulation(program)
    queue = ChunkQueue(simulation, [link], chunk, latency=latency)

    def ask(case):
        case.request = queue.submit(case.size, priority=case.priority, name=str(cases.index(case)))

    for case in cases:
        simulation.at(case.time, lambda case=case: ask(case))
        if case.drop is not None:
            simulation.at(case.time + case.drop, lambda case=case: queue.cancel(case.request))
    timeline = simulation.run()
    # Nothing overlaps: a chunk is never interrupted.
    assert (timeline.start[1:] >= timeline.end[:-1]).all()
    assert (timeline.bytes <= chunk * (1 + 1e-9)).all()
    assert timeline.bytes.sum() == pytest.approx(queue.delivered)
    assert sum(case.request.delivered for case in cases) == pytest.approx(queue.delivered)
    assert timeline.makespan >= queue.delivered / BANDWIDTH * (1 - 1e-12)
    for case in cases:
        request = case.request
        assert request.cancelled or request.done
        assert request.delivered == case.size or request.cancelled
        if request.done:
            assert request.ended >= case.time + case.size / BANDWIDTH + latency - 1e-9
    chunks = list(zip(timeline.start.tolist(), map(int, timeline.program.names), strict=True))
    for start, mine in chunks:
        # Who came before this instant and is served after it had no higher priority.
        assert all(
            cases[other].priority >= cases[mine].priority
            for later, other in chunks
            if later > start > cases[other].time
        )
    # The link is never idle while anything waits.
    for before, after in zip(timeline.end[:-1], timeline.start[1:], strict=True):
        assert after == before or any(case.time == after for case in cases)


@laws
@given(arrivals, st.integers(1, 3))
def test_a_pool_keeps_the_books(cases, workers):
    program = Program()
    link = program.link("link", BANDWIDTH)
    simulation = Simulation(program)
    pool = Pool(simulation, [link], workers)
    order = []

    def ask(case):
        order.append(case)
        case.request = pool.submit(case.size)

    for case in cases:
        simulation.at(case.time, lambda case=case: ask(case))
        if case.drop is not None:
            simulation.at(case.time + case.drop, lambda case=case: pool.cancel(case.request))
    timeline = simulation.run()
    served = [case.request for case in order if not case.request.cancelled]
    starts = [request.begun for request in served]
    assert starts == sorted(starts)
    assert timeline.bytes.sum() == pool.delivered == sum(request.size for request in served)
    assert timeline.makespan >= pool.delivered / BANDWIDTH * (1 - 1e-12)
    for request in served:
        under_way = sum(other.begun <= request.begun < other.ended for other in served)
        assert under_way <= workers


@laws
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=8), st.booleans())
def test_every_load_is_read_or_forwarded(times, drop):
    program = Program()
    write, read = program.link("write", BANDWIDTH), program.link("read", BANDWIDTH)
    simulation = Simulation(program)
    tiers = StoreLoad(Pool(simulation, [write], 1), Pool(simulation, [read], 2), drop_forwarded=drop)
    size, loads = 10.0, []
    for key, (stored, later) in enumerate(times):
        simulation.at(stored, lambda key=key: tiers.store(key, size))
        simulation.at(stored + later, lambda key=key: loads.append(tiers.load(key)), priority=1)
    moved = simulation.run().moved()
    assert all(load.done for load in loads)
    assert moved["write"] + tiers.dropped == size * len(times)
    assert moved["read"] + tiers.forwarded == size * len(times)
    assert tiers.dropped <= tiers.forwarded
    assert drop or not tiers.dropped
