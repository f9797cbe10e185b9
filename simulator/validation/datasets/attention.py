"""Attention kernels: prefill and decode, from serving frameworks' own layers and from kernel benchmarks.

What is timed differs by source: aiconfigurator times the attention layer of a serving framework (the kernel that writes
new keys and values into the paged cache, then attention), the others time attention alone. A row's operands were used
in the repetition just before, so that caches are warm (a cost model that is not ``sustained``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cost import CostModel, peak_flops
from simulator.graph import Attention
from simulator.specs import Catalog, OperatorClass
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {"bfloat16": ("bf16", 2.0), "fp8": ("fp8", 1.0)}
CACHE_BYTES = {"bfloat16": 2.0, "bf16": 2.0, "fp8": 1.0}
IMPOSSIBLE = "faster than the device's peak or memory allows: keys and values of several sequences or heads are one (trap)"
BROKEN_LAYER = "L40S, FlashInfer with an fp8 cache: the time falls where query heads are added (trap)"
SHARED_CACHE = "TensorRT-LLM, grouped heads, a cache above the last-level cache: streams up to 1.7 times the memory's peak (trap)"
HEAD_DIM = 128.0
OTHER_KERNELS = {
    ("h100_sxm", "torch_flow"): 0.5,
    ("l40s", "vllm_flashinfer"): 0.3,
}
"""System and kernel that the device's constants do not stand for (TensorRT-LLM's and FlashInfer's beside FlashAttention),
with the relative standard error that this adds."""
OLD_KERNEL = 0.5
"""What it adds where a profile times an older FlashAttention than the frameworks run."""
OTHER_SOFTWARE = 0.12
"""What it adds where a benchmark runs the same kind of kernel by itself, outside a serving framework's layer."""
MIXED_KERNEL = 0.2
"""What it adds where one kernel holds prompts and decodes: their tiles share units and cache."""


def attention_part(
    device: str,
    rows: pd.DataFrame,
    seconds: FloatArray,
    works: Sequence[Attention],
    groups: Sequence[str],
    *,
    operator_class: OperatorClass | None = None,
    doubt: float = 0.0,
) -> Part:
    """Return a part whose rows each take one attention, or several that run one after the other.

    ``doubt`` is the error that another kernel than the fitted one adds; constants are fitted on rows without.
    """

    def predict(cost: CostModel) -> FloatArray:
        total: Any = sum(np.asarray(cost.price(work).time) for work in works)
        return np.asarray(total)

    single: OperatorClass = "decode-attention" if works[0].decode else "attention"
    name: OperatorClass = operator_class or ("latent-attention" if works[0].latent else single)

    def errors(cost: CostModel) -> FloatArray:
        return np.full(len(seconds), np.hypot(cost.calibration.error[name], doubt))

    return Part(
        device,
        seconds,
        predict,
        labels(rows, groups),
        rows["line"].to_numpy(np.int64),
        rows,
        name,
        errors,
        fitted=doubt == 0.0,
    )


def possible(
    rows: pd.DataFrame,
    work: Attention,
    seconds: FloatArray,
    device: str,
    catalog: Catalog,
    skipped: Counter[str],
) -> Any:
    """Mark rows that the data sheet allows: no faster than the matrix peak, nor than the memory for what no cache holds."""
    processor = catalog.processor(device)
    peak = peak_flops(processor, work.format)
    memory = next(iter(processor.memory.values())).bandwidth
    cached = 2.0 * max((cache.capacity for cache in processor.cache.values()), default=0.0)
    streamed = np.where(np.asarray(work.cache_bytes) > cached, work.cache_bytes, 0.0)
    fine = (np.asarray(work.flops) <= seconds * peak) & (streamed <= seconds * memory)
    keep(rows, fine, IMPOSSIBLE, skipped)
    return fine


def _context(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    broken = frame["src"].str.startswith("l40s") & (frame["kernel_source"] == "vllm_flashinfer")
    frame = keep(frame, ~broken, BROKEN_LAYER, skipped)
    parts: list[Part] = []
    # one query a sequence is what decode kernels are for, and what the frameworks use for it
    for single in (False, True):
        parts += _layer(frame[(frame["isl"] == 1) == single], catalog, skipped, decode=single)
    return parts


def _generation(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    return _layer(frame, catalog, skipped, decode=True)


def _layer(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, decode: bool) -> list[Part]:
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    known = frame["attn_dtype"].isin(list(FORMATS)) & frame["kv_cache_dtype"].isin(list(CACHE_BYTES))
    frame = keep(frame, known, "number format is not modelled", skipped)
    frame = keep(frame, frame["latency_ms"] > 0.0, "latency is not positive", skipped)
    parts = []
    for key, rows in frame.groupby(["src", "kernel_source", "attn_dtype", "kv_cache_dtype"], sort=True):
        source, kernel, dtype, stored = (str(value) for value in key)
        device_name = AICONFIGURATOR[source.split("/")[0]]
        batch, heads, kv_heads, dim, new, step, window = _numbers(
            rows, "batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl", "step", "window_size"
        )
        keys = new + step
        queries = 1.0 if decode else new
        window = np.where(window > 0.0, window, np.inf)
        form, width = FORMATS[dtype]
        if form not in catalog.processor(device_name).compute.matrix:
            keep(rows, np.zeros(len(rows)), "number format is not the device's", skipped)
            continue
        work = Attention(
            batch, heads, kv_heads, queries, keys, dim, dim, 2.0 * kv_heads * dim, True, window, decode, False,
            form, CACHE_BYTES[stored], width, True,
        )  # fmt: skip
        seconds = rows["latency_ms"].to_numpy(float) * 1e-3
        if decode and "/trtllm/" in source:
            cached = max(cache.capacity for cache in catalog.processor(device_name).cache.values())
            apart = (heads == kv_heads) | (np.asarray(work.cache_bytes) <= cached)
            keep(rows, apart, SHARED_CACHE, skipped)
            rows, seconds, work = rows[apart], seconds[apart], _chosen(work, apart)
        fine = possible(rows, work, seconds, device_name, catalog, skipped)
        parts.append(
            attention_part(
                device_name, rows[fine], seconds[fine], (_chosen(work, fine),),
                ["num_heads", "num_key_value_heads", "head_dim"],
                doubt=OTHER_KERNELS.get((source.split("/")[0], kernel), 0.0),
            )
        )  # fmt: skip
    return parts


def _chosen(work: Attention, mask: Any) -> Attention:
    """The rows of a work that a mask marks."""
    from dataclasses import fields, replace

    arrays = {f.name: getattr(work, f.name) for f in fields(work)}
    return replace(work, **{k: v[mask] for k, v in arrays.items() if isinstance(v, np.ndarray)})


def _numbers(rows: pd.DataFrame, *names: str) -> list[FloatArray]:
    return [rows[name].to_numpy(float) for name in names]


def _profiled(
    device: str, prefill: bool, column: str, *, cached_before: bool, doubt: float = 0.0
) -> Callable[[pd.DataFrame, Catalog, Counter[str]], Sequence[Part]]:
    """Rows of a layer profiler in vidur's columns; ``cached_before`` where the cache size leaves the chunk out."""

    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        chosen = frame["is_prefill"].astype(str).str.lower() == ("true" if prefill else "false")
        other = "prefill" if not prefill else "decode"
        rows = keep(frame, chosen, f"{other}: another quantity of this file", skipped)
        rows = keep(rows, rows[column] > 0.0, "latency is not positive", skipped)
        batch, heads, kv_heads, ranks, width, chunk, cached = _numbers(
            rows, "batch_size", "n_q_head", "n_kv_head", "num_tensor_parallel_workers", "n_embd",
            "prefill_chunk_size", "kv_cache_size",
        )  # fmt: skip
        dim = width / heads
        queries = chunk if prefill else 1.0
        keys = cached + queries if cached_before or not prefill else cached
        heads, kv_heads = heads / ranks, kv_heads / ranks
        work = Attention(
            batch, heads, kv_heads, queries, keys, dim, dim, 2.0 * kv_heads * dim, decode=not prefill
        )  # fmt: skip
        seconds = rows[column].to_numpy(float) * 1e-3
        fine = possible(rows, work, seconds, device, catalog, skipped)
        return [
            attention_part(
                device,
                rows[fine],
                seconds[fine],
                (_chosen(work, fine),),
                ["batch_size", "prefill_chunk_size"],
                doubt=doubt,
            )
        ]

    return split


MIXED = "llmservingsim/attention_mixed_batch_us.csv"
MIXED_DEVICES = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000-blackwell"}
MIXED_MODELS = {"meta-llama/Llama-3.1-8B": (32.0, 8.0)}


def _mixed(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    known = frame["gpu"].isin(list(MIXED_DEVICES)) & frame["model"].isin(list(MIXED_MODELS))
    frame = keep(frame, known, "device or model is not known", skipped)
    frame = keep(frame, frame["time_us"] > 0.0, "latency is not positive", skipped)
    parts = []
    for key, rows in frame.groupby(["gpu", "model", "tp"], sort=True):
        gpu, model, ranks = (str(value) for value in key)
        heads, kv_heads = (count / float(ranks.removeprefix("tp")) for count in MIXED_MODELS[model])
        for pure, chosen in _kinds(rows):
            chunk, before, sequences, context = _numbers(
                chosen, "prefill_chunk", "kv_prefill", "n_decode", "kv_decode"
            )
            width = 2.0 * kv_heads * HEAD_DIM
            prompt = Attention(1.0, heads, kv_heads, chunk, before + chunk, HEAD_DIM, HEAD_DIM, width)
            decodes = Attention(
                sequences, heads, kv_heads, 1.0, context, HEAD_DIM, HEAD_DIM, width, decode=pure == "decode"
            )
            works = {"prefill": (prompt,), "decode": (decodes,), "mixed": (prompt, decodes)}[pure]
            seconds = chosen["time_us"].to_numpy(float) * 1e-6
            parts.append(
                attention_part(
                    MIXED_DEVICES[gpu], chosen, seconds, works, ["prefill_chunk", "n_decode"],
                    operator_class="decode-attention" if pure == "decode" else "attention",
                    doubt=MIXED_KERNEL if pure == "mixed" else 0.0,
                )
            )  # fmt: skip
    return parts


def _kinds(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    prompt, decoding = rows["prefill_chunk"] > 0, rows["n_decode"] > 0
    kinds = {"prefill": prompt & ~decoding, "decode": decoding & ~prompt, "mixed": prompt & decoding}
    return [(name, rows[mask]) for name, mask in kinds.items() if mask.any()]


BENCHED = {"H20": "h20", "H800": "h800-sxm"}


def _benched(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    """Attention alone, one kernel a row; multi-head latent attention by its latent and rotary dimensions."""
    frame = keep(frame, frame["gpu"].isin(list(BENCHED)), "device is not in the catalog", skipped)
    frame = keep(frame, frame["latency_us"] > 0.0, "latency is not positive", skipped)
    frame = keep(frame, frame["dtype"] == "bf16", "number format is not modelled", skipped)
    parts = []
    columns = ["gpu", "kind", "phase", "heads_kvheads_dim", "kv_dtype"]
    for key, rows in frame.fillna({"kv_dtype": "bf16"}).groupby(columns, sort=True):
        gpu, kind, phase, shape, stored = (str(value) for value in key)
        heads, second, third = (float(number) for number in shape.split("-"))
        decode = phase == "decode"
        batch, context, sequence = _numbers(rows, "batch_size", "kv_len", "seq_len")
        queries, keys = (1.0, context) if decode else (sequence, sequence)
        kv_heads, query_dim, value_dim = second, third, third
        width = 2.0 * second * third
        if kind == "mla" and decode:  # absorbed: one latent, its rotary part beside it
            kv_heads, query_dim, value_dim, width = 1.0, second + third, second, second + third
        elif kind == "mla":  # expanded: a key and a value a head
            kv_heads, query_dim, value_dim = heads, second + third, second
            width = heads * (query_dim + value_dim)
        work = Attention(
            batch if decode else 1.0, heads, kv_heads, queries, keys, query_dim, value_dim, width, decode=decode,
            kv_bytes=CACHE_BYTES[stored],
        )  # fmt: skip
        seconds = rows["latency_us"].to_numpy(float) * 1e-6
        parts.append(
            attention_part(BENCHED[gpu], rows, seconds, (work,), ["heads_kvheads_dim"], doubt=OTHER_SOFTWARE)
        )
    return parts


DATASETS = (
    TableDataSet("aiconfigurator/attention_context.csv", _context),
    TableDataSet("aiconfigurator/attention_generation.csv", _generation),
    TableDataSet(
        "vidur/attention_a100_llama2_70b_median.csv#prefill",
        _profiled("a100-80gb-sxm", True, "attn_prefill_median_ms", cached_before=True, doubt=OLD_KERNEL),
    ),
    TableDataSet(
        "vidur/attention_a100_llama2_70b_median.csv#decode",
        _profiled("a100-80gb-sxm", False, "attn_decode_median_ms", cached_before=True, doubt=OTHER_SOFTWARE),
    ),
    TableDataSet(MIXED, _mixed),
    TableDataSet(
        "llmservingsim/h100_llama31_70b_tp4_attention.csv#prefill",
        _profiled("h100-sxm", True, "attn_prefill_median_ms", cached_before=False, doubt=OLD_KERNEL),
    ),
    TableDataSet(
        "llmservingsim/h100_llama31_70b_tp4_attention.csv#decode",
        _profiled("h100-sxm", False, "attn_decode_median_ms", cached_before=False, doubt=OLD_KERNEL),
    ),
    TableDataSet("infersim/attention_us.csv", _benched),
)

FITS = (
    Fit(
        "decode-attention",
        (
            Constant("decode_attention", "memory_efficiency", 0.4, 1.0),
            Constant("decode_attention", "key_latency", 1e-10, 1e-7),
            Constant("decode_attention", "narrow_efficiency", 0.2, 2.0),
            Constant("decode_attention", "block_latency", 1e-7, 2e-5),
            Constant("decode_attention", "combine_latency", 1e-8, 2e-5),
            Constant("decode_attention", "part_latency", 1e-9, 2e-6),
            Constant("decode_attention", "regroup_latency", 1e-8, 2e-5),
            Constant("decode_attention", "cache_bandwidth", 1.0, 20.0),
            Constant("decode_attention", "cache_share", 0.1, 1.5),
            Constant("decode_attention", "base_latency", 5e-7, 3e-5),
        ),
        ("aiconfigurator/attention_generation.csv", MIXED),
        "heads, KV heads, head dimension; or chunk, decodes",
        own=True,
        choices=tuple(
            {
                ("decode_attention", "split_sequences"): split,
                ("decode_attention", "ungrouped_sequences"): ungrouped,
                ("decode_attention", "unit_blocks"): blocks,
                ("decode_attention", "fill"): fill,
            }
            for split, ungrouped, blocks, fill in (
                (16.0, 16.0, 1.0, 1.0),
                (128.0, 1.0, 2.0, 1.0),
                (128.0, 1.0, 2.0, 2.0),
                (128.0, 1.0, 1.0, 2.0),
                (128.0, 128.0, 1.0, 1.0),
                (128.0, 128.0, 1.0, 2.0),
            )
        ),
    ),
    Fit(
        "attention",
        (
            Constant("attention", "peak_efficiency", 0.3, 1.3),
            Constant("attention", "memory_efficiency", 0.3, 1.0),
            Constant("attention", "softmax_dim", 0.5, 50.0),
            Constant("attention", "tile_latency", 1e-9, 2e-5),
            Constant("attention", "tail", 0.05, 2.0),
            Constant("attention", "exposed_traffic", 0.02, 1.0),
            Constant("attention", "narrow_efficiency", 0.3, 2.0),
            Constant("attention", "cache_bandwidth", 1.0, 15.0),
            Constant("attention", "store_time", 1e-11, 1e-7),
            Constant("attention", "base_latency", 5e-7, 3e-5),
        ),
        ("aiconfigurator/attention_context.csv", MIXED),
        "heads, KV heads, head dimension; or chunk, decodes",
        own=True,
        choices=tuple({("attention", "tile"): rows} for rows in (64.0, 128.0)),
    ),
)
