"""Links that slow each other while both are in use."""

from math import inf

import numpy as np
import pytest

from simulator.engine import Program, ProgramError, Simulation, execute


def phone(compute=1.0, load=1.0):
    """Return a program, its compute stream and device (1 s of work a second), and its flash of 10 B/s."""
    program = Program()
    stream, device, flash = program.stream("cpu"), program.link("soc", 1.0), program.link("flash", 10.0)
    if compute > 1.0:
        program.slow(device, flash, compute)
    if load > 1.0:
        program.slow(flash, device, load)
    return program, stream, device, flash


def test_computing_beside_loading_as_llmcad_measured_it():
    """Xu et al. 2023, *LLMCad*: computing 2.25 times slower beside a load, which is 1.07 times slower itself."""
    program, stream, device, flash = phone(2.25, 1.07)
    work = program.transfer([device], 4.0, max_rate=1.0, stream=stream)
    load = program.transfer([flash], 10.0)
    timeline = execute(program)
    assert timeline.end[load] == pytest.approx(1.07)
    # In 1.07 s it gets 1.07 / 2.25 s done; the rest goes undisturbed.
    assert timeline.end[work] == pytest.approx(1.07 + 4.0 - 1.07 / 2.25)


def test_a_slowdown_begins_and_ends_with_the_other():
    """Work of 4 s; a load of 1 s alone begins at 1 s, and another, under its latency until 3 s, at 2 s."""
    program, stream, device, flash = phone(2.0, 1.0)
    work = program.transfer([device], 4.0, max_rate=1.0, stream=stream)
    simulation = Simulation(program, record_rates=True)
    simulation.at(1.0, lambda: simulation.transfer([flash], 10.0))
    simulation.at(2.0, lambda: simulation.transfer([flash], 5.0, latency=1.0))
    timeline = simulation.run()
    mine = timeline.rates.task == work
    assert timeline.rates.time[mine].tolist() == [0.0, 1.0, 2.0, 3.0, 3.5]
    assert timeline.rates.rate[mine].tolist() == [1.0, 0.5, 1.0, 0.5, 1.0]
    assert timeline.end[work] == 4.0 + 0.5 + 0.25


def test_factors_multiply_and_a_limit_below_feels_nothing():
    program, _, device, flash = phone(2.0, 1.0)
    radio = program.link("radio", 1.0)
    program.slow(device, radio, 3.0)
    program.transfer([radio], 10.0)
    program.transfer([flash], 100.0)
    fast = program.transfer([device], 1.0)
    assert execute(program).end[fast] == pytest.approx(6.0)
    limited, _, device, flash = phone(2.0, 1.0)
    limited.transfer([flash], 100.0)
    slow = limited.transfer([device], 1.0, max_rate=0.5)
    assert execute(limited).end[slow] == 2.0


def test_cancelling_what_slows_ends_the_slowdown():
    program, _, device, flash = phone(2.0, 1.0)
    load = program.transfer([flash], 100.0)
    work = program.transfer([device], 2.0)
    simulation = Simulation(program)
    simulation.at(2.0, lambda: simulation.cancel(load))
    assert simulation.run().end[work] == 3.0


def test_sharing_a_slowed_link_stays_fair():
    """Two flows of a link of 10 B/s at half its bandwidth; the third path crosses it and another."""
    program = Program()
    a, b, by = program.link("a", 10.0), program.link("b", 4.0), program.link("by", 1.0)
    program.slow(a, by, 2.0)
    program.transfer([by], 100.0)
    one, other = program.transfer([a], 30.0), program.transfer([a, b], 20.0)
    timeline = execute(program)
    assert (timeline.end[other], timeline.end[one]) == (8.0, 10.0)


def test_an_idle_slower_changes_nothing():
    runs = []
    for slowed in (False, True):
        program, stream, device, flash = phone(2.0 if slowed else 1.0)
        spare = program.link("spare", 1.0)
        program.slow(flash, spare, 3.0)
        last = []
        for index in range(10):
            last = [program.transfer([device], 0.1 * index, stream=stream, after=last)]
            last = [program.transfer([flash], 0.7 * index, after=last)]
        runs.append(execute(program))
    np.testing.assert_array_equal(runs[0].end, runs[1].end)


@pytest.mark.parametrize(
    ("victim", "by", "factor", "message"),
    [
        (0, 1, 2.0, "stream 'cpu' is not a link"),
        (1, 9, 2.0, "handle 9 is not a link"),
        (1, 1, 2.0, "cannot slow itself"),
        (2, 1, 0.5, "at least 1"),
        (2, 1, inf, "at least 1"),
        (1, 2, 2.0, "already"),
    ],
)
def test_bad_slowdowns_are_refused(victim, by, factor, message):
    program, *_ = phone(2.0)
    with pytest.raises(ProgramError, match=message):
        program.slow(victim, by, factor)
