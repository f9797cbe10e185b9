"""Speed and memory of answers: cold command line, training steps, sweeps."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from simulator.analysis import load, run
from simulator.cost import CostModel
from simulator.graph import Matmul
from simulator.specs import Catalog
from simulator.training import simulate

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


def test_event_replay_of_a_70b_step(benchmark) -> None:
    """Llama-3 70B on 8 GPUs, 8 micro-batches, operator by operator with the memory timeline."""
    overrides = {
        "model": "llama3-70b", "workload.global_batch": "8", "workload.sequence": "4096", "strategy.tensor_parallel": "8",
        "strategy.zero_stage": "0", "strategy.overlap_gradient_reduction": "false",
    }  # fmt: skip
    setup = load("training/llama3.1-8b-8xh100", catalog=Catalog(overrides=overrides, environment={}))
    outcome = benchmark.pedantic(lambda: simulate(setup, detail=True), rounds=3)
    assert outcome.timeline.n_tasks > 80 * 8 * 2 * 10
    assert len(outcome.timeline.program.allocations) > 80 * 8 * 5
    assert statistics.median(benchmark.stats.stats.data) < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 300e6


def test_a_hundred_thousand_gpus(benchmark) -> None:
    """Symmetry: 12,496 nodes, 16 stages, 781 replicas of 16 micro-batches."""
    overrides = {
        "hardware.nodes": "12496", "workload.global_batch": "12496", "strategy.tensor_parallel": "8",
        "strategy.pipeline_parallel": "16", "strategy.data_parallel": "781", "strategy.overlap_gradient_reduction": "true",
    }  # fmt: skip
    catalog = Catalog(overrides=overrides, environment={})
    result = benchmark.pedantic(lambda: run("training/llama3.1-8b-8xh100", catalog=catalog), rounds=3)
    assert result.outcome.devices > 99_000
    assert statistics.median(benchmark.stats.stats.data) < 1.0


def test_products_priced_at_once(benchmark) -> None:
    """A sweep of 100,000 products through the cost model."""
    catalog = Catalog(environment={})
    device = catalog.processor("h100-sxm")
    cost = CostModel(device, catalog.calibration(device))
    m = np.random.default_rng(0).integers(1, 16384, 100_000).astype(float)
    benchmark(lambda: cost.price(Matmul(m, 4096, 8192)))
    assert statistics.median(benchmark.stats.stats.data) < 0.5
