"""Small programs whose timelines can be worked out by hand."""

import gc

import numpy as np
import pytest

from simulator.engine import Program, execute


def intervals(timeline):
    return list(zip(timeline.start.tolist(), timeline.end.tolist(), strict=True))


def test_a_stream_keeps_program_order_even_if_a_later_task_is_ready_first():
    program = Program()
    gpu, other = program.stream("gpu"), program.stream("other")
    slow = program.compute(other, 5.0)
    program.compute(gpu, 1.0, after=[slow])
    program.compute(gpu, 1.0)
    assert intervals(execute(program)) == [(0, 5), (5, 6), (6, 7)]


def test_a_barrier_waits_for_the_last():
    program = Program()
    streams = [program.stream(name) for name in "abc"]
    tasks = [
        program.compute(stream, duration) for stream, duration in zip(streams, (1.0, 4.0, 2.0), strict=True)
    ]
    barrier = program.barrier(after=tasks)
    program.compute(streams[0], 1.0, after=[barrier])
    assert intervals(execute(program))[3:] == [(4, 4), (4, 5)]


def test_two_transfers_share_a_link():
    """100 B/s: both at 50 until the smaller (100 B) is done at 2 s; the larger has 100 of 200 B left: 3 s."""
    program = Program()
    link = program.link("link", 100.0)
    program.transfer([link], 100.0)
    program.transfer([link], 200.0)
    timeline = execute(program)
    assert timeline.end.tolist() == [2.0, 3.0]
    assert timeline.busy() == {"link": 3.0}
    assert timeline.moved() == {"link": 300.0}


def test_a_late_transfer_slows_the_first():
    """Alone for 1 s (100 B), then 50 B/s each: the first has 100 B left at 1 s; both end at 3 s."""
    program = Program()
    link, gpu = program.link("link", 100.0), program.stream("gpu")
    wait = program.compute(gpu, 1.0)
    program.transfer([link], 200.0)
    program.transfer([link], 100.0, after=[wait])
    assert intervals(execute(program))[1:] == [(0, 3), (1, 3)]


def test_max_min_over_two_links():
    """Links of 10 and 4 B/s; one transfer crosses both and gets 2, so 8 are left on the first link."""
    program = Program()
    wide, narrow = program.link("wide", 10.0), program.link("narrow", 4.0)
    program.transfer([wide], 8.0)
    program.transfer([wide, narrow], 2.0)
    program.transfer([narrow], 2.0)
    timeline = execute(program, record_rates=True)
    assert timeline.end.tolist() == [1.0, 1.0, 1.0]
    final = dict(zip(timeline.rates.task.tolist(), timeline.rates.rate.tolist(), strict=True))
    assert final == {0: 8.0, 1: 2.0, 2: 2.0}


def test_a_rate_limit_leaves_its_share_to_others():
    program = Program()
    link = program.link("link", 10.0)
    program.transfer([link], 4.0, max_rate=2.0)
    program.transfer([link], 16.0)
    assert execute(program).end.tolist() == [2.0, 2.0]


def test_what_remains_speeds_up_when_a_limited_transfer_leaves_and_returns():
    """16 B/s: limited to 4 the first ends at 1 s; the other moves 12 B, then 16 B/s: 28 B end at 2 s."""
    program = Program()
    link = program.link("link", 16.0)
    program.transfer([link], 4.0, max_rate=4.0)
    program.transfer([link], 28.0)
    assert execute(program).end.tolist() == [1.0, 2.0]


def test_latency_takes_no_bandwidth():
    """The first has 100 B/s for 1 s, while the other waits out its latency; then the other has them."""
    program = Program()
    link = program.link("link", 100.0)
    program.transfer([link], 100.0)
    program.transfer([link], 100.0, latency=1.0)
    assert intervals(execute(program)) == [(0, 1), (0, 2)]


def test_nothing_to_move_takes_the_latency():
    program = Program()
    link = program.link("link", 1.0)
    program.transfer([link], 0.0, latency=0.25)
    program.transfer([link], 0.0)
    assert execute(program).end.tolist() == [0.25, 0.0]


def test_a_path_without_links_is_held_up_by_its_own_limit_alone():
    program = Program()
    program.transfer([], 10.0)
    program.transfer([], 10.0, max_rate=5.0, latency=1.0)
    timeline = execute(program)
    assert timeline.end.tolist() == [0.0, 3.0]
    assert timeline.resource.tolist() == [-1, -1]


def test_transfers_on_a_stream_go_one_after_the_other():
    program = Program()
    link, queue = program.link("link", 10.0), program.stream("dma")
    program.transfer([link], 10.0, stream=queue, latency=0.5)
    program.transfer([link], 10.0, stream=queue)
    timeline = execute(program)
    assert intervals(timeline) == [(0, 1.5), (1.5, 2.5)]
    assert timeline.busy() == {"link": 2.0, "dma": 2.5}


@pytest.mark.parametrize("n_stages", [1, 2, 4])
@pytest.mark.parametrize("n_micro_batches", [1, 4, 8])
def test_gpipe_bubble(n_stages, n_micro_batches):
    """Huang et al. 2019 (GPipe), section 2.3: p stages and m micro-batches take m + p - 1 slots each way."""
    program = Program()
    stages = [program.stream(f"stage{index}") for index in range(n_stages)]
    done = {}
    for micro in range(n_micro_batches):
        for stage in range(n_stages):
            after = [done[stage - 1, micro]] if stage else []
            done[stage, micro] = program.compute(stages[stage], 1.0, after=after)
    back = {}
    for micro in range(n_micro_batches):
        for stage in reversed(range(n_stages)):
            after = [back[stage + 1, micro] if stage + 1 < n_stages else done[stage, micro]]
            back[stage, micro] = program.compute(stages[stage], 2.0, after=after)
    assert execute(program).makespan == 3.0 * (n_micro_batches + n_stages - 1)


def test_double_buffering_hides_the_shorter_of_copy_and_compute():
    """Layers of 1 s copy and 3 s compute: the first copy is exposed, then compute follows compute."""
    program = Program()
    gpu, dma, bus = program.stream("gpu"), program.stream("dma"), program.link("bus", 10.0)
    computed = []
    for layer in range(4):
        after = [computed[layer - 2]] if layer >= 2 else []
        copied = program.transfer([bus], 10.0, stream=dma, after=after)
        computed.append(program.compute(gpu, 3.0, after=[copied]))
    assert execute(program).makespan == 1.0 + 4 * 3.0


def test_tiny_rests_of_bytes_come_to_an_end():
    """Seven transfers of sizes that differ in the last digit, at a time that cannot resolve their ends."""
    program = Program()
    gpu, link = program.stream("gpu"), program.link("link", 1e12)
    late = program.compute(gpu, 1e9)
    for index in range(7):
        program.transfer([link], 1.0 + index * 1e-16, after=[late], max_rate=3e11 if index % 2 else 1e13)
    timeline = execute(program)
    assert timeline.makespan == pytest.approx(1e9)
    assert timeline.moved()["link"] == pytest.approx(7.0)


def test_small_transfers_keep_their_precision_beside_a_huge_one():
    """100 copies of 1 B share 1 B/s with one of 1e9 B: each takes 2 s, however much has passed."""
    program = Program()
    dma, link = program.stream("dma"), program.link("link", 1.0)
    program.transfer([link], 1e9)
    gap = program.compute(dma, 1e8)
    for _ in range(100):
        gap = program.transfer([link], 1.0, stream=dma, after=[gap])
    timeline = execute(program)
    assert np.diff(timeline.end[2:]) == pytest.approx(np.full(99, 2.0), abs=1e-7)
    assert timeline.makespan == pytest.approx(1e9 + 100)


def test_collection_of_garbage_is_left_as_it_was():
    program = Program()
    execute(program)
    assert gc.isenabled()
    gc.disable()
    try:
        execute(program)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_program_is_not_used_up():
    program = Program()
    gpu, memory = program.stream("gpu"), program.memory("hbm", 10.0, on_full="block")
    for _ in range(3):
        task = program.compute(gpu, 1.0)
        program.allocate(memory, 10.0, "work", at=task, until=[task])
    first, second = execute(program), execute(program)
    assert first.end.tolist() == second.end.tolist() == [1.0, 2.0, 3.0]
