"""Speed of schedule tables."""

import statistics

import pytest

from simulator.training.schedules import SCHEDULES
from simulator.training.schedules.kinds import _built


@pytest.mark.parametrize("name", SCHEDULES)
def test_many_stages_and_micro_batches(benchmark, name: str) -> None:
    """128 stages, 1,024 micro-batches, built anew each time."""
    chunks = SCHEDULES[name].chunks or 2

    def build() -> None:
        _built.cache_clear()
        _built(name, 128, 1024, chunks, False)

    benchmark.pedantic(build, rounds=3)
    assert statistics.median(benchmark.stats.stats.data) < 1.0
