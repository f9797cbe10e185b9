"""Speed of the engine on a million tasks: chains that alternate compute and transfers over shared links."""

from simulator.engine import Program, Timeline, execute

N_TASKS = 1_000_000
N_STREAMS, N_LINKS = 64, 16


def chains_and_links(n_tasks: int) -> Program:
    """64 chains, alternating compute and transfers on 16 links; each tenth step also needs a neighbour."""
    program = Program("chains and links")
    streams = [program.stream(f"gpu{index}") for index in range(N_STREAMS)]
    links = [program.link(f"link{index}", 25e9) for index in range(N_LINKS)]
    last = [-1] * N_STREAMS
    for step in range(n_tasks // (2 * N_STREAMS)):
        for chain in range(N_STREAMS):
            after = [last[chain]] if step else []
            if step % 10 == chain % 10 and step:
                after.append(last[chain - 1])
            done = program.compute(
                streams[chain],
                1e-3 + 1e-6 * ((step * 7919 + chain * 104729) % 997),
                after=after,
                tag="compute",
            )
            last[chain] = program.transfer([links[chain % N_LINKS]], 4e6, after=[done], tag="copy")
    return program


def test_a_million_tasks(benchmark):
    program = chains_and_links(N_TASKS)
    timeline: Timeline = benchmark.pedantic(execute, args=(program,), rounds=3)
    rate = program.n_tasks / benchmark.stats.stats.min
    benchmark.extra_info["tasks_per_second"] = round(rate)
    assert timeline.n_tasks == program.n_tasks
    assert rate >= 300_000


def test_building_a_million_tasks(benchmark):
    program = benchmark.pedantic(chains_and_links, args=(N_TASKS,), rounds=1)
    assert program.n_tasks > 0.99 * N_TASKS


def test_a_small_program_is_cheap(benchmark):
    program = chains_and_links(3_000)
    benchmark(execute, program)
    assert benchmark.stats.stats.min < 15e-3
