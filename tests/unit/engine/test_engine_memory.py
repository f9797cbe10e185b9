"""The memory ledger, and memories that hold tasks back."""

import pytest

from simulator.engine import DeadlockError, Program, ProgramError, execute


def test_peak_with_its_moment_categories_and_holders():
    program = Program()
    gpu, hbm = program.stream("gpu"), program.memory("hbm", 100.0)
    forward = [program.compute(gpu, 1.0) for _ in range(3)]
    backward = [program.compute(gpu, 2.0) for _ in range(3)]
    program.allocate(hbm, 10.0, "weights", name="weights")
    for layer in range(3):
        name = f"layer{layer}"
        program.allocate(hbm, 20.0, "activations", at=forward[layer], until=[backward[2 - layer]], name=name)
    program.allocate(hbm, 5.0, "workspace", at=backward[0], until=[backward[0]], name="workspace")
    ledger = execute(program).ledger
    peak = ledger.peak("hbm")
    assert (peak.memory, peak.time, peak.bytes) == ("hbm", 3.0, 75.0)
    assert list(peak.by_category.items()) == [("activations", 60.0), ("weights", 10.0), ("workspace", 5.0)]
    assert [name for name, _ in peak.holders] == ["layer0", "layer1", "layer2", "weights", "workspace"]
    times, by_category = ledger.resident(hbm)
    assert times.tolist() == [0, 1, 2, 3, 5, 7, 9]
    assert by_category["activations"].tolist() == [20, 40, 60, 60, 40, 20, 0]
    assert by_category["weights"].tolist() == [10] * 7
    assert ledger.shortfalls == ()


def test_what_ends_makes_room_for_what_starts():
    """Two buffers of 60 B that follow on each other never overlap; one of no duration takes no room."""
    program = Program()
    gpu, hbm = program.stream("gpu"), program.memory("hbm", 100.0)
    for duration in (1.0, 1.0, 0.0):
        task = program.compute(gpu, duration)
        program.allocate(hbm, 60.0, "work", at=task, until=[task])
    assert execute(program).ledger.peak("hbm").bytes == 60.0


def test_a_buffer_lives_until_its_last_holder_has_ended():
    program = Program()
    a, b, hbm = program.stream("a"), program.stream("b"), program.memory("hbm", 100.0)
    holders = [program.compute(a, 1.0), program.compute(b, 4.0), program.compute(a, 1.0)]
    program.allocate(hbm, 8.0, "shared", until=holders)
    times, by_category = execute(program).ledger.resident("hbm")
    assert times.tolist() == [0.0, 4.0]
    assert by_category["shared"].tolist() == [8.0, 0.0]


def test_a_shortfall_is_reported_and_the_run_goes_on():
    program = Program()
    gpu, hbm = program.stream("gpu"), program.memory("hbm", 100.0)
    program.memory("dram", 1e3)
    for _ in range(3):
        program.allocate(hbm, 45.0, "kv", at=program.compute(gpu, 1.0))
    timeline = execute(program)
    assert timeline.makespan == 3.0
    (shortfall,) = timeline.ledger.shortfalls
    assert (shortfall.memory, shortfall.time, shortfall.needed_bytes, shortfall.capacity) == (
        "hbm",
        2,
        135,
        100,
    )


def test_unknown_memory():
    program = Program()
    program.memory("hbm", 1.0)
    with pytest.raises(ProgramError, match="no memory 'hmb'; there are 'hbm'"):
        execute(program).ledger.peak("hmb")


def test_blocked_tasks_are_let_in_in_order_of_arrival():
    """10 B: a (6 B, 3 s) runs; b (8 B) waits; c (2 B) would fit but came later; both start at 3 s."""
    program = Program()
    streams = [program.stream(name) for name in "abc"]
    memory = program.memory("hbm", 10.0, on_full="block")
    for stream, size, duration in zip(streams, (6.0, 8.0, 2.0), (3.0, 1.0, 1.0), strict=True):
        task = program.compute(stream, duration)
        program.allocate(memory, size, "work", at=task, until=[task])
    timeline = execute(program)
    assert timeline.start.tolist() == [0.0, 3.0, 3.0]
    assert timeline.cause.tolist() == [-1, 0, 0]
    assert timeline.after_memory.tolist() == [False, True, True]
    assert timeline.ledger.peak("hbm").bytes == 10.0
    path = timeline.critical_path()
    assert (path.tasks.tolist(), path.released_by, path.total) == ([0, 1], ("start", "memory"), 4.0)


def test_a_task_that_needs_two_memories_waits_for_both():
    program = Program()
    a, b, c = (program.stream(name) for name in "abc")
    hbm, dram = program.memory("hbm", 10.0, on_full="block"), program.memory("dram", 10.0, on_full="block")
    first, second = program.compute(a, 1.0), program.compute(b, 2.0)
    program.allocate(hbm, 10.0, "work", at=first, until=[first])
    program.allocate(dram, 10.0, "work", at=second, until=[second])
    both = program.compute(c, 1.0)
    for memory in (hbm, dram):
        program.allocate(memory, 5.0, "work", at=both, until=[both])
    after = program.compute(a, 1.0)
    program.allocate(hbm, 5.0, "work", at=after, until=[after])
    assert execute(program).start.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_the_lower_priority_number_takes_the_room_first():
    program = Program()
    gpu, low, high = program.stream("gpu"), program.stream("low"), program.stream("high")
    memory = program.memory("hbm", 10.0, on_full="block")
    first = program.compute(gpu, 1.0)
    for stream, priority in ((low, 5), (high, 1)):
        task = program.compute(stream, 1.0, after=[first], priority=priority)
        program.allocate(memory, 10.0, "work", at=task, until=[task])
    assert execute(program).start.tolist() == [0.0, 2.0, 1.0]


def test_prefetch_is_throttled_by_memory():
    """Copies of 1 s into room for two layers, computes of 3 s: the third copy waits for the first compute."""
    program = Program()
    gpu, dma, bus = program.stream("gpu"), program.stream("dma"), program.link("bus", 10.0)
    memory = program.memory("hbm", 20.0, on_full="block")
    for _ in range(4):
        copied = program.transfer([bus], 10.0, stream=dma)
        computed = program.compute(gpu, 3.0, after=[copied])
        program.allocate(memory, 10.0, "weights", at=copied, until=[computed])
    timeline = execute(program)
    assert timeline.start[::2].tolist() == [0.0, 1.0, 4.0, 7.0]
    assert timeline.makespan == 13.0


def test_a_deadlock_names_task_memory_and_bytes():
    program = Program()
    gpu, memory = program.stream("gpu"), program.memory("hbm", 100.0, on_full="block")
    program.allocate(memory, 60.0, "weights")
    task = program.compute(gpu, 1.0, name="attention")
    program.allocate(memory, 70.0, "kv", at=task)
    with pytest.raises(
        DeadlockError, match=r"task 0 'attention' needs 70 .*'hbm'.* 30 bytes short"
    ) as caught:
        execute(program)
    error = caught.value
    assert (error.task, error.memory, error.short_bytes) == (0, "hbm", 30.0)


def test_what_does_not_fit_at_time_zero_is_a_deadlock():
    program = Program()
    program.allocate(program.memory("hbm", 100.0, on_full="block"), 160.0, "weights")
    with pytest.raises(DeadlockError, match="resident from time 0 need 160: 60 bytes short") as caught:
        execute(program)
    assert caught.value.task is None


def test_a_buffer_whose_holders_ended_before_it_begins_takes_no_room():
    program = Program()
    gpu, memory = program.stream("gpu"), program.memory("hbm", 10.0, on_full="block")
    first, second, third = (program.compute(gpu, 1.0) for _ in range(3))
    program.allocate(memory, 10.0, "stale", at=second, until=[first])
    program.allocate(memory, 10.0, "work", at=third, until=[third])
    timeline = execute(program)
    assert timeline.makespan == 3.0
    assert timeline.ledger.peak("hbm").by_category == {"work": 10.0}
