"""Processes on the clock: queues against closed forms, cancelling, dynamic buffers."""

from math import inf, nan

import numpy as np
import pytest

from simulator.engine import DeadlockError, MemoryFullError, Program, ProgramError, Simulation


@pytest.fixture
def machine():
    program = Program()
    program.stream("gpu")
    program.link("link", 10.0)
    program.memory("hbm", 100.0, on_full="block")
    program.memory("dram", 50.0)
    return program


GPU, LINK, HBM, DRAM = 0, 1, 2, 3


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_md1_queue(load):
    """Pollaczek-Khinchine: with service time S the mean wait of M/D/1 is load S / (2 (1 - load))."""
    program = Program()
    server = program.stream("server")
    simulation = Simulation(program)
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1.0 / load, 40_000))
    for time in arrivals.tolist():
        simulation.at(time, lambda: simulation.compute(server, 1.0))
    timeline = simulation.run()
    assert np.mean(timeline.start - arrivals) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_processor_sharing_queue():
    """M/D/1-PS on a link: the mean time in the system is S / (1 - load), whatever the law of the sizes."""
    program = Program()
    link = program.link("link", 1.0)
    simulation = Simulation(program)
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1.0 / 0.6, 40_000))
    for time in arrivals.tolist():
        simulation.at(time, lambda: simulation.transfer([link], 1.0))
    timeline = simulation.run()
    assert np.mean(timeline.end - arrivals) == pytest.approx(1.0 / (1 - 0.6), rel=0.05)


def test_a_process_reacts_to_ends(machine):
    simulation = Simulation(machine)
    ended = []

    def step(task):
        ended.append((task, simulation.now))
        if len(ended) < 3:
            simulation.transfer([LINK], 5.0, on_end=step)

    simulation.compute(GPU, 1.0, on_end=step)
    timeline = simulation.run()
    assert ended == [(0, 1.0), (1, 1.5), (2, 2.0)]
    assert timeline.critical_path().tasks.tolist() == [0, 1, 2]
    assert timeline.critical_path().total == timeline.makespan == 2.0


def test_a_task_submitted_by_the_clock_has_waited_for_nothing(machine):
    simulation = Simulation(machine)
    simulation.at(3.0, lambda: simulation.compute(GPU, 1.0))
    path = simulation.run().critical_path()
    assert (path.waits.tolist(), path.released_by, path.total) == ([3.0], ("start",), 4.0)


def test_static_and_dynamic_work_share_links(machine):
    """A static copy of 20 B alone for 1 s, then beside a dynamic one of 5 B that takes 1 s at half rate."""
    machine.transfer([LINK], 20.0)
    simulation = Simulation(machine)
    simulation.at(1.0, lambda: simulation.transfer([LINK], 5.0))
    assert simulation.run().end.tolist() == [2.5, 2.0]
    assert machine.n_tasks == 1


def test_order_at_one_instant(machine):
    simulation = Simulation(machine)
    called = []
    simulation.at(1.0, lambda: called.append("late"), priority=5)
    simulation.at(1.0, lambda: called.append("first"))
    simulation.at(1.0, lambda: called.append("second"))
    off = simulation.at(1.0, lambda: called.append("never"))
    off.cancel()
    simulation.run()
    assert called == ["first", "second", "late"]


def test_stopping_and_going_on(machine):
    machine.transfer([LINK], 20.0, latency=1.0)
    machine.transfer([LINK], 20.0, latency=4.0)
    machine.compute(GPU, 2.0)
    simulation = Simulation(machine)
    half = simulation.run(until=2.0)
    assert simulation.now == 2.0
    assert half.bytes.tolist() == [10.0, 0.0, 0.0]
    assert np.isnan(half.end).tolist() == [True, True, False]
    assert half.busy() == {"gpu": 2.0, "link": 1.0}
    simulation.compute(GPU, 1.0)
    done = simulation.run()
    assert done.end.tolist() == [3.0, 6.0, 2.0, 3.0]
    assert (half.n_tasks, half.stream.tolist(), len(half.to_frame())) == (3, [-1, -1, 0], 3)


def test_dependencies_on_what_has_ended_and_what_has_not(machine):
    simulation = Simulation(machine)
    first = simulation.compute(GPU, 1.0)
    simulation.run(until=5.0)
    second = simulation.compute(GPU, 1.0, after=[first])
    third = simulation.transfer([LINK], 10.0, after=[first, second])
    simulation.barrier(after=[first, third])
    assert simulation.run().end.tolist() == [1.0, 6.0, 7.0, 7.0]


class TestCancel:
    def test_a_transfer_gives_back_its_bandwidth(self, machine):
        """Two at 5 B/s; at 1 s one goes, having moved 5 B, and the other's 15 B take 1.5 s more."""
        simulation = Simulation(machine)
        dropped, kept = (simulation.transfer([LINK], 20.0) for _ in range(2))
        simulation.at(1.0, lambda: simulation.cancel(dropped))
        timeline = simulation.run()
        assert timeline.end.tolist() == [1.0, 2.5]
        assert timeline.bytes.tolist() == [5.0, 20.0]
        assert timeline.cancelled.tolist() == [True, False]
        assert timeline.moved() == {"link": 25.0}
        assert not simulation.cancel(kept)

    def test_the_only_transfer(self, machine):
        simulation = Simulation(machine)
        task = simulation.transfer([LINK], 20.0)
        simulation.at(1.0, lambda: simulation.cancel(task))
        simulation.at(3.0, lambda: simulation.transfer([LINK], 10.0))
        timeline = simulation.run()
        assert timeline.end.tolist() == [1.0, 4.0]
        assert timeline.bytes.tolist() == [10.0, 10.0]

    def test_a_compute_frees_its_stream_and_releases_its_dependents(self, machine):
        simulation = Simulation(machine)
        ended = []
        task = simulation.compute(GPU, 10.0, on_end=ended.append)
        simulation.compute(GPU, 1.0, after=[task])
        simulation.at(2.0, lambda: simulation.cancel(task))
        assert simulation.run().end.tolist() == [2.0, 3.0]
        assert ended == []

    def test_a_task_whose_turn_has_not_come_takes_nothing(self, machine):
        first = machine.compute(GPU, 2.0)
        dropped = machine.transfer([LINK], 10.0, after=[first])
        machine.compute(GPU, 1.0, after=[dropped])
        machine.allocate(HBM, 80.0, "kv", at=dropped)
        machine.allocate(HBM, 90.0, "kv", at=3 - 1)
        simulation = Simulation(machine)
        assert simulation.cancel(dropped)
        assert not simulation.cancel(dropped)
        timeline = simulation.run()
        assert timeline.start.tolist() == [0.0, 2.0, 2.0]
        assert timeline.end.tolist() == [2.0, 2.0, 3.0]
        assert timeline.moved() == {"link": 0.0}
        assert timeline.ledger.peak("hbm").bytes == simulation.used(HBM) == 90.0

    def test_a_waiter_for_memory_lets_those_behind_it_pass(self, machine):
        queues = [machine.stream(name) for name in "abc"]
        for queue, size in zip(queues, (60.0, 90.0, 30.0), strict=True):
            task = machine.compute(queue, 5.0)
            machine.allocate(HBM, size, "kv", at=task, until=[task])
        simulation = Simulation(machine)
        simulation.at(1.0, lambda: simulation.cancel(1))
        timeline = simulation.run()
        assert timeline.start.tolist() == [0.0, 1.0, 1.0]
        assert timeline.end.tolist() == [5.0, 1.0, 6.0]
        assert timeline.ledger.peak("hbm").bytes == 90.0

    def test_during_latency_and_without_links(self, machine):
        simulation = Simulation(machine)
        waiting = simulation.transfer([LINK], 10.0, latency=5.0)
        local = simulation.transfer([], 10.0, max_rate=1.0)
        simulation.at(1.0, lambda: (simulation.cancel(waiting), simulation.cancel(local)))
        timeline = simulation.run()
        assert timeline.end.tolist() == [1.0, 1.0]
        assert timeline.bytes.tolist() == [0.0, 0.0]

    def test_those_that_end_together_cannot_cancel_each_other(self, machine):
        simulation = Simulation(machine)
        other, answers = [], []
        simulation.transfer([LINK], 10.0, on_end=lambda task: answers.append(simulation.cancel(other[0])))
        other.append(simulation.transfer([LINK], 10.0))
        simulation.compute(GPU, 1.0, after=other)
        timeline = simulation.run()
        assert answers == [False]
        assert timeline.end.tolist() == [2.0, 2.0, 3.0]
        assert timeline.bytes.tolist() == [10.0, 10.0, 0.0]

    def test_an_unknown_task(self, machine):
        with pytest.raises(ProgramError, match="no task 0"):
            Simulation(machine).cancel(0)


class TestBuffers:
    def test_grow_shrink_free(self, machine):
        simulation = Simulation(machine)
        buffer = simulation.allocate(DRAM, 10.0, "kv", name="request 0")
        simulation.at(1.0, lambda: simulation.resize(buffer, 30.0))
        simulation.at(1.0, lambda: simulation.resize(buffer, 40.0))
        simulation.at(2.0, lambda: simulation.resize(buffer, 5.0))
        simulation.at(3.0, lambda: simulation.free(buffer))
        times, by_category = simulation.run().ledger.resident("dram")
        assert times.tolist() == [0, 1, 2, 3]
        assert by_category["kv"].tolist() == [10, 40, 5, 0]
        assert simulation.used(DRAM) == 0.0

    def test_a_reporting_memory_overflows(self, machine):
        simulation = Simulation(machine)
        simulation.at(2.0, lambda: simulation.allocate(DRAM, 60.0, "kv"))
        (shortfall,) = simulation.run().ledger.shortfalls
        assert (shortfall.memory, shortfall.time, shortfall.needed_bytes) == ("dram", 2.0, 60.0)

    def test_a_blocking_memory_refuses(self, machine):
        simulation = Simulation(machine)
        buffer = simulation.allocate(HBM, 90.0, "kv")
        with pytest.raises(MemoryFullError, match="memory 'hbm' has 10 bytes free, not 20"):
            simulation.allocate(HBM, 20.0, "kv")
        with pytest.raises(MemoryFullError):
            simulation.resize(buffer, 101.0)
        assert simulation.used(HBM) == 90.0

    def test_freeing_lets_a_blocked_task_in(self, machine):
        task = machine.compute(GPU, 1.0)
        machine.allocate(HBM, 60.0, "work", at=machine.compute(GPU, 1.0, after=[task]))
        simulation = Simulation(machine)
        buffer = simulation.allocate(HBM, 90.0, "kv")
        simulation.at(4.0, lambda: simulation.free(buffer))
        timeline = simulation.run()
        assert timeline.start.tolist() == [0.0, 4.0]
        assert timeline.critical_path().released_by == ("memory",)
        assert timeline.critical_path().total == 5.0

    def test_a_deadlock_only_shows_when_nobody_can_act_any_more(self, machine):
        machine.allocate(HBM, 60.0, "work", at=machine.compute(GPU, 1.0))
        machine.allocate(HBM, 60.0, "weights")
        simulation = Simulation(machine)
        assert simulation.run(until=9.0).makespan == 0.0
        with pytest.raises(DeadlockError):
            simulation.run()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda s: s.allocate(GPU, 1.0, "kv"), "is not a memory"),
            (lambda s: s.used(LINK), "is not a memory"),
            (lambda s: s.allocate(DRAM, -1.0, "kv"), "size must be finite and not negative"),
            (lambda s: s.free(0), "no buffer 0"),
            (lambda s: s.resize(0, 1.0), "no buffer 0"),
            (lambda s: s.at(-1.0, lambda: None), "cannot be scheduled"),
            (lambda s: s.at(nan, lambda: None), "cannot be scheduled"),
            (lambda s: (s.run(until=3.0), s.run(until=2.0)), "cannot run until 2.0 s at 3.0 s"),
            (lambda s: (s.at(0.0, s.run), s.run()), "running already"),
        ],
    )
    def test_nonsense(self, machine, wrong, message):
        with pytest.raises(ProgramError, match=message):
            wrong(Simulation(machine))


def test_a_simulation_without_a_program_is_a_clock():
    simulation = Simulation()
    called = []
    simulation.at(2.0, lambda: called.append(simulation.now))
    assert simulation.run(until=inf).makespan == 0.0
    assert called == [2.0]


def test_a_process_that_asks_for_room_is_called_back(machine):
    """100 B: 60 are held until 2 s, so 50 wait; 30 behind them would fit and wait too, first come first served."""
    simulation = Simulation(machine)
    held = simulation.allocate(HBM, 60.0, "weights")
    granted = []

    def work(buffer):
        granted.append((buffer, simulation.now))
        simulation.compute(GPU, 1.0, on_end=lambda _: simulation.free(buffer))

    first = simulation.request(HBM, 50.0, "kv", work, name="first")
    second = simulation.request(HBM, 30.0, "kv", work, name="second")
    assert (first.buffer, second.buffer, simulation.used(HBM)) == (None, None, 60.0)
    simulation.at(2.0, lambda: simulation.free(held))
    timeline = simulation.run()
    assert granted == [(1, 2.0), (2, 2.0)]
    assert (first.buffer, second.buffer) == (1, 2)
    times, by_category = timeline.ledger.resident("hbm")
    assert times.tolist() == [0.0, 2.0, 3.0, 4.0]
    assert by_category["kv"].tolist() == [0.0, 80.0, 30.0, 0.0]


def test_room_that_is_free_is_granted_at_once_and_after_the_caller(machine):
    simulation = Simulation(machine)
    calls = []
    for memory in (HBM, DRAM):
        request = simulation.request(memory, 90.0, "kv", calls.append)
        assert (request.buffer is not None, calls) == (True, [])
    simulation.run()
    assert calls == [0, 1]
    # The other memory only reports.
    assert simulation.used(DRAM) == 90.0


def test_tasks_and_requests_wait_in_one_queue(machine):
    """Static work that needs 80 B waits for 50 B held until 1 s; a request behind it waits for its end."""
    held = machine.compute(GPU, 1.0)
    machine.allocate(HBM, 50.0, "a", until=[held])
    needy = machine.transfer([LINK], 20.0)
    machine.allocate(HBM, 80.0, "b", at=needy, until=[needy])
    simulation = Simulation(machine)
    granted = []
    simulation.request(HBM, 40.0, "c", lambda _: granted.append(simulation.now))
    timeline = simulation.run()
    assert (timeline.start[needy], granted) == (1.0, [3.0])


def test_what_a_granted_process_submits_is_on_the_critical_path(machine):
    held = machine.compute(GPU, 1.0)
    machine.allocate(HBM, 100.0, "a", until=[held])
    simulation = Simulation(machine)
    simulation.request(HBM, 10.0, "b", lambda _: simulation.transfer([LINK], 20.0))
    path = simulation.run().critical_path()
    assert (path.tasks.tolist(), path.waits.tolist(), path.total) == ([0, 1], [0.0, 0.0], 3.0)


def test_a_request_is_called_off(machine):
    simulation = Simulation(machine)
    held = simulation.allocate(HBM, 60.0, "a")
    calls = []
    waiting, behind = (
        simulation.request(HBM, size, "b", lambda buffer: calls.append(buffer)) for size in (70.0, 40.0)
    )
    waiting.cancel()
    waiting.cancel()
    # What waited behind it has got its room, but nobody was told so yet.
    assert behind.buffer is not None
    behind.cancel()
    assert simulation.used(HBM) == 60.0
    simulation.free(held)
    kept = simulation.request(HBM, 70.0, "b", lambda buffer: calls.append(buffer))
    simulation.run()
    kept.cancel()
    assert (calls, simulation.used(HBM)) == ([kept.buffer], 70.0)


def test_a_request_that_nothing_can_meet_is_a_deadlock(machine):
    simulation = Simulation(machine)
    simulation.allocate(HBM, 60.0, "a")
    simulation.request(HBM, 70.0, "b", lambda _: None, name="layer 3")
    with pytest.raises(
        DeadlockError, match=r"buffer 'layer 3' needs 70 bytes of memory 'hbm'.*30 bytes short"
    ):
        simulation.run()
    with pytest.raises(ProgramError, match="must be finite and not negative"):
        simulation.request(HBM, -1.0, "b", lambda _: None)


def test_what_is_due_soon_comes_after_what_is_handled(machine):
    simulation = Simulation(machine)
    order = []

    def ended(_):
        simulation.soon(lambda: order.append(("soon", simulation.compute(GPU, 1.0))))
        order.append("now")

    simulation.compute(GPU, 1.0, on_end=ended)
    timeline = simulation.run()
    assert order == ["now", ("soon", 1)]
    assert (timeline.cause[1], timeline.makespan) == (0, 2.0)
