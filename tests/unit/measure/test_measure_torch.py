"""The PyTorch backend on a CPU, where PyTorch is installed: every operator runs, and its times are plausible."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_backend import TINY

from simulator.measure import (
    MEASUREMENTS,
    Campaign,
    Case,
    Skipped,
    UnmeasurableError,
    plan,
    read_rows,
    run_campaign,
    write_record,
)
from simulator.measure.campaign import Target, Value
from simulator.specs import Catalog

torch = pytest.importorskip("torch")
CATALOG = Catalog(environment={})
GRID = replace(
    TINY, attention_formats=("fp32",), stream_formats=("fp32",), models=("qwen2.5-0.5b",), step_format="fp32", vocabulary=512,
    training=((1, 8),), loops=((1, 8),),
)  # fmt: skip


@pytest.fixture(scope="module")
def backend() -> Any:
    from simulator.measure.backend_torch import TorchBackend

    # one thread does not wait for others that a busy machine has put aside
    torch.set_num_threads(1)
    return TorchBackend("cpu", CATALOG)


def test_every_group_is_measured_and_recorded(backend: Any, tmp_path: Path) -> None:
    found = backend.facts()
    assert found.kind == "cpu"
    assert "fp32" in found.target.formats
    assert found.target.memory > 1e8
    cases = plan(GRID, replace(found.target, formats=("fp32",)), CATALOG)
    measured, skipped = [], []
    for case in cases:
        try:
            measured.append((case, backend.measure(case, 0.01)))
        except UnmeasurableError as error:
            skipped.append(Skipped(case, str(error)))
    assert {(skip.case.operator, skip.reason) for skip in skipped} == {
        ("transfer", "there is no link between host and device")
    }
    rows = write_record(tmp_path, Campaign(tuple(measured), tuple(skipped), 1.0), found, "", "2026-01-02")
    assert read_rows(tmp_path / MEASUREMENTS) == rows
    operators = {"matmul", "attention", "decode-attention", "elementwise", "training-step", "decode-loop"}
    assert {row.operator for row in rows} == operators
    assert all(0.0 < row.min_s <= row.time_s < 60.0 and row.repeats >= 3 for row in rows)
    step = next(row for row in rows if row.operator == "training-step")
    # weights, gradients and two moments in fp32 of 4 layers of 15 million weights
    assert step.peak_allocated is not None and step.peak_allocated > 0.9e9


def test_a_campaign_keeps_its_time(backend: Any) -> None:
    cases = plan(GRID, Target(("fp32",), 1e9), CATALOG, only=["elementwise"])
    begin = time.monotonic()
    done = run_campaign(cases, backend, 1e9, 1.0)
    assert done.measured
    assert time.monotonic() - begin < 10.0


def test_a_larger_product_takes_longer(backend: Any) -> None:
    def seconds(edge: int) -> float:
        shape: tuple[tuple[str, Value], ...] = (("m", edge), ("n", edge), ("k", edge))
        return float(min(backend.measure(Case("gemm", "matmul", "fp32", shape, 0.0, 0.0, 0.0), 0.1).times))

    assert seconds(1024) > 5.0 * seconds(128)


def test_what_pytorch_refuses_is_said_in_its_words(backend: Any) -> None:
    shape: tuple[tuple[str, Value], ...] = (("m", 32), ("n", 32), ("k", 1 << 50))
    with pytest.raises(UnmeasurableError, match=r"."):
        backend.measure(Case("gemm", "matmul", "fp32", shape, 0.0, 0.0, 0.0), 0.1)


def test_collectives_run_in_processes_of_their_own(backend: Any) -> None:
    cases = plan(GRID, Target(("fp32",), 1e9, gpus=2), CATALOG, only=["collective"])
    outcomes = backend.measure_ranks(cases, 5.0)
    assert len(outcomes) == len(cases)
    measured = [case.sizes["kind"] for case, o in zip(cases, outcomes, strict=True) if not isinstance(o, str)]
    assert "all-reduce" in measured
    assert all(min(o.times) > 0.0 for o in outcomes if not isinstance(o, str))


def test_ranks_that_fail_are_told(backend: Any) -> None:
    shape: tuple[tuple[str, Value], ...] = (("kind", "all-reduce"), ("ranks", 2))
    with pytest.raises(UnmeasurableError, match=r"the 2 ranks ended early: KeyError: 'size'"):
        backend.measure_ranks([Case("collective", "collective", "bf16", shape, 0.0, 0.0, 0.0)], 5.0)


def test_the_command_measures_this_cpu(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from simulator.cli import main

    arguments = [
        "measure",
        "--device",
        "cpu",
        "--minutes",
        "0.02",
        "--only",
        "elementwise",
        "-o",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner().invoke(main, arguments, prog_name="memroof")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["summary"][0]["operator"] == "elementwise"
