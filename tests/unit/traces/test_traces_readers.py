"""Every format is known by its content and read into the same units; broken files give one clear line."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.specs import MemroofError
from simulator.traces import FORMATS, detect, read_trace
from simulator.traces import pytorch_profiler as profiler

FILES = {
    "kineto.json": "pytorch", "cuda_gpu_trace.csv": "nsight-csv", "cuda_gpu_kern_sum.csv": "nsight-csv",
    "all_reduce.txt": "nccl-tests", "vllm_serve.json": "vllm", "vllm_latency.json": "vllm",
    "vllm_throughput.json": "vllm", "sglang.jsonl": "sglang", "llama_bench.md": "llama-bench",
    "llama_bench.csv": "llama-bench", "llama_bench.json": "llama-bench", "train_kernels.csv": "kernel-table",
    "train_by_category.csv": "kernel-table", "operators.csv": "operators",
}  # fmt: skip


@pytest.mark.parametrize(("name", "format"), FILES.items())
def test_the_content_tells_the_format_packed_or_not(
    name: str, format: str, data: Path, tmp_path: Path
) -> None:
    content = (data / name).read_bytes()
    plain, packed = tmp_path / "some.file", tmp_path / "some.other"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert detect(plain) == detect(packed) == format
    first, second = read_trace(plain), read_trace(packed)
    assert first.format == format
    assert (first.kernels, first.benchmarks) == (second.kernels, second.benchmarks)


def test_pytorch_kernels_come_with_the_operator_that_launched_them(data: Path) -> None:
    trace = read_trace(data / "kineto.json")
    assert trace.steps == 2
    assert [round(k.duration * 1e6) for k in trace.kernels] == [40, 10, 30, 50, 6, 4]
    product, activation, attention = trace.kernels[:3]
    assert (product.operator, product.shape, product.stream) == ("aten::mm", (1024, 3072, 1024), "7")
    assert product.start == pytest.approx(1.00001)
    assert product.correlation == 9001
    assert (activation.operator, activation.shape) == ("aten::silu", ())
    assert (attention.operator, attention.correlation) == ("", 9003)


def test_of_several_devices_the_lowest_is_read(tmp_path: Path) -> None:
    rows = [
        {
            "ph": "X",
            "cat": "kernel",
            "name": "gemm",
            "ts": 1.0,
            "dur": 2.0,
            "args": {"device": d, "stream": 7},
        }
        for d in (3, 2, 3)
    ]
    file = tmp_path / "bare.json"
    file.write_text(json.dumps(rows)[:-1])  # the closing bracket of a bare list may be missing
    trace = read_trace(file)
    assert len(trace.kernels) == 1
    assert trace.notes == ("of 2 devices, device 2 was read",)


@pytest.mark.parametrize(
    ("operator", "inputs", "shape"),
    [
        ("aten::mm", [[8, 32], [32, 64]], (8, 64, 32)),
        ("aten::bmm", [[5, 8, 32], [5, 32, 64]], (8, 64, 32)),
        ("aten::baddbmm", [[5, 8, 64], [5, 8, 32], [5, 32, 64]], (8, 64, 32)),
        ("aten::_scaled_mm", [[8, 32], [32, 64], [1], [1]], (8, 64, 32)),
        ("aten::addmm", [[64], [8, 32]], ()),
        ("aten::mm", [[8, 32], []], ()),
        ("aten::add", [[8, 32], [8, 32]], ()),
        ("aten::mm", "8x32", ()),
    ],
)
def test_shapes_of_products(operator: str, inputs: object, shape: tuple[int, ...]) -> None:
    assert profiler.product_shape(operator, inputs) == shape


def test_nsight_sqlite_has_kernels_and_copies_of_the_lowest_device(nsight: Path) -> None:
    assert detect(nsight) == "nsight-sqlite"
    trace = read_trace(nsight)
    assert [(k.stream, round(k.duration * 1e9), k.correlation) for k in trace.kernels] == [
        ("7", 40000, 11), ("20", 40000, 12), ("7", 5000, 14), ("7", 1000, 15),
    ]  # fmt: skip
    assert trace.kernels[0].name.startswith("void cutlass::Kernel2")
    assert [k.name for k in trace.kernels[2:]] == ["Memcpy HtoD", "Memset"]
    assert trace.notes == ("of 2 devices, device 0 was read",)


def test_nsight_csv_trace_and_sums(data: Path) -> None:
    trace = read_trace(data / "cuda_gpu_trace.csv")
    assert [(k.start, k.duration) for k in trace.kernels] == [
        pytest.approx((1e-6, 5e-6)), pytest.approx((7e-6, 40e-6)), pytest.approx((48e-6, 2e-6)),
    ]  # fmt: skip
    assert trace.kernels[0].name == "Memcpy HtoD"
    sums = read_trace(data / "cuda_gpu_kern_sum.csv").kernels
    assert [(k.count, k.duration, k.start) for k in sums] == [(200, 8e-3, None), (400, 2e-3, None)]


def test_nccl_tests_knows_the_collective_and_the_ranks(data: Path, tmp_path: Path) -> None:
    rows = read_trace(data / "all_reduce.txt").collectives
    assert [(r.kind, r.size, r.ranks) for r in rows] == [
        ("all-reduce", 1048576.0, 8), ("all-reduce", 16777216.0, 8), ("all-reduce", 268435456.0, 8)
    ]  # fmt: skip
    assert rows[-1].time == pytest.approx(2.06e-3)
    text = (data / "all_reduce.txt").read_text()
    bare = "\n".join(line for line in text.splitlines() if "Rank" not in line)
    assert read_trace(_file(tmp_path, bare)).collectives == rows  # from busbw = 2 (n-1)/n algbw
    half = (
        bare.replace("   35.29", "   17.64").replace("  146.07", "   73.04").replace("  228.04", "  114.02")
    )
    assert {(r.kind, r.ranks) for r in read_trace(_file(tmp_path, half)).collectives} == {
        ("reduce-scatter", 8)
    }
    gathered = read_trace(_file(tmp_path, half.replace("  sum ", " none ")))
    assert {r.kind for r in gathered.collectives} == {"all-gather"}
    assert "an all-gather is assumed" in gathered.notes[0]
    named = read_trace(_file(tmp_path, "$ ./build/alltoall_perf -g 8\n" + half.replace("  sum ", " none ")))
    assert {r.kind for r in named.collectives} == {"all-to-all"}
    by_file = tmp_path / "sendrecv_perf.log"
    by_file.write_text(text.replace("  sum ", " none "))
    assert {r.kind for r in read_trace(by_file).collectives} == {"send"}


def test_benchmarks_have_memroof_metrics_in_seconds(data: Path) -> None:
    (served,) = read_trace(data / "vllm_serve.json").benchmarks
    assert served.metrics["time_to_first_token_mean"] == pytest.approx(0.030)
    assert served.metrics["time_per_output_token_p50"] == pytest.approx(0.0049)
    assert served.metrics["total_throughput"] == 1280.0
    assert served.label == "2.0 requests/s"
    (latency,) = read_trace(data / "vllm_latency.json").benchmarks
    assert latency.metrics == pytest.approx(
        {"end_to_end_mean": 0.75, "end_to_end_p50": 0.75, "end_to_end_p90": 0.758, "end_to_end_p99": 0.76}
    )
    (offline,) = read_trace(data / "vllm_throughput.json").benchmarks
    assert offline.metrics == {"request_throughput": 50.0, "total_throughput": 32000.0}
    first, second = read_trace(data / "sglang.jsonl").benchmarks
    assert first.metrics["end_to_end_p99"] == pytest.approx(0.8)
    assert (first.label, second.label) == ("4.0 requests/s", "concurrency 16")


def test_llama_bench_in_every_output(data: Path, tmp_path: Path) -> None:
    table = read_trace(data / "llama_bench.md").rates
    assert [(r.prompt, r.output, r.depth, r.rate) for r in table] == [
        (512, 0, 0, 200000.0), (0, 128, 0, 900.0), (0, 128, 512, 880.0), (512, 128, 0, 4300.0),
    ]  # fmt: skip
    rows = read_trace(data / "llama_bench.csv").rates
    assert [(r.prompt, r.output, r.rate) for r in rows] == [(512, 0, 200000.0), (0, 128, 900.0)]
    listed = read_trace(data / "llama_bench.json").rates
    assert [(r.output, r.depth, r.rate) for r in listed] == [(0, 0, 200000.0), (128, 512, 880.0)]
    lines = "\n".join(json.dumps(row) for row in json.loads((data / "llama_bench.json").read_text()))
    assert read_trace(_file(tmp_path, lines)).rates == listed


def test_condensed_tables_and_plain_operators(data: Path) -> None:
    kernels = read_trace(data / "train_kernels.csv").kernels
    assert kernels[1].start == pytest.approx(60e-6)
    assert kernels[1].category == "fp8_dense_gemm"
    sums = read_trace(data / "train_by_category.csv").kernels
    assert (sums[0].count, sums[0].duration) == (64, pytest.approx(18.838e-3))
    operators = read_trace(data / "operators.csv")
    assert [k.shape for k in operators.kernels] == [(1024, 3072, 1024), (1024, 8192, 1024), ()]
    assert [k.duration for k in operators.kernels] == pytest.approx([40e-6, 90e-6, 5e-6])
    assert operators.notes == ("of 2 devices, a100 was read",)


EVENT = '{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1, "dur": 2, "args": {"device": 0, "stream": 7}}'
NCCL = "#       size         count      type   redop    root     time   algbw   busbw #wrong\n"
LLAMA = "| model | test | t/s |\n| --- | --- | --- |\n"
BROKEN = {
    "cut event": ('{"traceEvents": [\n' + EVENT + ',\n{"ph": "X", "cat"', 3, "not valid JSON"),
    "cut list": ('{"traceEvents": [\n' + EVENT + ",\n", 3, "ends inside traceEvents"),
    "bad event": ('{"traceEvents": [\n' + EVENT + ",\n{'ph': 1}\n]}", 3, "not valid JSON"),
    "no list": ('{"schemaVersion": 1, "traceEvents": {}}', 1, "traceEvents is no list"),
    "no events": ('{"schemaVersion": 1}', None, "it is no Chrome trace"),
    "no kernels": ('{"traceEvents": []}', None, "holds no GPU kernels"),
    "no duration": ('{"traceEvents": [\n' + EVENT.replace('"dur": 2', '"dur": null') + "]}", 2, "dur of a kernel is no number"),
    "negative": ('{"traceEvents": [\n' + EVENT.replace('"dur": 2', '"dur": -2') + "]}", 2, "below 0"),
    "deep": ('{"traceEvents": [' + "[" * 100_000, 1, "nested too deeply"),
    "unknown": ("hello\n", None, "in none of the formats"),
    "empty": ("  \n", None, "holds nothing"),
    "bytes": (b'{"traceEvents": [\n\xff\xfe]}', None, "not UTF-8"),
    "csv cells": ("operator,shape,device,time\nmm,1x1x1,a100\n", 2, "3 cells where the header has 4 columns"),
    "csv time": ("operator,shape,device,time\nmm,1x1x1,a100,fast\n", 2, "time:"),
    "csv number": ("operator,shape,device,time\nmm,1x1x1,a100,1e\n", 2, "time is no number"),
    "csv shape": ("operator,shape,device,time\nmm,big,a100,1 us\n", 2, "write it like 4096x4096x1024"),
    "csv rows": ("operator,shape,device,time\n", None, "holds no operators"),
    "table": ("category,calls,total_us\ngemm,many,3\n", 2, "calls is no number"),
    "half calls": ("category,calls,total_us\ngemm,1.5,3\n", 2, "calls is no whole number"),
    "table rows": ("category,calls,total_us\n", None, "holds no kernels"),
    "sums": ("Time (%),Total Time (ns),Instances,Name\n50,x,3,gemm\n", 2, "is no number"),
    "sums rows": ("Time (%),Total Time (ns),Instances,Name\n", None, "holds no GPU kernels"),
    "nccl": (NCCL, None, "holds no measured sizes"),
    "nccl cells": (NCCL + " 8 2 float\n", 2, "a row of 3 cells"),
    "nccl time": (NCCL + " 8 2 float sum -1 fast 10.0 17.5 0\n", 2, "is no number"),
    "nccl ranks": (NCCL + " 8 2 float sum -1 1.0 0.00 0.00 0\n", None, "how many ranks"),
    "nccl header": ("# nThread 1 nGpus 8\n# Using devices\n", None, "has no header"),
    "vllm value": ('{"mean_ttft_ms": "fast"}', 1, "mean_ttft_ms is no number"),
    "vllm list": ('{"mean_ttft_ms": 1}\n[3]', 2, "no JSON object"),
    "vllm nothing": ('{"total_token_throughput": null}', 1, "no latency or throughput"),
    "vllm cut": ('{"mean_ttft_ms": 1.0,', 1, "not valid JSON"),
    "sglang cut": ('{"mean_e2e_latency_ms": 1.0}\n{"mean_e2', 2, "not valid JSON"),
    "llama test": (LLAMA + "| toy | fast | 3 |\n", 3, "is no test such as pp512"),
    "llama cells": (LLAMA + "| toy | pp512 |\n", 3, "2 cells where the header has 3"),
    "llama rate": (LLAMA + "| toy | pp512 | 0.0 ± 0.0 |\n", 3, "processed nothing"),
    "llama none": (LLAMA, None, "holds no test"),
    "llama json": ('[{"n_prompt": 1, "n_gen": 0}, {"avg_ts": 1}]', 1, "a test without avg_ts"),
    "llama object": ('[3, {"n_prompt": 1, "n_gen": 0, "avg_ts": 1}]', 1, "a test is no JSON object"),
}  # fmt: skip


@given(name=st.sampled_from([*FILES]), random=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_of_any_kind_is_read_or_told(name: str, random: Random, data: Path, tmp_path: Path) -> None:
    content = bytearray((data / name).read_bytes())
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content))
        end = at + random.choice((0, 1, 1, 5, len(content)))
        content[at:end] = random.choice(
            (b"", b"x", b"9", b'"', b",", b"null", b"-1", b"1e999", b"\xff", b"\n", b"{")
        )
    try:
        read_trace(_file(tmp_path, bytes(content)), random.choice((None, FILES[name])))
    except MemroofError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_gives_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    content, line, message = BROKEN[name]
    file = _file(tmp_path, content)
    with pytest.raises(MemroofError) as caught:
        read_trace(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{file}:{line}: " if line else f"{file}")
    assert message in str(caught.value)


def test_other_faults_are_told_as_well(tmp_path: Path, nsight: Path, data: Path) -> None:
    def message(file: Path, format: str | None = None) -> str:
        with pytest.raises(MemroofError) as caught:
            read_trace(file, format)
        return str(caught.value)

    assert "cannot be read" in message(tmp_path / "absent.json")
    assert "no such file" in message(tmp_path / "absent.sqlite", "nsight-sqlite")
    assert message(data / "kineto.json", "kinetto") == "unknown format 'kinetto'; known: " + ", ".join(
        sorted(FORMATS)
    )
    broken = tmp_path / "cut.gz"
    broken.write_bytes(gzip.compress((data / "kineto.json").read_bytes())[:200])
    assert "broken gzip data" in message(broken, "pytorch")
    assert "neither a cuda_gpu_trace nor" in message(_file(tmp_path, "name\ngemm\n"), "nsight-csv")
    assert "needs the columns" in message(_file(tmp_path, "category\ngemm\n"), "kernel-table")
    assert "no header with the columns" in message(_file(tmp_path, "a,b\n1,2\n"), "operators")
    assert "not UTF-8 text" in message(_file(tmp_path, b"operator\n\xff\n"), "operators")
    assert "no header" in message(_file(tmp_path, "text"), "nccl-tests")
    assert "nested too deeply" in message(_file(tmp_path, "[" * 100_000), "vllm")
    assert "holds nothing" in message(_file(tmp_path, "\n\n"), "vllm")
    with closing(sqlite3.connect(nsight)) as base:
        base.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = 5 WHERE correlationId = 11")
        base.commit()
    assert "duration of a kernel is below 0" in message(nsight)
    with closing(sqlite3.connect(nsight)) as base:
        base.execute("DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL")
        base.commit()
    assert "holds no GPU kernels" in message(nsight)
    with closing(sqlite3.connect(nsight)) as base:
        base.execute("DROP TABLE StringIds")
        base.commit()
    assert "export a trace of CUDA" in message(nsight)
    nsight.write_bytes(b"SQLite format 3\0" + b"x" * 200)
    assert "cannot be read as an Nsight Systems export" in message(nsight)


def test_a_large_trace_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "CHUNK", 97)  # every event lies across a border
    file = tmp_path / "long.json"
    file.write_text('{"traceEvents": [' + ",\n".join([EVENT] * 500) + '], "traceName": "é"}')
    assert len(read_trace(file).kernels) == 500


def test_ten_megabytes_take_a_second_of_cpu_time_or_so(tmp_path: Path) -> None:
    file = tmp_path / "big.json"
    event = EVENT.replace("gemm", "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_tn" * 3)
    file.write_text('{"traceEvents": [' + ",\n".join([event] * (10_000_000 // len(event))) + "]}")
    start = time.process_time()
    read_trace(file)
    assert time.process_time() - start < 3.0


def _file(folder: Path, content: str | bytes) -> Path:
    file = folder / "measured.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file
