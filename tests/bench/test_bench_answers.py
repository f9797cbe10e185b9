"""Speed and memory of answers: cold command line, training steps, sweeps."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from simulator.analysis import run
from simulator.cost import CostModel
from simulator.graph import Matmul
from simulator.specs import Catalog

MEMROOF = Path(sys.executable).with_name("memroof")


def test_cold_answer_takes_less_than_half_a_second(benchmark) -> None:
    """Whole process, median of nine."""

    def once() -> None:
        subprocess.run([MEMROOF, "run", "training/gpt3-175b-64xa100"], check=True, capture_output=True)

    benchmark.pedantic(once, rounds=9, warmup_rounds=1)
    assert statistics.median(benchmark.stats.stats.data) < 0.5


def test_cold_answer_stays_below_150_megabytes(benchmark) -> None:
    """Peak resident memory of the process."""
    command = [MEMROOF, "run", "training/gpt3-175b-64xa100"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 150e6


def test_largest_published_step(benchmark) -> None:
    """1T on 512 GPUs: 64 stages, 512 micro-batches, 131,000 tasks."""
    catalog = Catalog(environment={})
    benchmark.pedantic(lambda: run("published/korthikanti2022/1t-full", catalog=catalog), rounds=3)
    assert statistics.median(benchmark.stats.stats.data) < 1.5


def test_products_priced_at_once(benchmark) -> None:
    """A sweep of 100,000 products through the cost model."""
    catalog = Catalog(environment={})
    device = catalog.processor("h100-sxm")
    cost = CostModel(device, catalog.calibration(device))
    m = np.random.default_rng(0).integers(1, 16384, 100_000).astype(float)
    benchmark(lambda: cost.price(Matmul(m, 4096, 8192)))
    assert statistics.median(benchmark.stats.stats.data) < 0.5
