"""Laws of the engine, on random programs."""

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest
from fluid_oracle import OracleTask, run_oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import DeadlockError, Program, Simulation, execute

N_STREAMS, N_LINKS = 3, 4
laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)


@dataclass(frozen=True)
class Task:
    """A compute if `path` is None, else a transfer; in small whole numbers, so that much happens at once."""

    after: tuple[int, ...]
    stream: int | None
    amount: float
    path: tuple[int, ...] | None = None
    latency: float = 0.0
    max_rate: float = inf
    priority: int = 0


@dataclass(frozen=True)
class Case:
    tasks: tuple[Task, ...]
    bandwidths: tuple[float, ...]


@st.composite
def cases(draw, *, priorities=True):
    tasks = []
    for index in range(draw(st.integers(1, 14))):
        after = tuple(draw(st.lists(st.integers(0, index - 1), max_size=2, unique=True))) if index else ()
        priority = draw(st.integers(0, 2)) if priorities else 0
        if draw(st.booleans()):
            stream = draw(st.integers(0, N_STREAMS - 1))
            tasks.append(Task(after, stream, float(draw(st.integers(0, 4))), priority=priority))
        else:
            path = tuple(draw(st.lists(st.integers(0, N_LINKS - 1), min_size=1, max_size=3, unique=True)))
            stream = draw(st.none() | st.integers(0, N_STREAMS - 1))
            latency = draw(st.sampled_from([0.0, 0.0, 1.0]))
            max_rate = draw(st.sampled_from([inf, inf, 0.7, 2.0]))
            tasks.append(
                Task(after, stream, float(draw(st.integers(0, 9))), path, latency, max_rate, priority)
            )
    bandwidths = tuple(
        draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0]), min_size=N_LINKS, max_size=N_LINKS))
    )
    return Case(tuple(tasks), bandwidths)


def add_task(target, task, streams, links):
    """Append a task to a program or submit it to a simulation."""
    if task.path is None:
        return target.compute(streams[task.stream], task.amount, after=task.after, priority=task.priority)
    return target.transfer(
        [links[link] for link in task.path],
        task.amount,
        after=task.after,
        latency=task.latency,
        max_rate=task.max_rate,
        stream=None if task.stream is None else streams[task.stream],
        priority=task.priority,
    )


def resources(case):
    program = Program()
    streams = [program.stream(f"stream{index}") for index in range(N_STREAMS)]
    links = [program.link(f"link{index}", bandwidth) for index, bandwidth in enumerate(case.bandwidths)]
    return program, streams, links


def build(case):
    program, streams, links = resources(case)
    for task in case.tasks:
        add_task(program, task, streams, links)
    return program


def assert_same(one, other):
    for column in ("start", "end", "bytes", "cause"):
        np.testing.assert_array_equal(getattr(one, column), getattr(other, column))


def rate_segments(timeline):
    """Yield (task, from, to, rate) of every stretch of constant rate."""
    rates = timeline.rates
    for task in np.unique(rates.task):
        rows = rates.task == task
        times = np.append(rates.time[rows], timeline.end[task])
        for begin, end, rate in zip(times[:-1], times[1:], rates.rate[rows], strict=True):
            if end > begin:
                yield int(task), float(begin), float(end), float(rate)


@laws
@given(cases())
def test_the_slow_oracle_agrees(case):
    timeline = execute(build(case))
    tasks = [
        OracleTask(
            after=list(task.after),
            stream=None if task.stream is None else str(task.stream),
            duration=task.amount if task.path is None else task.latency,
            path=() if task.path is None else tuple(str(link) for link in task.path),
            size=0.0 if task.path is None else task.amount,
            max_rate=task.max_rate,
        )
        for task in case.tasks
    ]
    expected = run_oracle(tasks, {str(link): bandwidth for link, bandwidth in enumerate(case.bandwidths)}, {})
    np.testing.assert_allclose(
        np.column_stack([timeline.start, timeline.end]), expected, rtol=1e-7, atol=1e-7
    )


@laws
@given(st.integers(0, 10**6))
def test_the_slow_oracle_agrees_on_blocking_memories(seed):
    """Amounts without ties, as in those the order of arrival is a matter of taste."""
    generator = np.random.default_rng(seed)
    capacities = {"hbm": 10.0, "dram": 12.0}
    program = Program()
    memories = {name: program.memory(name, size, on_full="block") for name, size in capacities.items()}
    streams = [program.stream(str(index)) for index in range(3)]
    link = program.link("link", 2.0)
    tasks = []
    for task in range(12):
        after = generator.choice(task, size=min(task, int(generator.integers(0, 3))), replace=False).tolist()
        amount, stream = float(generator.exponential()), int(generator.integers(3))
        if generator.random() < 0.5:
            tasks.append(OracleTask(after, str(stream), duration=amount))
            program.compute(streams[stream], amount, after=after)
        else:
            tasks.append(OracleTask(after, None, path=("link",), size=amount))
            program.transfer([link], amount, after=after)
    for task in range(12):
        for name in capacities:
            if generator.random() < 0.5:
                size = float(generator.uniform(1, 8))
                until = int(
                    generator.choice([task, *(later for later in range(12) if task in tasks[later].after)])
                )
                tasks[task].claims[name] = size
                tasks[until].frees[name] = tasks[until].frees.get(name, 0.0) + size
                program.allocate(memories[name], size, "work", at=task, until=[until])
    expected = run_oracle(tasks, {"link": 2.0}, capacities)
    if any(end == inf for _, end in expected):
        with pytest.raises(DeadlockError):
            execute(program)
        return
    timeline = execute(program)
    np.testing.assert_allclose(
        np.column_stack([timeline.start, timeline.end]), expected, rtol=1e-7, atol=1e-7
    )
    for name, capacity in capacities.items():
        assert timeline.ledger.peak(name).bytes <= capacity * (1 + 1e-9)
    assert timeline.critical_path().total == pytest.approx(timeline.makespan, rel=1e-12)


@laws
@given(cases())
def test_bytes_are_conserved_and_links_are_not_overfilled(case):
    timeline = execute(build(case), record_rates=True)
    moved = np.zeros(len(case.tasks))
    load: dict[int, list[tuple[float, float]]] = {link: [] for link in range(N_LINKS)}
    for task, begin, end, rate in rate_segments(timeline):
        moved[task] += rate * (end - begin)
        assert rate <= case.tasks[task].max_rate * (1 + 1e-12)
        for link in case.tasks[task].path:
            load[link] += [(begin, rate), (end, -rate)]
    asked = [0.0 if task.path is None else task.amount for task in case.tasks]
    np.testing.assert_allclose(moved, asked, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(timeline.bytes, asked)
    for link, bandwidth in enumerate(case.bandwidths):
        total = sum(size for size, task in zip(asked, case.tasks, strict=True) if link in (task.path or ()))
        assert timeline.moved()[f"link{link}"] == pytest.approx(total)
        for moment in {time for time, _ in load[link]}:
            assert (
                sum(change for time, change in load[link] if time <= moment) <= bandwidth * (1 + 1e-9) + 1e-9
            )


@laws
@given(cases())
def test_streams_are_serial_and_in_program_order(case):
    timeline = execute(build(case))
    for stream in range(N_STREAMS):
        tasks = [index for index, task in enumerate(case.tasks) if task.stream == stream]
        assert (timeline.start[tasks[1:]] >= timeline.end[tasks[:-1]]).all()
    for index, task in enumerate(case.tasks):
        assert (
            timeline.end[index]
            >= timeline.start[index]
            >= max((timeline.end[a] for a in task.after), default=0)
        )


@laws
@given(cases())
def test_no_result_is_below_the_critical_path_or_the_busiest_resource(case):
    timeline = execute(build(case))
    earliest: list[float] = []
    last: dict[int, float] = {}
    for task in case.tasks:
        unloaded = task.amount
        if task.path is not None:
            rate = min(task.max_rate, *(case.bandwidths[link] for link in task.path))
            unloaded = task.latency + task.amount / rate
        begin = max((earliest[before] for before in task.after), default=0.0)
        if task.stream is not None:
            begin = max(begin, last.get(task.stream, 0.0))
            last[task.stream] = begin + unloaded
        earliest.append(begin + unloaded)
    slack = 1 + 1e-12
    assert timeline.makespan * slack >= max(earliest)
    assert timeline.makespan * slack >= max(timeline.busy().values())


@laws
@given(cases())
def test_the_critical_path_has_no_gaps(case):
    timeline = execute(build(case))
    path = timeline.critical_path()
    assert path.total == pytest.approx(timeline.makespan, rel=1e-12)
    assert (path.waits == 0.0).all()
    assert path.released_by[0] == "start"


@laws
@given(cases())
def test_a_run_repeats_exactly(case):
    assert_same(execute(build(case)), execute(build(case)))


@laws
@given(cases())
def test_a_simulation_equals_execute(case):
    assert_same(Simulation(build(case)).run(), execute(build(case)))


@laws
@given(cases(), st.lists(st.integers(0, 12), max_size=4))
def test_stops_change_nothing(case, stops):
    simulation = Simulation(build(case))
    for stop in sorted(stops):
        simulation.run(until=float(stop))
    assert_same(simulation.run(), execute(build(case)))


@laws
@given(cases(priorities=False))
def test_submitting_at_time_zero_equals_a_program(case):
    program, streams, links = resources(case)
    simulation = Simulation(program)
    for task in case.tasks:
        add_task(simulation, task, streams, links)
    submitted, executed = simulation.run(), execute(build(case))
    np.testing.assert_allclose(submitted.end, executed.end, rtol=1e-12, atol=1e-12)


@laws
@given(cases())
def test_twice_the_rates_and_half_the_durations_halve_the_time(case):
    """Exactly, as all is scaled by powers of two."""
    tasks = tuple(
        replace(task, amount=task.amount / 2)
        if task.path is None
        else replace(task, latency=task.latency / 2, max_rate=task.max_rate * 2)
        for task in case.tasks
    )
    faster = Case(tasks, tuple(2 * bandwidth for bandwidth in case.bandwidths))
    np.testing.assert_array_equal(2 * execute(build(faster)).end, execute(build(case)).end)


@laws
@given(cases(), st.integers(0, N_LINKS - 1), st.floats(1.0, 10.0))
def test_more_bandwidth_never_slows_transfers_that_go_one_by_one(case, link, factor):
    """With sharing it may, as in any queueing network: what starts earlier may get in the way."""
    tasks = tuple(task if task.path is None else replace(task, stream=0) for task in case.tasks)
    slow = Case(tasks, case.bandwidths)
    wider = [
        bandwidth * (factor if index == link else 1.0) for index, bandwidth in enumerate(case.bandwidths)
    ]
    assert execute(build(Case(tasks, tuple(wider)))).makespan <= execute(build(slow)).makespan * (1 + 1e-12)


@laws
@given(cases(), st.data())
def test_the_ledger_adds_up(case, data):
    program = build(case)
    memory = program.memory("hbm", 10.0)
    n_tasks = len(case.tasks)
    buffers = []
    for _ in range(data.draw(st.integers(1, 10))):
        at = data.draw(st.none() | st.integers(0, n_tasks - 1))
        until = data.draw(st.lists(st.integers(at or 0, n_tasks - 1), max_size=2))
        size, category = float(data.draw(st.integers(0, 9))), data.draw(st.sampled_from(["a", "b"]))
        program.allocate(memory, size, category, at=at, until=until, name=str(len(buffers)))
        buffers.append((size, category, at, until))
    timeline = execute(program)
    times, by_category = timeline.ledger.resident("hbm")
    total = sum(by_category.values(), np.zeros(len(times)))
    for moment, level in zip(times, total, strict=True):
        begin = [0.0 if at is None else timeline.start[at] for _, _, at, _ in buffers]
        end = [max((timeline.end[task] for task in until), default=inf) for *_, until in buffers]
        held = [size for (size, *_), b, e in zip(buffers, begin, end, strict=True) if b <= moment < e]
        assert level == sum(held)
    peak = timeline.ledger.peak(memory)
    assert peak.bytes == max(total) == sum(peak.by_category.values())
    assert total[times == peak.time] == peak.bytes
    assert sum(size for _, size in peak.holders) <= peak.bytes
    assert total[-1] == sum(size for size, _, _, until in buffers if not until)
    assert bool(timeline.ledger.shortfalls) == (peak.bytes > 10.0)
    if timeline.ledger.shortfalls:
        assert timeline.ledger.shortfalls[0].time == times[total > 10.0][0]


@laws
@given(cases(priorities=False), st.data())
def test_cancelling_keeps_the_books(case, data):
    """Whatever is dropped when: all tasks end, no link carries more than it can, streams stay serial."""
    simulation = Simulation(build(case), record_rates=True)
    for _ in range(data.draw(st.integers(1, 3))):
        task = data.draw(st.integers(0, len(case.tasks) - 1))
        simulation.at(data.draw(st.floats(0.0, 8.0)), lambda task=task: simulation.cancel(task))
    timeline = simulation.run()
    assert not np.isnan(timeline.end).any()
    moved = np.zeros(len(case.tasks))
    for task, begin, end, rate in rate_segments(timeline):
        moved[task] += rate * (end - begin)
    np.testing.assert_allclose(moved, timeline.bytes, rtol=1e-9, atol=1e-9)
    for stream in range(N_STREAMS):
        tasks = [index for index, task in enumerate(case.tasks) if task.stream == stream]
        assert (timeline.start[tasks[1:]] >= timeline.end[tasks[:-1]]).all()


slowdowns = st.lists(
    st.tuples(
        st.integers(0, N_LINKS - 1), st.integers(0, N_LINKS - 1), st.sampled_from([1.0, 1.5, 2.0, 4.0])
    ).filter(lambda pair: pair[0] != pair[1]),
    max_size=4,
    unique_by=lambda pair: pair[:2],
)


def carried(timeline):
    """Return for each link the integral of the rates of the transfers that cross it."""
    totals = {f"link{link}": 0.0 for link in range(N_LINKS)}
    for task, begin, end, rate in rate_segments(timeline):
        for link in timeline.program.routes[timeline.program.route[task]].path:
            totals[timeline.program.resources[link].name] += rate * (end - begin)
    return totals


@laws
@given(cases(), slowdowns, st.data())
def test_every_link_carries_what_its_transfers_moved(case, pairs, data):
    """In a program and in a simulation that submits and cancels, with links that slow each other."""
    program, streams, links = resources(case)
    for victim, by, factor in pairs:
        program.slow(links[victim], links[by], factor)
    simulation = Simulation(program, record_rates=True)
    later = [task for task in case.tasks if not task.after]
    for task in case.tasks:
        add_task(program, task, streams, links)
    for task in later:
        moment = data.draw(st.floats(0.0, 8.0))
        simulation.at(moment, lambda task=task: add_task(simulation, task, streams, links))
    if later:
        dropped, moment = data.draw(st.integers(0, len(later) - 1)), data.draw(st.floats(8.0, 12.0))
        simulation.at(moment, lambda: simulation.cancel(dropped))
    for timeline in (execute(program, record_rates=True), simulation.run()):
        assert timeline.moved() == pytest.approx(carried(timeline), rel=1e-9, abs=1e-9)
        assert not np.isnan(timeline.end).any()


@laws
@given(cases(), slowdowns)
def test_links_that_slow_each_other_are_never_faster(case, pairs):
    """One transfer at a time: beside nothing, nothing is slowed; in all no more than by all factors."""
    tasks = tuple(task if task.path is None else replace(task, stream=0) for task in case.tasks)
    alone = execute(build(Case(tasks, case.bandwidths)))
    program, streams, links = resources(case)
    for victim, by, factor in pairs:
        program.slow(links[victim], links[by], factor)
    for task in tasks:
        add_task(program, task, streams, links)
    slowed = execute(program)
    assert (slowed.end >= alone.end * (1 - 1e-12)).all()
    assert slowed.makespan <= alone.makespan * np.prod([factor for *_, factor in pairs]) * (1 + 1e-12)
    crossing_both = any({victim, by} <= set(task.path or ()) for task in tasks for victim, by, _ in pairs)
    if not crossing_both:
        np.testing.assert_array_equal(slowed.end, alone.end)


@laws
@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 4.0), st.floats(1.0, 9.0)), min_size=1, max_size=8)
)
def test_asking_for_room_equals_claiming_it(jobs):
    """Jobs (arrival, seconds, bytes) in a memory of 10 B: as a program, and as processes that ask."""
    program = Program()
    memory = program.memory("hbm", 10.0, on_full="block")
    twin = Program()
    twin_memory = twin.memory("hbm", 10.0, on_full="block")
    simulation = Simulation(twin)
    streams = [simulation.program.stream(str(index)) for index in range(len(jobs))]
    ended = {}

    def ask(index):
        def work(buffer):
            simulation.compute(streams[index], jobs[index][1], on_end=lambda _: finish(buffer))

        def finish(buffer):
            ended[index] = simulation.now
            simulation.free(buffer)

        simulation.request(twin_memory, jobs[index][2], "work", work)

    tasks = []
    for index, (arrival, seconds, size) in enumerate(jobs):
        stream = program.stream(str(index))
        waited = program.compute(stream, arrival)
        tasks.append(program.compute(stream, seconds, after=[waited]))
        program.allocate(memory, size, "work", at=tasks[-1], until=[tasks[-1]])
        simulation.at(arrival, lambda index=index: ask(index))
    timeline, dynamic = execute(program), simulation.run()
    assert [ended[index] for index in range(len(jobs))] == timeline.end[tasks].tolist()
    assert dynamic.ledger.peak("hbm").bytes == timeline.ledger.peak("hbm").bytes
