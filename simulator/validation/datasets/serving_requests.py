"""Requests of real vLLM runs replayed: the same arrivals and lengths on the same device with the same engine settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import FloatArray, Loaded, Part, TableDataSet, keep, read_table
from simulator.validation.datasets.runs import (
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Case,
    Content,
    Metrics,
    Quantity,
    Simulated,
    metric,
    named,
    run_parts,
)

if TYPE_CHECKING:
    import pandas as pd

DEVICES = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000-blackwell", "H100": "h100-sxm"}
MODELS = {
    "Llama-3.1-8B": "llama3.1-8b", "Llama-3.1-70B": "llama3.1-70b", "Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
    "Qwen3-32B": "qwen3-32b",
}  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """One quantity of the runs of a requests table, with the settings of ``vllm_runs.csv`` beside it.

    Attributes
    ----------
    name : str
        Of the data set.
    measured : str
        ``ttft_p50``, ``ttft_p90``, ``tpot_p50``, ``tpot_p90`` or ``makespan``.
    quantity : function
        The same from predicted metrics.
    """

    name: str
    measured: str
    quantity: Quantity

    def load(self, file: Path, catalog: Catalog) -> Loaded:
        """Read requests, settings and, where it is there, the series of running requests; one row a run."""
        requests, settings = read_table(file), read_table(file.with_name("vllm_runs.csv"))
        running = most_running(file.with_name("vllm_timeseries.csv"))
        loaded = Loaded()
        for (gpu, model), rows in requests.groupby(["gpu", "model"], sort=True):
            chosen = settings[(settings["gpu"] == gpu) & (settings["model"] == model)]
            try:
                if chosen.empty:
                    raise MemroofError("no settings of the run in vllm_runs.csv")
                run = next(chosen.itertuples(index=False))
                case = Case.of(replayed(rows, run, running.get((str(gpu), str(model)), 0)), catalog)
            except MemroofError as error:
                loaded.skipped[str(error)] += 1
                continue
            table = chosen.iloc[:1]
            simulated = Simulated([case], table, self.quantity)
            loaded.parts.append(
                Part(
                    case.setup.hardware.device.name, np.array([measured(rows)[self.measured]]), simulated.predict,
                    np.array([f"{gpu}|{model}"]), rows["line"].to_numpy(np.int64)[:1], table, None, simulated.errors,
                )
            )  # fmt: skip
        return loaded


def most_running(file: Path) -> Mapping[tuple[str, str], int]:
    """Return the largest batch of each run's series; none without the file."""
    if not file.is_file():
        return {}
    series = read_table(file).groupby(["gpu", "model"], as_index=False)["running"].max()
    return {(str(row.gpu), str(row.model)): int(row.running) for row in series.itertuples(index=False)}


def replayed(rows: pd.DataFrame, run: Any, running: int) -> Content:
    """Return the scenario of a run.

    vLLM 0.19 schedules ahead, prefills in chunks and keeps blocks of 16 tokens in 0.9 of the memory (its defaults). A run
    whose series shows more requests at once than its settings allow had the larger limit.
    """
    device = named(DEVICES, run.gpu, UNKNOWN_DEVICE)
    model = named(MODELS, run.model, UNKNOWN_MODEL)
    tensor = int(run.tensor_parallel_size)
    columns = zip(rows["arrival_time"], rows["input_toks"], rows["output_toks"], strict=True)
    return {
        "kind": "serving", "hardware": {"device": device, "count": tensor}, "model": model,
        "workload": {
            "arrival": "list",
            "list": [
                {"arrival": f"{max(0.0, arrival):.6f} s", "prompt": int(prompt), "output": int(output)}
                for arrival, prompt, output in columns
            ],
        },
        "strategy": {
            "tensor_parallel": tensor, "max_batch": max(int(run.max_num_seqs), running),
            "max_batched_tokens": int(run.max_num_batched_tokens), "schedule_ahead": True,
        },
    }  # fmt: skip


def measured(rows: pd.DataFrame) -> dict[str, float]:
    """Percentiles of times to first and per output token, and first arrival to last token [s]."""
    arrival, first, last = (
        rows[name].to_numpy(float) for name in ("arrival_time", "first_token_ts", "last_token_ts")
    )
    outputs = rows["output_toks"].to_numpy(float)
    several = outputs > 1
    gaps: FloatArray = (last - first)[several] / (outputs[several] - 1.0)
    ttft = first - arrival
    return {
        "ttft_p50": float(np.percentile(ttft, 50)), "ttft_p90": float(np.percentile(ttft, 90)),
        "tpot_p50": float(np.percentile(gaps, 50)), "tpot_p90": float(np.percentile(gaps, 90)),
        "makespan": float(last.max() - arrival.min()),
    }  # fmt: skip


def makespan(metrics: Metrics, row: Any) -> tuple[float, float]:
    """Return the time from the first arrival to the last token, from the rate of requests."""
    rate = metrics["request_throughput"]
    return float(row.n_requests) / rate.value, rate.error


def _blocks(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["num_gpu_blocks"].notna(), "number of blocks is not stated", skipped)

    def content(run: Any) -> Content:
        tensor = int(run.tensor_parallel_size)
        return {
            "kind": "serving", "hardware": {"device": named(DEVICES, run.gpu, UNKNOWN_DEVICE), "count": tensor},
            "model": named(MODELS, run.model, UNKNOWN_MODEL),
            "workload": {
                "arrival": "offline", "requests": int(run.max_num_seqs), "prompt": int(run.max_num_batched_tokens), "output": 2
            },
            "strategy": {
                "tensor_parallel": tensor, "max_batch": int(run.max_num_seqs),
                "max_batched_tokens": int(run.max_num_batched_tokens), "schedule_ahead": True,
            },
        }  # fmt: skip

    return run_parts(
        frame, catalog, skipped, content=content, measured=lambda rows: rows["num_gpu_blocks"].to_numpy(float) * 16.0,
        quantity=metric("kv_capacity"), groups=("gpu", "model"),
    )  # fmt: skip


_REQUESTS = "llmservingsim/vllm_requests.csv"
DATASETS = (
    Replay(f"{_REQUESTS}#ttft_p50", "ttft_p50", metric("time_to_first_token_p50")),
    Replay(f"{_REQUESTS}#ttft_p90", "ttft_p90", metric("time_to_first_token_p90")),
    Replay(f"{_REQUESTS}#tpot_p50", "tpot_p50", metric("time_per_output_token_p50")),
    Replay(f"{_REQUESTS}#tpot_p90", "tpot_p90", metric("time_per_output_token_p90")),
    Replay(f"{_REQUESTS}#makespan", "makespan", makespan),
    TableDataSet("llmservingsim/vllm_runs.csv#kv_tokens", _blocks),
)
