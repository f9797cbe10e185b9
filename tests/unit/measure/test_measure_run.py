"""The budget: how long a case may take, what is left out and why; the record that is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_backend import GPU, TINY, Clock, FakeBackend, facts

from simulator.measure import (
    MEASUREMENTS,
    Campaign,
    Case,
    plan,
    read_rows,
    run_campaign,
    summary,
    write_record,
)
from simulator.measure.record import parse_shape
from simulator.specs import Catalog, MemroofError

CATALOG = Catalog(environment={})
CASES = plan(TINY, GPU, CATALOG)


def run(
    seconds: float, backend: FakeBackend, cases: tuple[Case, ...] = CASES, memory: float = 16e9
) -> Campaign:
    return run_campaign(cases, backend, memory, seconds, clock=backend.clock)


def test_every_case_is_measured_or_skipped_with_a_reason() -> None:
    backend = FakeBackend(lambda case: 1e-3, refuse="fp8")
    told: list[str] = []
    done = run_campaign(CASES, backend, 16e9, 120.0, clock=backend.clock, progress=told.append)
    assert len(done.measured) + len(done.skipped) == len(CASES)
    reasons = {skip.reason for skip in done.skipped}
    assert reasons == {"no kernel for fp8", "no all-to-all"}
    assert [text.split(":")[0] for text in told] == list(dict.fromkeys(case.group for case in CASES))
    assert done.seconds <= 121.0


def test_a_short_time_is_kept_and_shared_by_the_groups() -> None:
    backend = FakeBackend(lambda case: 1e-4)
    done = run(1.0, backend)
    assert backend.clock.now < 1.5
    left_out = {skip.case.group for skip in done.skipped if "was spent" in skip.reason}
    assert "gemm" in left_out
    assert {case.group for case, _ in done.measured} == {case.group for case in CASES}


def test_time_that_is_not_used_goes_to_later_cases() -> None:
    backend = FakeBackend(lambda case: 1e-6)
    run(60.0, backend, tuple(case for case in CASES if case.group == "gemm"))
    assert all(0.05 <= limit <= 1.5 for _, limit in backend.limits)


def test_a_case_that_would_eat_the_time_is_left_out_before_it_runs() -> None:
    gemm = sorted(
        (case for case in CASES if case.group == "gemm" and case.format == "bf16"),
        key=lambda case: case.flops,
    )
    # 1 GFLOP/s: the largest takes 2.1 s, three repeats 6.4 s of the 12
    backend = FakeBackend(lambda case: case.flops / 1e9)
    done = run(12.0, backend, tuple(gemm))
    skipped = [skip.case for skip in done.skipped]
    assert gemm[-1] in skipped
    assert gemm[0] not in skipped
    assert {skip.reason for skip in done.skipped} == {"would take too much of the time of its group"}


def test_what_does_not_fit_says_so() -> None:
    backend = FakeBackend(lambda case: 1e-4)
    done = run(60.0, backend, memory=1e6)
    assert any(skip.reason == "does not fit in the 0.000931 GiB that are free" for skip in done.skipped)
    assert all(case.footprint <= 0.9e6 for case, _ in done.measured)


def test_ranks_get_no_time_after_a_spent_budget() -> None:
    backend = FakeBackend(lambda case: 1e-4)
    done = run(-1.0, backend)
    assert not done.measured
    assert {skip.reason for skip in done.skipped} == {"the time of its group was spent"}


def test_ranks_that_end_early_lose_their_cases_alone() -> None:
    done = run(60.0, FakeBackend(lambda case: 1e-4, refuse="ranks"))
    assert {skip.case.group for skip in done.skipped if skip.reason == "a rank ended early"} == {"collective"}
    assert {case.group for case, _ in done.measured} == {case.group for case in CASES} - {"collective"}


def test_the_record_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    done = run(60.0, FakeBackend(lambda case: 1e-3))
    rows = write_record(tmp_path, done, facts(doubts=("busy",)), "memroof measure -o x", "2026-01-02")
    assert read_rows(tmp_path / MEASUREMENTS) == rows
    row = next(r for r in rows if r.operator == "matmul")
    assert (row.time_s, row.min_s, row.repeats, row.device, row.kernel) == (
        1e-3,
        0.98e-3,
        3,
        "toy-gpu",
        "fake",
    )
    assert row.spread == pytest.approx(0.02)  # quartiles 0.99 and 1.01 of the median
    step = next(r for r in rows if r.operator == "training-step")
    assert (step.peak_allocated, step.peak_reserved) == (2e9, 3e9)
    assert row.peak_allocated is None
    readme = (tmp_path / MEASUREMENTS).with_name("README.md").read_text()
    for text in (
        "## toy-gpu",
        "reported as: Toy GPU",
        "`memroof measure -o x`",
        "2026-01-02",
        "PyTorch: none",
        "doubt: busy",
    ):
        assert text in readme
    assert "4 cases of collective left out: no all-to-all" in readme


def test_the_same_times_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_record(tmp_path / name, run(60.0, FakeBackend(lambda case: 1e-3)), facts(), "x", "2026-01-02")
    for file in (MEASUREMENTS, "memroof-measure/README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_devices_are_added_and_measured_operators_replaced(tmp_path: Path) -> None:
    gemm = tuple(case for case in CASES if case.group == "gemm")
    first = write_record(tmp_path, run(60.0, FakeBackend(lambda case: 1e-3)), facts(), "first", "2026-01-02")
    write_record(tmp_path, run(60.0, FakeBackend(lambda case: 5e-3), gemm), facts(), "again", "2026-01-03")
    write_record(
        tmp_path,
        run(60.0, FakeBackend(lambda case: 7e-3), gemm),
        facts(device="a-gpu"),
        "other",
        "2026-01-04",
    )
    rows = read_rows(tmp_path / MEASUREMENTS)
    assert [row.device for row in rows] == ["a-gpu"] * len(gemm) + ["toy-gpu"] * len(first)
    assert {row.time_s for row in rows if row.device == "toy-gpu" and row.operator == "matmul"} == {5e-3}
    assert {row.time_s for row in rows if row.device == "toy-gpu" and row.operator == "attention"} == {1e-3}
    readme = (tmp_path / MEASUREMENTS).with_name("README.md").read_text()
    assert readme.index("## a-gpu") < readme.index("## toy-gpu")
    assert readme.count("# Measured with") == 1
    assert "`again`" in readme and "`first`" not in readme


def test_another_file_under_the_name_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / MEASUREMENTS
    file.parent.mkdir()
    file.write_text("m,n,k\n1,2,3\n")
    done = run(60.0, FakeBackend(lambda case: 1e-3))
    with pytest.raises(MemroofError, match=r"measurements\.csv:1: expected the columns operator, shape"):
        write_record(tmp_path, done, facts(), "x", "2026-01-02")
    assert file.read_text() == "m,n,k\n1,2,3\n"


def test_a_broken_figure_is_told_with_its_line(tmp_path: Path) -> None:
    write_record(tmp_path, run(60.0, FakeBackend(lambda case: 1e-3)), facts(), "x", "2026-01-02")
    file = tmp_path / MEASUREMENTS
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace("0.001", "fast")
    file.write_text("\n".join(lines))
    with pytest.raises(MemroofError, match=r"measurements\.csv:3: a figure is missing or no number"):
        read_rows(file)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "memroof-measure").write_text("a file")
    with pytest.raises(MemroofError, match="cannot be written"):
        write_record(tmp_path, run(60.0, FakeBackend(lambda case: 1e-3)), facts(), "x", "2026-01-02")


def test_the_summary_finds_the_best_rates(tmp_path: Path) -> None:
    clock = Clock()
    done = run(60.0, FakeBackend(lambda case: 1e-5 + case.flops / 1e14, clock))
    lines = {
        (line["operator"], line["format"], line["kernel"]): line
        for line in summary(write_record(tmp_path, done, facts(), "", ""))
    }
    best = lines["matmul", "bf16", "fake"]
    assert best["flops_shape"] == "m=256 n=4096 k=1024"
    flops = 2 * 256 * 4096 * 1024
    assert best["flops_per_second"] == pytest.approx(flops / (1e-5 + flops / 1e14), rel=1e-5)
    assert lines["transfer", "int8", "host-to-device pinned"]["flops_per_second"] == 0.0
    assert lines["training-step", "bf16", "fake"]["peak_allocated"] == 2e9


def test_shapes_without_a_value_are_left_out() -> None:
    assert parse_shape("m=3 note n=") == {"m": 3}
