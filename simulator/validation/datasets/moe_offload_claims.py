"""Published figures of systems that offload experts: ProMoE, MoNDE and eMoE, as scenarios and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from simulator.specs import MemroofError
from simulator.validation.datasets.claim import Claim, Value, figure
from simulator.validation.datasets.runs import Content, Metrics

MODELS: dict[str, dict[str, str]] = {
    "deepseek-moe-16b": {},
    "deepseek-v2-lite": {},
    "qwen1.5-moe-a2.7b": {},
    "qwen2-57b-a14b": {"expert_precision": "int4", "weight_precision": "int4"},
    "mixtral-8x7b": {"expert_precision": "int4", "weight_precision": "int4"},
}
"""The five models of ProMoE, the two largest with weights in 4 bits."""
PROMOE = {"prefetch": {"accuracy": 0.78, "lead": 3, "latency": "200 us"}}
"""See scenarios/published/promoe2024/deepseek-moe-prefetch.yaml."""
FRAMEWORKS: dict[str, dict[str, Any]] = {
    "transformers": {"execution": "eager", "issue_time": "33 us"},
    "llama.cpp": {"execution": "captured"},
}
BASELINES: dict[str, dict[str, Any]] = {
    "static expert cache": {"prefetch": None, "policy": "static", "loads": "in-turn"},
    "LRU expert cache": {"prefetch": None, "policy": "lru", "loads": "in-turn"},
    "offload/unified memory": {
        "prefetch": None,
        "policy": "layers",
        "loads": "in-turn",
        "copy_rate": "12 GB/s",
    },
    "layer offload": {"prefetch": None, "policy": "layers", "loads": "whole-layer", "copy_rate": "12 GB/s"},
}
BUILT_IN: dict[str, str] = {"transformers": "offload/unified memory", "llama.cpp": "layer offload"}
MONDE: dict[str, str] = {"Switch-Large-128": "switch-large-128", "NLLB-MoE": "nllb-moe-54b"}


def claim(row: Any) -> Claim:
    """Return the claim of a row; raises MemroofError with the reason where there is none."""
    if not isinstance(row.value, (int, float)) or math.isnan(row.value):
        raise MemroofError("row states no number")
    found = {"ProMoE": _promoe, "MoNDE": _monde, "eMoE": _emoe}[row.system](row)
    scale = {"%": 0.01, "ms": 1e-3, "GB": 1e9}.get(row.unit, 1.0)
    return Claim(float(row.value) * scale, *found)


Found = tuple[tuple[Content, ...], Value]


# --- ProMoE ----------------------------------------------------------------------------------------------------------


def _promoe(row: Any) -> Found:
    if row.metric in ("speedup mean", "speedup max"):
        phase = "prefill" if "prefill" in row.workload else "decode"
        built_in = row.baseline_strategy == "framework-built-in offloading"
        if built_in and phase == "decode":
            raise MemroofError("llama.cpp decodes on the CPU what is not on the GPU: how much is not stated")
        frameworks = [name for name in FRAMEWORKS if str(row.workload).startswith(name)] or list(FRAMEWORKS)
        contents = []
        for framework in frameworks:
            baseline = BASELINES[BUILT_IN[framework] if built_in else row.baseline_strategy]
            contents += [_generation(model, PROMOE | FRAMEWORKS[framework], baseline) for model in MODELS]
        return tuple(contents), _over_models(f"{phase}_speedup", max if row.metric.endswith("max") else _mean)
    if row.metric in ("TPOT", "of which miss fetch"):
        alone = _generation("deepseek-moe-16b", {"policy": "lru", "loads": "in-turn"}, None)
        return (alone,), figure("time_per_output_token" if row.metric == "TPOT" else "decode_expert_wait")
    if "cache" in str(row.strategy) or "low" in str(row.strategy):
        raise MemroofError("ends of a sweep over cached shares that are not stated")
    if str(row.metric).startswith("expert loading share") and row.workload == "decode":
        model = {"DeepSeek-MoE": "deepseek-moe-16b", "Qwen2-MoE": "qwen2-57b-a14b"}[row.model]
        both = _generation(model, PROMOE | FRAMEWORKS["transformers"], BASELINES["LRU expert cache"])
        return (both,), figure(f"{'' if row.strategy == 'ProMoE' else 'baseline_'}decode_expert_wait_share")
    raise MemroofError(f"{row.system}: no scenario for {row.metric}")


def _generation(model: str, strategy: dict[str, Any], baseline: dict[str, Any] | None) -> Content:
    chosen = {"method": "expert-cache", "cached": 0.5, "routing": {"reuse": 0.1}, **MODELS[model], **strategy}
    if baseline is not None:
        chosen["baseline"] = baseline
    return {
        "kind": "offload",
        "hardware": {"node": "desktop-4090", "changes": {"components": {"dram": {"capacity": "128 GiB"}}}},
        "model": model, "workload": {"prompt": 128, "output": 25, "requests": 1}, "strategy": chosen,
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _over_models(name: str, choose: Callable[[Sequence[float]], float]) -> Value:
    """Return the mean or the largest of a metric over scenarios, with their mean relative error: constants are the same."""

    def value(found: Sequence[Metrics]) -> tuple[float, float]:
        metrics = [each[name] for each in found]
        return choose([each.value for each in metrics]), _mean([each.error for each in metrics])

    return value


# --- MoNDE -----------------------------------------------------------------------------------------------------------


def _monde(row: Any) -> Found:
    weights = {"expert weights": "expert_bytes", "non-expert weights": "non_expert_bytes"}
    if row.metric in weights:
        return (_near(MONDE[row.model], "balanced", {"misses": "fetch"}),), figure(weights[row.metric])
    part = "encoder" if "encoder" in str(row.workload) else "decode"
    if row.metric == "expert latency ratio":
        content = _near("nllb-moe-54b", "home", {"experts": "dram"})
        return (content,), figure(f"{'prefill' if part == 'encoder' else 'decode'}_expert_speedup")
    if row.metric == "throughput ratio mean":
        models = [MONDE[row.model]] if row.model in MONDE else list(MONDE.values())
        contents = tuple(_near(model, "balanced", {"misses": "fetch"}) for model in models)
        return contents, _over_models(f"{part}_speedup", _mean)
    raise MemroofError("largest ratio over cases that are not stated")


def _near(model: str, misses: str, baseline: dict[str, Any]) -> Content:
    return {
        "kind": "offload", "hardware": "monde-server", "model": model, "workload": {"prompt": 512, "output": 16},
        "strategy": {
            "method": "expert-cache", "experts": "cxl", "policy": "none", "misses": misses, "execution": "eager",
            "routing": {"skew": 1.0}, "baseline": baseline,
        },
    }  # fmt: skip


# --- eMoE ------------------------------------------------------------------------------------------------------------


def _emoe(row: Any) -> Found:
    if row.model != "Mixtral-8x7B":
        raise MemroofError("OpenMoE, TinyMixtral and means over models and tasks: configurations not stated")
    on_demand = {"policy": "lru", "cached": 0.25, "loads": "in-turn"}
    known: dict[str, tuple[dict[str, Any], str]] = {
        "GPU memory at 512-token prompts, all experts": (on_demand, "resident_memory"),
        "GPU memory at 512-token prompts, 60% experts": (
            {
                "policy": "predicted",
                "predicted": {"accuracy": 0.7, "prompts": 40},
                "cached": 0.6,
                "misses": "substitute",
            },
            "accelerator_memory",
        ),
        "slowdown of naive dynamic loading": (on_demand, "decode_slowdown"),
        "transfer time over compute time": (on_demand, "decode_wait_over_compute"),
    }
    if row.metric not in known:
        raise MemroofError(f"{row.system}: no scenario for {row.metric}")
    strategy, metric = known[row.metric]
    content: Content = {
        "kind": "offload", "hardware": "server-4xa100-40gb", "model": "mixtral-8x7b",
        "workload": {"prompt": 512, "output": 64},
        "strategy": {
            "method": "expert-cache", "tensor_parallel": 4, "execution": "eager", "routing": {"reuse": 0.1}, **strategy,
        },
    }  # fmt: skip
    return (content,), figure(metric)
