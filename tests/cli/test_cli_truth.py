"""Validate and calibrate as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from simulator.cli import main

HEADER = "src,kernel_source,gemm_dtype,m,n,k,latency_ms\n"
SHAPES = [(m, n, k) for m in (1, 64, 2048) for n in (1024, 4096, 8192) for k in (1024, 4096)]


def memroof(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def table(folder: Path, factor: float = 1.0) -> str:
    """Products at ``factor`` times a roofline with 3 us of launch."""
    lines = [
        f"h100_sxm/vllm/1,x,bfloat16,{m},{n},{k},{factor * (3e-3 + max(2 * m * n * k / 7e11, 2 * n * k / 2.6e9))!r}\n"
        for m, n, k in SHAPES
    ]
    file = folder / "aiconfigurator" / "gemm.csv"
    file.parent.mkdir(parents=True)
    file.write_text(HEADER + "".join(lines))
    return str(folder)


def test_shipped_rows_hold_their_bounds() -> None:
    result = memroof("validate", "--only", "infersim/gemm", "--json")
    assert result.exit_code == 0, result.output
    (score,) = json.loads(result.stdout)
    assert score["dataset"] == "infersim/gemm_us.csv"
    assert score["ok"] and score["bound"]["median"] > score["median_ape"] > 0
    assert score["rows"] > 200


def test_json_has_the_keys_that_scripts_read() -> None:
    scores = json.loads(memroof("validate", "--only", "deepgemm/fp8", "--json").stdout)
    score = next(score for score in scores if score["dataset"] == "deepgemm/fp8_gemm_h800.csv")
    assert {
        "dataset", "rows", "skipped", "mean_ape", "median_ape", "p90_ape", "max_ape", "bias", "coverage_80", "bound", "ok",
    } <= set(score)  # fmt: skip
    assert score["skipped"] == {"grouped products belong to MoE": 10}
    assert 0 <= score["coverage_80"] <= 1


def test_worse_than_its_bound_exits_1(tmp_path: Path) -> None:
    good = memroof("validate", "--measurements", table(tmp_path / "good"), "--only", "gemm.csv")
    assert good.exit_code in (0, 1)
    bad = memroof("validate", "--measurements", table(tmp_path / "bad", 3.0), "--only", "gemm.csv")
    assert bad.exit_code == 1
    assert "WORSE THAN ITS BOUND: median" in bad.stdout
    assert "line 2" in bad.stdout or "line " in bad.stdout


def test_unknown_names_are_answered_with_near_ones(tmp_path: Path) -> None:
    result = memroof("validate", "--only", "infersim/gem_us")
    assert result.exit_code == 2
    assert "infersim/gemm_us.csv" in result.stderr
    folder = table(tmp_path)
    result = memroof("calibrate", "--measurements", folder, "--class", "matmull")
    assert result.exit_code == 2 and "matmul" in result.stderr


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "aiconfigurator" / "gemm.csv"
    file.parent.mkdir()
    file.write_text("src,m\nh100_sxm/vllm/1,1\n")
    result = memroof("validate", "--measurements", str(tmp_path), "--only", "gemm.csv")
    assert result.exit_code == 2
    assert "no column 'gemm_dtype'; it has src, m" in result.stderr


def test_plots_are_written(tmp_path: Path) -> None:
    result = memroof("validate", "--only", "deepgemm/fp8", "--plot", str(tmp_path / "plots"))
    assert result.exit_code == 0
    assert (tmp_path / "plots" / "deepgemm_fp8_gemm_h800.csv.png").stat().st_size > 1000


def test_calibrate_writes_a_file_that_says_where_it_comes_from(tmp_path: Path) -> None:
    folder = table(tmp_path / "rows")
    out = tmp_path / "new" / "folder"
    typed = (
        "calibrate",
        "--measurements",
        folder,
        "--class",
        "matmul",
        "-o",
        str(out),
        "--date",
        "2026-01-02",
    )
    result = memroof(*typed)
    assert result.exit_code == 0, result.output
    assert "h100-sxm matmul: fitted on" in result.stdout
    first = (out / "h100-sxm.yaml").read_bytes()
    assert b"aiconfigurator/gemm.csv" in first and b"2026-01-02" in first
    result = memroof(*typed, "--json")
    assert (out / "h100-sxm.yaml").read_bytes() == first
    (fitted,) = json.loads(result.stdout)
    assert (fitted["device"], fitted["class"]) == ("h100-sxm", "matmul")
    # what devices without rows inherit
    result = memroof(
        "calibrate", "--measurements", folder, "--class", "matmul", "-o", str(out), "--architecture"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("hopper matmul: h100-sxm, ")
    assert (out / "hopper.yaml").is_file()
    result = memroof(
        "calibrate", "--measurements", folder, "--architecture", "--device", "h100-sxm", "-o", str(out)
    )
    assert result.exit_code == 2 and "--device" in result.stderr


def test_a_folder_without_rows_cannot_calibrate(tmp_path: Path) -> None:
    result = memroof("calibrate", "--measurements", str(tmp_path), "--class", "matmul")
    assert result.exit_code == 2
    assert "no rows that constants can be fitted on" in result.stderr
