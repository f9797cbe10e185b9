"""Published figures of models that are read from flash: LLM in a flash, PowerInfer-2 and LLMCad, by their shipped scenarios."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from simulator.specs import MemroofError, shipped_root
from simulator.specs.source import read_document
from simulator.validation.datasets.claim import Claim, figure
from simulator.validation.datasets.runs import Content

UNITS = {"ms": 1e-3, "s": 1.0, "GB": 1e9, "GB/s": 1e9, "GiB/s": 2.0**30, "%": 0.01, "x": 1.0, "token/s": 1.0}
"""Factor of each unit of the file to SI."""
FLASH, POWER, CAD = "llm-in-a-flash2023", "powerinfer2-2024", "llmcad2023"
STATISTICS = "needs neuron statistics that were not read"
BOTH_WAYS = "says of several models or devices how far it goes at most, at least or on average"
DEVICE = "is a measurement of the device, which its file holds"
GIVEN = "is given to the scenario, not predicted"

Where = tuple[str, str]
"""A scenario below scenarios/published and a metric of it."""
_STEPS = {
    "naive": "table2-naive",
    "hybrid (half resident)": "table2-half-resident",
    "hybrid+predictor": "table2-predictor",
    "hybrid+predictor+windowing": "table2-window",
    "hybrid+predictor+windowing+bundling": "table2-bundled",
}
_TABLE_2 = {
    "flash bytes per token": "flash_bytes",
    "flash I/O time per token": "flash_time",
}
_WINDOW = {
    "predictor share of model": "predictor_share",
    "embeddings share": "embedding_and_head_share",
    "attention weights share": "attention_share",
    "FFN resident share (window 5)": "cached_neurons_share",
    "total resident share": "resident_share",
    "flash load time": "flash_time",
}
_TABLE_3: dict[tuple[str, str], str] = {
    ("OPT-6.7B", "M1 Max CPU fp32"): "table3-opt-cpu",
    ("OPT-6.7B", "M1 Metal fp16"): "table3-opt-m1-metal",
    ("OPT-6.7B", "M2 Ultra Metal fp16"): "table3-opt-m2-metal",
    ("OPT-6.7B", "RTX 4090 bf16"): "table3-opt-4090",
    ("Falcon-7B", "M1 Max CPU fp32"): "table3-falcon-cpu",
    ("Persimmon-8B", "M1 Max CPU fp32"): "table3-persimmon-cpu",
    ("Phi-2 2.7B", "M1 Max CPU fp32"): "table3-phi-2-cpu",
    ("Llama-2-7B (FATReLU)", "M1 Max CPU fp32"): "table3-llama2-cpu",
}
_PLAIN = ("table3-phi-2-cpu", "table3-llama2-cpu")
"""Those whose strategy is the half-resident model, with no cache of neurons."""
_FITTED = ("table3-opt-cpu", "table3-opt-m1-metal")
"""Those whose naive row says how fast the software computes."""
_CAD_ALONE = {
    "LLaMA-7B 4-bit": "table1-llama-7b-xiaomi-10",
    "LLaMA-13B 4-bit": "table1-llama-13b-xiaomi-10",
    "LLaMA-33B 4-bit": "table1-llama-33b-xiaomi-10",
    "GPT2-Large": "table1-gpt2-large-tx2",
    "mT5-Large": "table1-mt5-large-tx2",
    "T5-Large": "table1-t5-large-tx2",
    "T5-Base": "table1-t5-base-tx2",
}


def claim(row: Any) -> Claim:
    """Return a row as a shipped scenario and one of its metrics; raises :class:`MemroofError` with why it is left out."""
    folder, find = {
        "LLM in a flash": (FLASH, _flash),
        "PowerInfer-2": (POWER, _power),
        "LLMCad": (CAD, _cad),
    }[str(row.system)]
    scenario, metric = find(row)
    factor = UNITS.get(str(row.unit))
    if factor is None:
        raise MemroofError(f"unit {row.unit!r} is not known")
    return Claim(float(row.value) * factor, (_content(f"{folder}/{scenario}"),), figure(metric))


@lru_cache(maxsize=64)
def _content(name: str) -> Content:
    path = shipped_root() / "scenarios" / "published" / f"{name}.yaml"
    tree = dict(read_document(path).data)
    for key in ("expect", "description", "source"):
        tree.pop(key, None)
    return tree


def _flash(row: Any) -> Where:
    strategy, metric = str(row.strategy), str(row.metric)
    if metric in _TABLE_2 and strategy in _STEPS:
        return _STEPS[strategy], _TABLE_2[metric]
    if metric in _WINDOW:
        return "window-5-fp32", _WINDOW[metric]
    if metric in (
        "new FFN neurons per token (window 5)",
        "active FFN neurons per token",
        "memory management time",
    ):
        raise MemroofError(GIVEN)
    scenario = _TABLE_3.get((str(row.model), str(row.hardware)))
    if scenario in _FITTED and strategy == "naive":
        raise MemroofError(GIVEN)
    if metric == "time per token" and scenario:
        return scenario, _table_3_metric(scenario, strategy)
    if str(row.model) == "-" or metric == "flash read throughput":
        raise MemroofError(DEVICE)
    raise MemroofError(BOTH_WAYS)


def _table_3_metric(scenario: str, strategy: str) -> str:
    if strategy == "naive":
        alone = scenario == "table3-persimmon-cpu"
        return "time_per_output_token" if alone else "naive_time_per_output_token"
    if strategy.startswith("hybrid"):
        return "time_per_output_token" if scenario in _PLAIN else "hybrid_time_per_output_token"
    if strategy.startswith("same +"):
        raise MemroofError("drafts beside a cache of neurons are not modelled")
    if scenario in _PLAIN:
        raise MemroofError(STATISTICS)
    return "time_per_output_token"


def _power(row: Any) -> Where:
    metric, hardware, model = str(row.metric), str(row.hardware), str(row.model)
    if str(row.kind) == "device-microbenchmark":
        raise MemroofError(DEVICE)
    baseline = str(row.baseline_strategy)
    over = "llmflash" if "LLMFlash" in baseline else "mmap" if "llama.cpp" in baseline else ""
    if model == "TurboSparse-Mixtral-47B":
        scenario = (
            "turbosparse-mixtral-47b-7gb" if "7 GB limit" in hardware else "turbosparse-mixtral-47b-19gb"
        )
        if metric == "decode speed":
            return scenario, "decode_throughput"
        if metric == "speedup" and over:
            return scenario, f"speedup_over_{over}"
    phone = "bamboo-7b-ace-2" if "Ace 2" in hardware else "bamboo-7b-oneplus-12"
    if metric == "speedup mean" and over:
        return phone, f"speedup_over_{over}"
    if metric.startswith("share of time computing"):
        return phone, "llmflash_busy_share" if "LLMFlash" in str(row.strategy) else "busy_share"
    if "miss rate" in metric:
        raise MemroofError(GIVEN)
    raise MemroofError(BOTH_WAYS)


def _cad(row: Any) -> Where:
    metric, model = str(row.metric), str(row.model)
    if metric == "inference time per token" and model in _CAD_ALONE:
        return _CAD_ALONE[model], "time_per_output_token"
    if metric == "time per token (best)":
        return "llama2-13b-xiaomi-11", "time_per_output_token"
    if metric.startswith("share of time in disk"):
        return "table1-llama-13b-xiaomi-10", "flash_share"
    if metric.startswith("verification speedup"):
        return "llama2-13b-xiaomi-11", "verification_speedup"
    if metric == "peak memory demanded":
        raise MemroofError("counts buffers of the engine that are not described")
    if "slowdown" in metric:
        raise MemroofError(GIVEN)
    raise MemroofError(BOTH_WAYS)
