"""Published figures of KTransformers, llama.cpp and Neural Speed, as scenarios."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator.specs import MemroofError
from simulator.validation.dataset import number_in
from simulator.validation.datasets.claim import Claim, Value, figure, ratio
from simulator.validation.datasets.runs import Content, Metrics

ELSEWHERE = "the same figure as a row of offload/llm_offload_throughput.csv"
RESIDENT = "all layers on the device: judged in llamacpp-xiongjiedai/tokens_per_s.csv"
INPUT = "an input of the model: a peak, a rate of a kernel or a count of launches"
UNSTATED = "the length of the prompt, which decides it, is not stated"
NOT_MODELLED = "a mechanism whose absence is not described in figures"

PAPER = "server-a100-8452y"
DEEPSEEK, CODER, QWEN = "deepseek-v3", "deepseek-v2", "qwen2-57b-a14b"
MODELS = (DEEPSEEK, CODER, QWEN)
"""DeepSeek-V2.5 has the dimensions of DeepSeek-V2."""
PROMPTS = (32, 512, 8192)
"""Prompts over which the paper's prefill speed-ups range."""
DECODE = 512
"""Prompt of decode figures."""
LAUNCHES: Mapping[str, Mapping[str, Any]] = {
    "fiddler": {"kernels": "onednn", "launches": 7000, "launch_time": "16 us"},
    "llama.cpp": {"kernels": "ggml", "launches": 3000, "launch_time": "5 us"},
}
"""Kernel launches of a token and what one costs, by Chen et al. 2025."""
DEFERRED = (2, 3, 4, 5)
"""Deferred experts that are tried."""


def claim(row: Any) -> Claim:
    """Return a row of the table of claims as scenarios; raises :class:`MemroofError` with the reason where it is none."""
    if row.system == "llama.cpp":
        raise MemroofError(RESIDENT)
    if row.system.startswith("Intel"):
        return _cpu_alone(row)
    if re.search(r"V0\.2|llama\.cpp 8 experts", str(row.strategy)):
        raise MemroofError(ELSEWHERE)
    if "V0.3" in str(row.strategy) and row.metric == "prefill":
        return _packed(row)
    if row.metric == "Fiddler-style prefill DS-V3":
        raise MemroofError(UNSTATED)
    found = FIGURES.get(row.metric)
    if found is None:
        raise MemroofError(INPUT if re.search("kernel|theoretical", row.metric) else NOT_MODELLED)
    return found(row)


# --- scenarios -------------------------------------------------------------------------------------------------------


def _paper(model: str, prompt: int, output: int = 32, **strategy: Any) -> Content:
    """bf16 weights on two sockets of a Xeon 8452Y beside an A100: KTransformers unless the strategy says otherwise."""
    return {
        "kind": "offload", "hardware": {"node": PAPER}, "model": model,
        "workload": {"prompt": prompt, "output": output},
        "strategy": {"method": "host-compute", "kernels": "amx", "numa": "split", **strategy},
    }  # fmt: skip


def _other(system: str, model: str, prompt: int, output: int = 32) -> Content:
    """A system that calls experts where they lie, without a captured graph, pages over both sockets."""
    return _paper(model, prompt, output, **{"numa": "interleaved", **LAUNCHES[system]})


def _tutorial(prompt: int, output: int, **strategy: Any) -> Content:
    return {
        "kind": "offload", "hardware": {"node": "server-4090d-6454s"}, "model": DEEPSEEK,
        "workload": {"prompt": prompt, "output": output},
        "strategy": {"method": "host-compute", "gpu_weight_bits": 4.85, "cpu_weight_bits": 4.85, **strategy},
    }  # fmt: skip


def _packed(row: Any) -> Claim:
    """KTransformers 0.3: int8 weights with scales in the layout of AMX, cut over both sockets."""
    prompt = number_in(row.workload, r"(\d+)K") * 1024
    experts = number_in(row.strategy, r"(\d) experts")
    strategy = {"kernels": "amx", "numa": "split", "cpu_weight_bits": 8.5, "experts_per_token": experts}
    return Claim(float(row.value), (_tutorial(prompt, 1, **strategy),), figure("prefill_throughput"))


# --- figures ---------------------------------------------------------------------------------------------------------


def _memory(content: Content, name: str) -> Callable[[Any], Claim]:
    # the source counts in GB as operating systems do: GiB
    return lambda row: Claim(float(row.value) * 2**30, (content,), figure(name))


def _speedup(
    metric: str, prompts: Sequence[int], pick: Callable[[Sequence[float]], float]
) -> Callable[[Any], Claim]:
    """KTransformers over the others: the least or the most over models, systems and prompts."""
    cases = [(model, prompt) for model in MODELS for prompt in prompts]
    contents = [_paper(*case) for case in cases]
    for system in LAUNCHES:
        contents += [_other(system, *case) for case in cases]
    count = len(cases)

    def value(found: Sequence[Metrics]) -> tuple[float, float]:
        own = found[:count]
        ratios = [
            (mine[metric].value / theirs[metric].value, math.hypot(mine[metric].error, theirs[metric].error))
            for block in range(len(LAUNCHES))
            for mine, theirs in zip(own, found[count * (block + 1) : count * (block + 2)], strict=True)
        ]
        chosen = pick([each for each, _ in ratios])
        return next(pair for pair in ratios if pair[0] == chosen)

    return lambda row: Claim(float(row.value), tuple(contents), value)


def _deferral(models: Sequence[str], *, gain: bool) -> Callable[[Any], Claim]:
    """Decode with the best count of deferred experts over decode without."""
    contents = [_paper(model, DECODE, deferred_experts=count) for model in models for count in (0, *DEFERRED)]
    tried = len(DEFERRED) + 1

    def value(found: Sequence[Metrics]) -> tuple[float, float]:
        rates = [metrics["decode_throughput"].value for metrics in found]
        groups = [rates[at : at + tried] for at in range(0, len(rates), tried)]
        best = max(max(group) / group[0] for group in groups)
        return (best - 1.0 if gain else best), found[0]["decode_throughput"].error

    scale = 0.01 if gain else 1.0
    return lambda row: Claim(float(row.value) * scale, tuple(contents), value)


def _figure(content: Content, value: Value, scale: float = 1.0) -> Callable[[Any], Claim]:
    return lambda row: Claim(float(row.value) * scale, (content,), value)


def _split(row: Any) -> Claim:
    contents = (_paper(DEEPSEEK, DECODE), _paper(DEEPSEEK, DECODE, numa="interleaved"))
    return Claim(float(row.value), contents, ratio("decode_throughput"))


FIGURES: Mapping[str, Callable[[Any], Claim]] = {
    "DRAM needed, single socket Q4": _memory(_tutorial(500, 2, sockets=1), "dram_weight_bytes"),
    "DRAM needed, V0.3 int8": _memory(_tutorial(500, 2, cpu_weight_bits=8.0), "dram_weight_bytes"),
    "VRAM needed (at least)": _memory(_tutorial(8192, 2), "gpu_peak_bytes"),
    "prefill speedup low": _speedup("prefill_throughput", PROMPTS, min),
    "prefill speedup high": _speedup("prefill_throughput", PROMPTS, max),
    "decode speedup low": _speedup("decode_throughput", (DECODE,), min),
    "decode speedup high": _speedup("decode_throughput", (DECODE,), max),
    "expert deferral extra throughput max": _deferral(MODELS, gain=False),
    "DS-V3 decode gain of deferral": _deferral((DEEPSEEK,), gain=True),
    "Fiddler-style decode DS-V3": _figure(_other("fiddler", DEEPSEEK, DECODE), figure("decode_throughput")),
    "NUMA tensor parallel decode gain": _split,
    "CPU utilisation before deferral": _figure(_paper(DEEPSEEK, DECODE), figure("cpu_utilization"), 0.01),
    "GPU utilisation before deferral": _figure(_paper(DEEPSEEK, DECODE), figure("gpu_utilization"), 0.01),
    "GPU utilisation after deferral": _figure(
        _paper(DEEPSEEK, DECODE, deferred_experts=3), figure("gpu_utilization"), 0.01
    ),
}


# --- CPUs alone ------------------------------------------------------------------------------------------------------

INT4_BITS = 4.5
"""Of a weight in groups of 32 with a 16-bit scale."""


def _alone(model: str, kernels: str) -> Content:
    return {
        "kind": "offload", "hardware": {"node": "xeon-8480-plus-2s"}, "model": model,
        "workload": {"prompt": 32, "output": 32},
        "strategy": {
            "method": "host-compute", "placement": "layers", "kernels": kernels, "sockets": 1,
            "cpu_weight_bits": INT4_BITS,
        },
    }  # fmt: skip


def _cpu_alone(row: Any) -> Claim:
    """One socket of a Xeon 8480+ with the kernels of this project's CPUs: the smallest and the largest model of the paper."""
    metric = str(row.metric)
    if metric.startswith("time per generated token"):
        model = "gpt-neox-20b" if metric.endswith("high") else "llama3.2-3b"
        content = _alone(model, "kt-kernel")
        return Claim(float(row.value) * 1e-3, (content,), figure("time_per_output_token"))
    if metric.startswith("speedup over ggml"):
        contents = (_alone("llama2-7b", "kt-kernel"), _alone("llama2-7b", "ggml"))
        return Claim(float(row.value), contents, ratio("decode_throughput"))
    raise MemroofError("no figure")
