"""A backend that needs no PyTorch: its times are those of a cost model, or of any function of a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from simulator.cost import CostModel
from simulator.measure import Case, Facts, Grid, Timing, UnmeasurableError, work
from simulator.measure.campaign import Target
from simulator.specs import Catalog
from simulator.specs.scenario_base import HardwareChoice

TINY = Grid(
    rows=(1, 16, 256), weights=((1024, 1024), (4096, 1024)), heads=((8, 2, 64), (8, 8, 64)), prefill=((1, 256), (2, 128)),
    decode=((1, 512), (4, 128)), attention_formats=("bf16",), streams=((1, 1024), (256, 1024)), stream_formats=("bf16",),
    copies=(4096, 1 << 20), messages=(1024, 1 << 20), models=("llama3.2-1b", "qwen2.5-0.5b"), step_format="bf16",
    training=((1, 64),), loops=((1, 64),), tokens=4,
)  # fmt: skip
GPU = Target(("bf16", "fp8"), 16e9, gpus=4)
DEVICE = """\
kind: gpu
name: toy-gpu
vendor: none
architecture: toy
source: made up for these tests
compute:
  matrix: {bf16: 400 TFLOP/s, fp8: 800 TFLOP/s}
  vector: {fp32: 20 TFLOP/s}
  units: 100
  clock: 1.5 GHz
memory:
  hbm: {technology: HBM, capacity: 16 GiB, bandwidth: 2 TB/s}
cache:
  l2: {capacity: 40 MiB}
power: {limit: 300 W}
host_link: pcie-4.0-x16
fabric: nvlink-4
"""


class Clock:
    """Seconds that pass only when something is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeBackend:
    """Takes as long as it is allowed to and returns the times of a function; spans of refused cases raise."""

    def __init__(
        self, seconds: Callable[[Case], float], clock: Clock | None = None, refuse: str = "none"
    ) -> None:
        self.seconds, self.clock, self.refuse = seconds, clock or Clock(), refuse
        self.limits: list[tuple[Case, float]] = []

    def measure(self, case: Case, seconds: float) -> Timing:
        if self.refuse in case.label:
            raise UnmeasurableError(f"no kernel for {self.refuse}")
        self.limits.append((case, seconds))
        self.clock.now += max(seconds, 3.0 * self.seconds(case))
        time = self.seconds(case)
        peaks = (2e9, 3e9) if case.group == "training" else (None, None)
        return Timing((1.02 * time, 0.98 * time, time), "fake", *peaks)

    def measure_ranks(self, cases: Sequence[Case], seconds: float) -> Sequence[Timing | str]:
        if self.refuse == "ranks":
            raise UnmeasurableError("a rank ended early")
        assert len({case.sizes["ranks"] for case in cases}) == 1
        self.clock.now += seconds
        return [
            Timing((self.seconds(case),) * 3) if case.sizes["kind"] != "all-to-all" else "no all-to-all"
            for case in cases
        ]


def facts(**changes: object) -> Facts:
    return replace(Facts("toy-gpu", "Toy GPU", "cuda", GPU, {"PyTorch": "none"}), **changes)  # type: ignore[arg-type]


def priced(cost: CostModel, catalog: Catalog) -> Callable[[Case], float]:
    """Return the time of a case by a cost model, with noise of 1 % that depends on the case alone."""

    def seconds(case: Case) -> float:
        sizes = case.sizes
        noise = 1.0 + 0.01 * np.sin(
            float(len(case.label) + sum(v for v in sizes.values() if isinstance(v, int)))
        )
        if case.operator == "transfer":
            link = catalog.link("pcie-4.0-x16")
            return float(cost.transfer(sizes["size"], link.bandwidth, link.latency).time) * noise
        if case.operator in ("training-step", "decode-loop"):
            return 0.01
        span = None
        if case.operator == "collective":
            span = catalog.hardware(HardwareChoice(device="toy-gpu", count=sizes["gpus"])).span(
                sizes["ranks"]
            )
        return float(cost.price(work(case.operator, case.format, sizes), span).time) * noise

    return seconds
