"""Points of serving benchmarks: a closed loop of clients on one replica, time to first and per output token.

What the rows do not state is assumed for each of their two origins. The public continuous benchmark draws lengths from
0.8 to 1 of the nominal ones and sends ten requests a client, all clients at once; KV caches are fp8.
Times to the first token are means, which hold the burst at the start (the source says neither mean nor median; medians are
half as long as what is measured at 32 clients and more, means are not). The other runs are aiconfigurator's own: fixed
lengths, 16-bit caches, and taken to be as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError
from simulator.specs.serving_scenario import CAPTURED
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.datasets.runs import (
    DISAGGREGATED,
    PIPELINE_PARALLEL,
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Content,
    Quantity,
    metric,
    run_parts,
    thin,
)
from simulator.validation.datasets.serving_defaults import MODELS, engine, is_public, unquantized

if TYPE_CHECKING:
    import pandas as pd

DEVICES = {**AICONFIGURATOR, "b300_sxm": "b300"}
DENSE = (
    "Qwen/Qwen3-32B", "nvidia/Qwen3-32B-NVFP4", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B-Instruct",
    "nvidia/Llama-3.1-8B-Instruct-FP8",
)  # fmt: skip
MOST = 140
"""Rows that are simulated; of more, those whose labels hash lowest."""
ROUNDS = 10
"""Requests of a client, as the continuous benchmark sends; its means hold the burst at the start."""
LARGEST = 2048
"""Requests of a run at most."""
LONG, FEW, MOST_PROMPTS = 8000, 16, 40
"""Tokens of a prompt whose products outlast all else, clients at most, and rows that show the clock under load."""
FRONTEND = "5 ms"
"""Assumed round trip of a request between client and scheduler (HTTP, tokenising, streaming back)."""


def numerics(mode: str, device: str, kv: str | None) -> dict[str, str]:
    """Return the strategy's formats for a mode of the table: products in the device's narrowest format that it names."""
    if mode in ("nvfp4", "fp4"):
        # Hopper has no 4-bit units: weights are widened to 16 bits on the way (Marlin, Triton and TensorRT-LLM kernels)
        compute = (
            "fp4" if device in ("b200", "b300", "gb200", "rtx-pro-6000-blackwell", "rtx-5090") else "bf16"
        )
        formats = {"precision": compute, "weight_precision": "fp4"}
    elif mode in ("fp8", "fp8_block"):
        formats = {"precision": "fp8"}
    elif mode == "int4_wo":
        formats = {"precision": "bf16", "weight_precision": "int4"}
    else:
        formats = {"precision": "bf16"}
    return formats | ({"kv_precision": kv} if kv else {})


def closed_loop(
    device: str,
    model: str,
    gpus: int,
    isl: Any,
    osl: Any,
    concurrency: int,
    formats: dict[str, str],
    **strategy: Any,
) -> Content:
    """Return the scenario of a benchmark client that keeps so many requests in flight.

    The host of these servers is hidden while they launch CUDA graphs and schedule the next iteration while one runs; graphs
    are captured for decoding (vLLM up to 512 tokens, SGLang and TensorRT-LLM for batches of decodes), so that prompts are
    issued operator by operator.
    """
    return {
        "kind": "serving", "hardware": {"device": device, "count": gpus}, "model": model,
        "workload": {
            "arrival": "closed", "concurrency": concurrency, "requests": max(concurrency, min(LARGEST, ROUNDS * concurrency)),
            "prompt": isl, "output": osl,
        },
        "strategy": {
            "tensor_parallel": gpus, "max_batch": max(concurrency, 1), "max_batched_tokens": 8192,
            "schedule_ahead": True, "frontend_latency": FRONTEND, "cuda_graphs": captured(concurrency), **formats, **strategy,
        },
    }  # fmt: skip


def captured(sequences: int) -> bool | list[int]:
    """Return the counts of tokens that are captured where so many sequences decode at once: vLLM's, and more above 512."""
    if sequences <= CAPTURED[-1]:
        return True
    return [*CAPTURED, *range(CAPTURED[-1] + 64, sequences + 64, 64)]


def lengths(tokens: float, spread: bool) -> Any:
    """Return fixed lengths, or the 0.8 to 1 of the nominal length that the continuous benchmark draws from."""
    return {"uniform": [int(np.ceil(0.8 * tokens)), int(tokens)]} if spread else int(tokens)


def _content(row: Any) -> Content:
    public = is_public(row)
    device, ours = DEVICES[row.system], row.backend == "trtllm"
    cut = degrees(row, "")
    ranks = cut["tensor_parallel"] * cut.get("attention_data_parallel", 1)
    formats = numerics(str(row.gemm_quant_mode), device, "fp8" if public else None)
    # where a point is of several replicas, concurrency is theirs together and the batch that of one group
    groups = cut.get("attention_data_parallel", 1)
    clients = int(
        row.concurrency if np.isnan(row.batch_size) else min(row.concurrency, groups * row.batch_size)
    )
    return closed_loop(
        device, MODELS[row.model_path], ranks, lengths(row.isl, public), lengths(row.osl, public), clients, formats,
        all_reduce="push" if ours else "pull", **cut, **engine(row, clients), **unquantized(row),
    )  # fmt: skip


def degrees(row: Any, phase: str) -> dict[str, int]:
    """Return the parallel degrees of a row, of both phases or of one (``prefill_``, ``decode_``)."""

    def degree(name: str) -> int:
        value = getattr(row, f"{phase}{name}")
        return 1 if np.isnan(value) else max(1, int(value))

    tensor, data, expert = degree("tp_size"), degree("attention_dp_size"), degree("moe_ep_size")
    if degree("pp_size") > 1:
        raise MemroofError(PIPELINE_PARALLEL)
    if row.model_path in DENSE:
        if data > 1:
            raise MemroofError("a dense model's replicas counted as data-parallel attention")
        return {"tensor_parallel": tensor}
    if expert > 1 and expert * degree("moe_tp_size") != tensor * data:
        raise MemroofError("attention and experts are cut over different groups")
    if tensor * data > 8 and not str(row.system).startswith("gb"):
        raise MemroofError("a replica over several nodes, whose network is not stated")
    return {"tensor_parallel": tensor, "attention_data_parallel": data, "expert_parallel": expert}


def _covered(frame: pd.DataFrame, skipped: Counter[str]) -> pd.DataFrame:
    frame = keep(frame, frame["mode"] == "agg", DISAGGREGATED, skipped)
    frame = keep(frame, frame["model_path"].isin(MODELS), UNKNOWN_MODEL, skipped)
    frame = keep(frame, frame["system"].isin(DEVICES), UNKNOWN_DEVICE, skipped)
    frame = keep(frame, frame["concurrency"].notna(), "concurrency is not stated", skipped)
    frame = keep(frame, frame["gemm_quant_mode"].notna(), "number format is not stated", skipped)
    same = frame.duplicated(["id", "ttft_ms", "tpot_ms"]) | frame.duplicated(
        [
            "model_path",
            "system",
            "backend",
            "isl",
            "osl",
            "tp_size",
            "attention_dp_size",
            "moe_ep_size",
            "gemm_quant_mode",
            "concurrency",
            "ttft_ms",
            "tpot_ms",
        ]
    )
    return keep(frame, ~same, "the same point again", skipped)


def _prompts(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["model_path"].isin(DENSE), "experts", skipped)
    frame = keep(
        frame,
        (frame["isl"] >= LONG) & (frame["concurrency"] <= FEW),
        "short prompts, or a queue of them",
        skipped,
    )
    frame = thin(_covered(frame, skipped), ("id", "source_dump"), MOST_PROMPTS, skipped)
    parts = run_parts(
        frame, catalog, skipped, content=_content, measured=lambda rows: rows["ttft_ms"].to_numpy(float) * 1e-3,
        quantity=metric("time_to_first_token_mean"), groups=("model_path", "system", "backend", "isl", "osl", "tp_size"),
    )  # fmt: skip
    return parts


def _split(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str, quantity: Quantity
) -> Sequence[Part]:
    frame = thin(_covered(frame, skipped), ("id", "source_dump"), MOST, skipped)
    return run_parts(
        frame, catalog, skipped, content=_content, measured=lambda rows: rows[column].to_numpy(float) * 1e-3,
        quantity=quantity, groups=("model_path", "system", "backend", "isl", "osl", "tp_size"),
    )  # fmt: skip


# --- prefill and decode apart ---

MOST_APART = 60
"""Rows with prefill and decode apart that are simulated."""
LARGEST_APART = 1024
"""Clients of such a row at most."""
INSIDE, BETWEEN = "900 GB/s", "50 GB/s"
"""What joins a GPU of one pool with one of the other, each way: NVLink 5 inside a rack of 72, else 400 Gb/s a GPU (assumed)."""


def _apart_content(row: Any) -> Content:
    """Pools of the stated workers; the first token comes from who decodes, as these servers stream."""
    device = DEVICES[row.system]
    pools: dict[str, Any] = {}
    for phase in ("prefill", "decode"):
        cut, workers = dict[str, Any](degrees(row, f"{phase}_")), int(getattr(row, f"{phase}_num_workers"))
        ranks = cut["tensor_parallel"] * cut.get("attention_data_parallel", 1)
        cut |= unquantized(row)
        if row.backend == "sglang" and cut.get("expert_parallel", 1) == ranks > cut["tensor_parallel"]:
            cut = {**cut, "expert_exchange": "auto"}
        pools[phase] = {
            "hardware": {"device": device, "count": workers * ranks},
            "replicas": workers,
            "strategy": cut,
        }
    formats = numerics(str(row.gemm_quant_mode), device, "fp8")
    content = closed_loop(
        device, MODELS[row.model_path], 1, lengths(row.isl, True), lengths(row.osl, True), int(row.concurrency), formats,
        all_reduce="push" if row.backend == "trtllm" else "pull",
    )  # fmt: skip
    strategy = {**content["strategy"], "max_batch": LARGEST_APART}
    fleet = {
        "router": "least-requests", **pools, "first_token": "decode",
        "bandwidth": INSIDE if str(row.system).startswith("gb") else BETWEEN,
    }  # fmt: skip
    return {**content, "strategy": strategy, "fleet": fleet}


def _apart(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str, quantity: str
) -> Sequence[Part]:
    frame = keep(frame, frame["mode"] == "disagg", "prefill and decode on the same GPUs", skipped)
    frame = keep(frame, frame["model_path"].isin(MODELS), UNKNOWN_MODEL, skipped)
    frame = keep(frame, frame["system"].isin(DEVICES), UNKNOWN_DEVICE, skipped)
    stated = frame["prefill_num_workers"].notna() & frame["decode_num_workers"].notna()
    frame = keep(frame, stated, "counts of workers are not stated", skipped)
    frame = keep(frame, frame["gemm_quant_mode"].notna(), "number format is not stated", skipped)
    frame = keep(frame, frame["concurrency"] <= LARGEST_APART, "more clients than are simulated", skipped)
    frame = keep(frame, ~frame.duplicated(["ttft_ms", "tpot_ms"]), "the same point again", skipped)
    frame = thin(frame, ("id", "source_dump"), MOST_APART, skipped)
    return run_parts(
        frame, catalog, skipped, content=_apart_content, measured=lambda rows: rows[column].to_numpy(float) * 1e-3,
        quantity=metric(quantity), groups=("model_path", "system", "backend", "isl", "osl"),
    )  # fmt: skip


PROMPTS = "aiconfigurator/serving_ttft_tpot.csv#long-prompts"
DATASETS = (
    TableDataSet(
        "aiconfigurator/serving_ttft_tpot.csv#tpot",
        partial(_split, column="tpot_ms", quantity=metric("time_per_output_token_p50")),
    ),
    TableDataSet(
        "aiconfigurator/serving_ttft_tpot.csv#ttft",
        partial(_split, column="ttft_ms", quantity=metric("time_to_first_token_mean")),
    ),
    TableDataSet(PROMPTS, _prompts),
    TableDataSet(
        "aiconfigurator/serving_ttft_tpot.csv#apart-tpot",
        partial(_apart, column="tpot_ms", quantity="time_per_output_token_p50"),
    ),
    TableDataSet(
        "aiconfigurator/serving_ttft_tpot.csv#apart-ttft",
        partial(_apart, column="ttft_ms", quantity="time_to_first_token_mean"),
    ),
)
