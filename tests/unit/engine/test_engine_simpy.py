"""SimPy as oracle: streams as resources in program order, links used by one transfer at a time."""

import numpy as np
import pytest
import simpy

from simulator.engine import Program, execute


def random_tasks(seed):
    """Tasks as (stream, seconds of compute or None, bytes, dependencies); each link belongs to a stream."""
    generator = np.random.default_rng(seed)
    n_streams = int(generator.integers(1, 5))
    tasks = []
    for task in range(int(generator.integers(5, 60))):
        after = generator.choice(task, size=min(task, int(generator.integers(0, 3))), replace=False).tolist()
        stream = int(generator.integers(n_streams))
        is_compute = stream % 2 == 0
        amount = float(generator.exponential(1.0)) if generator.random() > 0.1 else 0.0
        tasks.append((stream, is_compute, amount, after))
    return n_streams, tasks


def by_engine(n_streams, tasks, bandwidth, latency):
    program = Program()
    streams = [program.stream(f"stream{index}") for index in range(n_streams)]
    links = [program.link(f"link{index}", bandwidth) for index in range(n_streams)]
    for stream, is_compute, amount, after in tasks:
        if is_compute:
            program.compute(streams[stream], amount, after=after)
        else:
            program.transfer([links[stream]], amount, after=after, stream=streams[stream], latency=latency)
    timeline = execute(program)
    return timeline.start, timeline.end


def by_simpy(n_streams, tasks, bandwidth, latency):
    environment = simpy.Environment()
    resources = [simpy.Resource(environment, 1) for _ in range(n_streams)]
    ended = [environment.event() for _ in tasks]
    start, end = np.zeros(len(tasks)), np.zeros(len(tasks))

    def process(task, stream, is_compute, amount, after):
        # Requests are made at time 0 in program order, so SimPy's FIFO queue is the program order.
        with resources[stream].request() as turn:
            yield turn
            yield environment.all_of([ended[before] for before in after])
            start[task] = environment.now
            yield environment.timeout(amount if is_compute else latency + amount / bandwidth)
            end[task] = environment.now
        ended[task].succeed()

    for task, spec in enumerate(tasks):
        environment.process(process(task, *spec))
    environment.run()
    return start, end


@pytest.mark.parametrize("seed", range(25))
def test_streams_and_serial_links(seed):
    n_streams, tasks = random_tasks(seed)
    ours = by_engine(n_streams, tasks, bandwidth=3.0, latency=0.25)
    theirs = by_simpy(n_streams, tasks, bandwidth=3.0, latency=0.25)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_room_in_memory(seed):
    """One FIFO memory as a SimPy container: every job takes bytes, works and gives them back."""
    generator = np.random.default_rng(seed)
    jobs = [(float(generator.integers(1, 10)), float(generator.integers(1, 50))) for _ in range(30)]
    program = Program()
    memory = program.memory("hbm", 12.0, on_full="block")
    for index, (size, seconds) in enumerate(jobs):
        task = program.compute(program.stream(f"worker{index}"), seconds)
        program.allocate(memory, size, "work", at=task, until=[task])

    environment = simpy.Environment()
    room = simpy.Container(environment, capacity=12.0, init=12.0)
    start = np.zeros(len(jobs))

    def process(job, size, seconds):
        yield room.get(size)
        start[job] = environment.now
        yield environment.timeout(seconds)
        yield room.put(size)

    for job, (size, seconds) in enumerate(jobs):
        environment.process(process(job, size, seconds))
    environment.run()
    assert execute(program).start.tolist() == start.tolist()
