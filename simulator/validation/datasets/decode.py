"""One sequence on one device: llama.cpp's prefill and decode rates, and decode rates of desktop and small machines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.runs import (
    TOO_LARGE,
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Case,
    Content,
    Metrics,
    named,
    run_parts,
)

if TYPE_CHECKING:
    import pandas as pd

SPLIT_LAYERS = "layers split over GPUs: no strategy yet"
ON_CPU = "decoding on a CPU: serving prices accelerators"
PHYSICAL_BATCH = 512
"""Tokens of a pass through the layers (llama.cpp's ubatch)."""
SHORT = (64, 512)
"""Prompt and answer where a table does not say: a chat's first exchange."""


def alone(device: str, model: str, prompt: int, output: int, **strategy: Any) -> Content:
    """Return the scenario of one sequence by itself, in an engine that hides its host's work."""
    return {
        "kind": "serving", "hardware": {"device": device}, "model": model,
        "workload": {"arrival": "offline", "requests": 1, "prompt": prompt, "output": output},
        "strategy": {
            "precision": "fp16", "max_batch": 1, "max_batched_tokens": PHYSICAL_BATCH, "memory_utilization": 1.0,
            "schedule_ahead": True, **strategy,
        },
    }  # fmt: skip


def decode_rate(metrics: Metrics, row: Any) -> tuple[float, float]:
    """Return tokens a second of decoding."""
    gap = metrics["time_per_output_token_p50"]
    return 1.0 / gap.value, gap.error


# --- llama.cpp -------------------------------------------------------------------------------------------------------

GPUS = {
    "3090 24GB": "rtx-3090", "4090 24GB": "rtx-4090", "5090 32GB": "rtx-5090", "A100 PCIe 80GB": "a100-80gb-pcie",
    "A100 SXM 80GB": "a100-80gb-sxm", "A40 48GB": "a40", "L40S 48GB": "l40s", "H100 PCIe 80GB": "h100-pcie",
    "M2 Ultra 76-Core GPU 192GB": "m2-ultra",
}  # fmt: skip
WEIGHTS = {"Q4_K_M": {"8B": 4.9, "70B": 4.82}, "F16": {"8B": 16.0, "70B": 16.0}}
"""Bits of a weight: sizes of the GGUF files over the models' parameters (4.92 GB and 42.5 GB in Q4_K_M)."""


def _llama_content(row: Any) -> Content:
    """Products in fp16 (4-bit weights are widened first), a 16-bit cache; decoding starts from an empty context."""
    device = named(GPUS, row.gpu.replace("\u2011", "-"), SPLIT_LAYERS if "*" in row.gpu else UNKNOWN_DEVICE)
    size, quantisation = row.model.split()
    # one token less: the longest rows fill Llama 3's positions
    prompt, output = (1, int(row.n_tokens) - 1) if row.phase == "decode" else (int(row.n_tokens) - 1, 1)
    return alone(device, f"llama3-{size.lower()}", prompt, output, weight_bits=WEIGHTS[quantisation][size])


def _prefill_rate(metrics: Metrics, row: Any) -> tuple[float, float]:
    first = metrics["time_to_first_token_p50"]
    return float(row.n_tokens) / first.value, first.error


def _llama(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, phase: str) -> Sequence[Part]:
    other = "prefill" if phase == "decode" else "decode"
    frame = keep(frame, frame["phase"] == phase, f"priced in #{other}", skipped)
    for row in frame[frame["status"] == "oom"].itertuples(index=False):
        skipped[_shortage(row, catalog)] += 1
    frame = frame[frame["status"] == "ok"]
    odd = (
        (frame["phase"] == "prefill")
        & frame["model"].str.endswith("F16")
        & frame["gpu"].str.match("A100 SXM|L40S")
    )
    frame = keep(frame, ~odd, "implausible next to its siblings, as the source's README says", skipped)
    return run_parts(
        frame, catalog, skipped, content=_llama_content, measured=lambda rows: rows["tokens_per_s"].to_numpy(float),
        quantity=decode_rate if phase == "decode" else _prefill_rate, groups=("gpu", "model"),
    )  # fmt: skip


def _shortage(row: Any, catalog: Catalog) -> str:
    """Say whether a run that ended out of memory is predicted not to fit."""
    try:
        Case.of(_llama_content(row), catalog)
    except MemroofError as error:
        return "out of memory, as predicted" if str(error) == TOO_LARGE else str(error)
    return "out of memory, predicted to fit"


# --- desktop and small machines --------------------------------------------------------------------------------------

SYSTEM_GPUS = {"4090": "rtx-4090", "5090": "rtx-5090", "3090": "rtx-3090"}
OLLAMA = {
    "DeepSeek R1 14b": ("qwen2.5-14b", 4.87), "Llama 3.2:3b": ("llama3.2-3b", 5.0), "Llama 3.1:70b": ("llama3.1-70b", 4.82),
    "gpt-oss 20b": ("gpt-oss-20b", 5.3),
}  # fmt: skip
"""Model and bits of a weight: sizes of ollama's default files (9.0, 2.0, 42.5 and 13.8 GB) over the parameters."""
EXLLAMA = {
    "Llama 7B": "llama-7b", "Llama 13B": "llama-13b", "Llama 33B": "llama-30b", "CodeLlama 34B": "codellama-34b",
    "Llama2 7B": "llama2-7b", "Llama2 70B": "llama2-70b",
}  # fmt: skip
GPTQ_BITS = 4.15
"""Of GPTQ with groups of 128: 4 bits, a 16-bit scale and a 4-bit zero a group."""


def _system_content(row: Any) -> Content:
    found = re.search(r"(?:Nvidia|RTX)(?: RTX)? (\d{4})(?!\d)( Ti| Super)?", row.system)
    if row.device != "GPU":
        raise MemroofError(ON_CPU if row.device == "CPU" else "layers on GPU and CPU: no strategy yet")
    device = named(SYSTEM_GPUS, "".join(found.groups(default="")) if found else "", UNKNOWN_DEVICE)
    prompt, output = SHORT
    if row.engine != "exllamav2":
        model, bits = OLLAMA.get(row.model, ("", 0.0))
        if not model:
            raise MemroofError(UNKNOWN_MODEL)
        return alone(device, model, prompt, output, weight_bits=bits)
    stored = re.search(r"EXL2 ([\d.]+) bpw", row.model)
    name = named(EXLLAMA, re.split(r" EXL2| GPTQ", row.model)[0], UNKNOWN_MODEL)
    return alone(device, name, prompt, output, weight_bits=float(stored.group(1)) if stored else GPTQ_BITS)


def _systems(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    return run_parts(
        frame, catalog, skipped, content=_system_content,
        measured=lambda rows: rows["decode_tokens_per_s"].to_numpy(float), quantity=decode_rate,
        groups=("system", "model"),
    )  # fmt: skip


DATASETS = (
    TableDataSet("llamacpp-xiongjiedai/tokens_per_s.csv#decode", partial(_llama, phase="decode")),
    TableDataSet("llamacpp-xiongjiedai/tokens_per_s.csv#prefill", partial(_llama, phase="prefill")),
    TableDataSet("ondevice/decode_tokens_per_s.csv", _systems),
)
