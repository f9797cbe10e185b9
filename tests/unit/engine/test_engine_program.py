"""What a program refuses, and what it keeps."""

from math import inf, nan

import pytest

from simulator.engine import EngineError, Program, ProgramError, execute


@pytest.fixture
def program():
    program = Program("example")
    program.stream("gpu")
    program.link("pcie", 25e9)
    program.memory("hbm", 80e9)
    return program


GPU, PCIE, HBM = 0, 1, 2


def test_handles_are_consecutive_and_tasks_are_numbered(program):
    assert [program.handle(name) for name in ("gpu", "pcie", "hbm")] == [GPU, PCIE, HBM]
    assert [program.compute(GPU, 1.0), program.transfer([PCIE], 1.0), program.barrier(after=[0, 1])] == [
        0,
        1,
        2,
    ]
    assert program.n_tasks == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: p.stream("pcie"), "resource name 'pcie' is used twice"),
        (lambda p: p.handle("nvlink"), "no resource 'nvlink'"),
        (lambda p: p.link("nvlink", 0.0), "bandwidth must be positive"),
        (lambda p: p.link("nvlink", inf), "bandwidth must be positive and finite"),
        (lambda p: p.memory("dram", -1.0), "capacity must not be negative"),
        (lambda p: p.memory("dram", nan), "capacity must not be negative"),
        (lambda p: p.memory("dram", 1.0, on_full="crash"), "on_full must be 'report' or 'block'"),
        (lambda p: p.compute(PCIE, 1.0, name="mm"), "task 'mm': link 'pcie' is not a stream"),
        (lambda p: p.compute(GPU, -1.0), "duration must be finite and not negative"),
        (lambda p: p.compute(GPU, nan), "duration must be finite"),
        (lambda p: p.compute(GPU, 1.0, after=[0]), "task 0 '' depends on task 0, which does not exist yet"),
        (lambda p: p.compute(GPU, 1.0, after=[-1]), "does not exist yet"),
        (lambda p: p.transfer([GPU], 1.0), "stream 'gpu' is not a link"),
        (lambda p: p.transfer([7], 1.0), "handle 7 is not a link"),
        (lambda p: p.transfer([PCIE, PCIE], 1.0), "crosses a link twice"),
        (lambda p: p.transfer([PCIE], -1.0), "size must be finite and not negative"),
        (lambda p: p.transfer([PCIE], 1.0, latency=-1.0), "latency must be finite"),
        (lambda p: p.transfer([PCIE], 1.0, max_rate=0.0), "max_rate must be positive"),
        (lambda p: p.transfer([PCIE], 1.0, stream=HBM), "memory 'hbm' is not a stream"),
        (lambda p: p.allocate(GPU, 1.0, "weights", name="w"), "allocation 'w': stream 'gpu' is not a memory"),
        (lambda p: p.allocate(HBM, inf, "weights"), "size must be finite"),
        (lambda p: p.allocate(HBM, 1.0, "weights", at=3), "there is no task 3"),
        (lambda p: p.allocate(HBM, 1.0, "weights", until=[0]), "there is no task 0"),
    ],
)
def test_nonsense_is_refused_by_name(program, wrong, message):
    with pytest.raises(ProgramError, match=message) as caught:
        wrong(program)
    assert isinstance(caught.value, EngineError)
    assert isinstance(caught.value, ValueError)
    # What was refused has left no trace: the program still runs.
    program.compute(GPU, 1.0)
    assert execute(program).makespan == 1.0


def test_a_copy_grows_on_its_own(program):
    program.compute(GPU, 1.0)
    program.allocate(HBM, 5.0, "weights")
    twin = program.copy()
    twin.compute(GPU, 1.0)
    twin.allocate(HBM, 7.0, "weights")
    assert execute(program).makespan == 1.0
    assert execute(program).ledger.peak("hbm").bytes == 5.0
    assert execute(twin).makespan == 2.0
    assert execute(twin).ledger.peak("hbm").bytes == 12.0


def test_an_empty_program_takes_no_time(program):
    timeline = execute(program)
    assert timeline.makespan == 0.0
    assert timeline.critical_path().total == 0.0
    assert timeline.busy() == {"gpu": 0.0, "pcie": 0.0}
    assert timeline.ledger.peak("hbm").bytes == 0.0
    assert len(timeline.to_frame()) == 0
