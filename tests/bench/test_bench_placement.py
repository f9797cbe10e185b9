"""Speed of placements by linear program."""

from simulator.analysis import load
from simulator.offload.placement import place
from simulator.offload.zigzag.optimise import choose
from simulator.offload.zigzag.problem import build_problem


def test_the_program_of_a_block_is_solved_in_half_a_second(benchmark) -> None:
    """Pricing of the layers included, the import of scipy not: it is warm."""
    setup = load("offload/opt-30b-t4-optimal")
    place(build_problem(setup, {}))
    benchmark.pedantic(lambda: place(build_problem(setup, {})), rounds=9, warmup_rounds=1)
    assert benchmark.stats.stats.median < 0.5


def test_a_grid_of_sixteen_blocks_takes_two_seconds(benchmark) -> None:
    """Each block priced and placed."""
    setup = load("offload/opt-30b-t4-optimal")
    benchmark.pedantic(lambda: choose(setup), rounds=3, warmup_rounds=1)
    assert benchmark.stats.stats.median < 2.0
