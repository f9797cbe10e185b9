"""memroof compare, as a user types it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from user_catalog import UserCatalog

DATA = Path(__file__).parents[1] / "unit" / "traces" / "data"
SERVING = """\
hardware:
  device: toy-gpu
model: tiny
workload:
  rate: 2 req/s
  requests: 40
  prompt: 512
  output: 128
kind: serving
"""


def test_kernels_by_class_group_and_operator(user: UserCatalog) -> None:
    result = user.memroof("compare", str(DATA / "kineto.json"), "tiny-training")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("(pytorch) against tiny-training")
    assert "the trace holds 2 steps" in result.stdout
    matmul = next(line for line in lines if line.startswith("matmul"))
    assert "20.0 us" in matmul
    assert "unmatched kernels, 6.00 us in all" in result.stdout
    assert any(line.split()[:2] == ["a_kernel_of_our_own(float*)", "1"] for line in lines)
    assert "16.0 us beside computation, 34.0 us exposed" in result.stdout


def test_json_is_the_whole_comparison(user: UserCatalog, tmp_path: Path) -> None:
    packed = tmp_path / "trace.json.gz"
    packed.write_bytes(gzip.compress((DATA / "kineto.json").read_bytes()))
    result = user.memroof("compare", str(packed), "tiny-training", "--steps", "1", "--stage", "1", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["format"] == "pytorch"
    assert found["steps"] == 1
    assert found["occupation"]["hidden"] > 0
    assert next(row for row in found["groups"] if row["name"] == "gemm")["measured"] == pytest.approx(40e-6)


def test_benchmarks_and_collectives(user: UserCatalog) -> None:
    user.write("scenarios/tiny-serving.yaml", SERVING)
    served = user.memroof("compare", str(DATA / "sglang.jsonl"), "tiny-serving")
    assert served.exit_code == 0, served.stderr
    assert "4.0 requests/s: time to first token, mean" in served.stdout
    assert "notes" in served.stdout
    bench = user.memroof("compare", str(DATA / "llama_bench.md"), "tiny-serving", "--format", "llama-bench")
    assert bench.exit_code == 0, bench.stderr
    assert "toy F16 tg128 @ d512" in bench.stdout
    rings = user.memroof("compare", str(DATA / "all_reduce.txt"), "llama3.1-8b-8xh100")
    assert rings.exit_code == 0, rings.stderr
    assert "all-reduce of 268,435,456 B over 8" in rings.stdout


def test_many_unmatched_names_are_cut_in_text_alone(user: UserCatalog, tmp_path: Path) -> None:
    rows = "".join(f"thing {i},,here,{i + 1} us\n" for i in range(20))
    file = tmp_path / "mine.csv"
    file.write_text("operator,shape,device,time\n" + rows)
    result = user.memroof("compare", str(file), "tiny-training")
    assert "and 8 further names" in result.stdout
    found = json.loads(user.memroof("compare", str(file), "tiny-training", "--json").stdout)
    assert len(found["unmatched"]) == 20


def test_bad_input_is_one_line_and_exit_code_2(user: UserCatalog, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"traceEvents": [\n{"ph": "X", "cat"')
    for arguments, message in (
        ((str(broken), "tiny-training"), f"{broken}:2: not valid JSON"),
        ((str(tmp_path / "none.json"), "tiny-training"), "does not exist"),
        ((str(DATA / "kineto.json"), "tiny-training", "--format", "kineto"), "unknown format 'kineto'"),
        ((str(DATA / "kineto.json"), "tiny-trainign"), "did you mean 'tiny-training'?"),
        ((str(DATA / "kineto.json"), "tiny-training", "--stage", "7"), "stages 0 to 1"),
        ((str(DATA / "vllm_serve.json"), "tiny-training"), "compared with a serving scenario"),
        ((str(DATA / "all_reduce.txt"), "tiny-training"), "has 4"),
    ):
        result = user.memroof("compare", *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
