"""Published figures of systems that train with tensors over several tiers, as scenarios of a tiered step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator.specs import MemroofError
from simulator.validation.datasets.claim import Claim, figure, ratio
from simulator.validation.datasets.runs import Content, Metrics

UNMODELLED = "figure of a kind that no metric of a training step is"
SEVERAL_NODES = "several nodes"
UNNAMED = "configurations behind the figure are not named"
SEQUENCE = 1024
MICRO_BATCH = 16
"""Sequences that pass a layer at once where the batch is larger; the systems stream tensors inside a layer instead."""


def claim(row: Any) -> Claim:
    """Return a row of the table as scenarios and a figure of theirs.

    Raises
    ------
    MemroofError
        With the reason, where a row cannot be modelled.
    """
    readers: Mapping[str, Callable[[Any], Claim]] = {
        "Ratel": _ratel, "Fuyou": _ratel, "SSDTrain": _ssdtrain, "ZeRO-Offload": _zero_offload,
        "ZeRO-3 Offload": _zero_3, "ZeRO-Infinity": _zero_infinity, "CXL-aware allocator": _cxl,
    }  # fmt: skip
    return readers[row.system](row)


def _content(hardware: Any, model: str, batch: int, sequence: int, **strategy: Any) -> Content:
    return {
        "kind": "offload", "hardware": hardware, "model": model,
        "workload": {"global_batch": batch, "sequence": sequence},
        "strategy": {"method": "tiered-step", **strategy},
    }  # fmt: skip


# --- Ratel and Fuyou -------------------------------------------------------------------------------------------------

RATEL_MODELS = (("175B", "gpt3-175b"), ("70B", "gpt-70b-8192"), ("13B", "gpt3-13b"))
BEST_BATCH = 64
"""Where an abstract gives a throughput without its batch: the one at which the artifact's figure is highest."""


def _ratel(row: Any) -> Claim:
    model = next((name for size, name in RATEL_MODELS if size in row.model), None)
    if model is None or row.metric not in ("throughput", "global throughput", "trainable on one RTX 4090"):
        raise MemroofError(UNNAMED)
    gpus = int(_number(r"^(\d+)x RTX", row.hardware) or 1)
    drives = int(_number(r"(\d+) SSDs? used", row.hardware) or 12)
    trainable = row.unit == "bool"
    batch = int(_number(r"batch (\d+)", row.workload) or (8 if trainable else BEST_BATCH))
    components: dict[str, Any] = {"nvme": {"count": drives}}
    if gpus > 1:
        components["gpu"] = {"count": gpus}
    node = "server-1x4090" if gpus == 1 else "server-4x4090"
    content = _content(
        {"node": node, "changes": {"components": components}}, model, batch, SEQUENCE,
        micro_batch=_divisor(batch // gpus), accumulation="layer", parameters="nvme", states="nvme",
        gradients="dram", update="layer", activations="balanced", kept_sublayers=0,
        **({"parameter_tiles": 4} if trainable else {}),
    )  # fmt: skip
    if trainable:
        return Claim(
            float(row.value), (content,), lambda found: (float(found[0]["free_memory"].value >= 0), 0.0)
        )
    return Claim(float(row.value) * 1e12, (content,), figure("model_flops_per_second"))


def _divisor(sequences: int) -> int:
    """Return the largest micro-batch that divides the sequences of a replica."""
    return next(size for size in range(MICRO_BATCH, 0, -1) if sequences % size == 0)


# --- SSDTrain --------------------------------------------------------------------------------------------------------

BERTS = {8192: "bert-8192-4l", 12288: "bert-12288-3l", 16384: "bert-16384-2l"}


def _ssdtrain(row: Any) -> Claim:
    every = tuple(_bert(width) for width in BERTS)
    metric, value = row.metric, float(row.value)
    width = int(_number(r"hidden (\d+)", row.model) or 0)
    if metric.startswith("offloaded bytes") and width:
        return Claim(value * 1e9, (_bert(width),), figure("activation_bytes_moved"))
    if metric.startswith("required PCIe write bandwidth") and width:
        return Claim(value * 1e9, (_bert(width),), figure("activation_write_bandwidth"))
    if metric == "activation peak memory reduction (range low)":
        return Claim(value, every, _over(min, lambda found: 100.0 * found["activation_peak_reduction"].value))
    if metric == "activation peak memory reduction (range high)":
        return Claim(value, every, _over(max, lambda found: 100.0 * found["activation_peak_reduction"].value))
    if metric == "step-time ratio":
        return Claim(value, every, _over(max, lambda found: found["step_time_ratio"].value))
    if metric == "batch size at equal activation memory":
        # activations grow in proportion to the batch
        return Claim(
            value, (_bert(width),), _over(max, lambda found: 1.0 / (1.0 - found["activation_peak_reduction"].value))
        )  # fmt: skip
    raise MemroofError(UNNAMED if "activation peak" in metric else UNMODELLED)


def _bert(width: int) -> Content:
    return _content(
        "server-2xa100-p5800x", BERTS[width], 16, SEQUENCE, tensor_parallel=2, optimizer="sgd", master_weights=False,
        activations="nvme", activation_amount="hidden", kept_sublayers=0, direct_storage=True,
    )  # fmt: skip


def _over(
    choose: Callable[[Sequence[float]], float], of: Callable[[Metrics], float]
) -> Callable[[Sequence[Metrics]], tuple[float, float]]:
    return lambda found: (choose([of(metrics) for metrics in found]), 0.0)


# --- ZeRO-Offload, ZeRO-3 Offload, ZeRO-Infinity ---------------------------------------------------------------------

V100 = "server-1xv100-32gb"
ZERO_2: Mapping[str, Any] = {
    "states": "dram", "gradients": "dram", "recompute": "full", "fused_attention": False,
}  # fmt: skip
ZERO_3: Mapping[str, Any] = {
    **ZERO_2, "parameters": "dram", "activations": "dram", "parameter_tiles": 4, "gradient_precision": "fp32",
}  # fmt: skip
INFINITY: Mapping[str, Any] = {
    **ZERO_2, "parameters": "nvme", "states": "nvme", "gradients": "nvme", "activations": "dram", "parameter_tiles": 12,
    "gradient_precision": "fp32",
}  # fmt: skip


def _seeking(content: Content) -> Content:
    """Ask for the largest model too."""
    return {**content, "expect": {"largest_model": {"value": 1.0, "source": "asked for"}}}


def _zero_offload(row: Any) -> Claim:
    value = float(row.value)
    if row.metric == "max trainable model":
        content = _seeking(_content(V100, "gpt-10b-4096", 1, SEQUENCE, **ZERO_2))
        return Claim(value * 1e9, (content,), figure("largest_model"))
    if row.metric == "max trainable model with model parallelism":
        content = _seeking(_content("dgx-2", "gpt-70b-8192", 1, SEQUENCE, tensor_parallel=16, **ZERO_2))
        return Claim(value * 1e9, (content,), figure("largest_model"))
    if row.metric == "throughput" and row.model == "10B":
        content = _content(V100, "gpt-10b-4096", 10, SEQUENCE, micro_batch=5, **ZERO_2)
        return Claim(value * 1e12, (content,), figure("hardware_flops_per_second_per_gpu"))
    raise MemroofError(UNNAMED)


def _zero_3(row: Any) -> Claim:
    _one_node(row)
    if row.metric == "max trainable model":
        content = _seeking(_content(V100, "gpt-40b-8192", 4, SEQUENCE, **ZERO_3))
        return Claim(float(row.value) * 1e9, (content,), figure("largest_model"))
    raise MemroofError(UNNAMED)


def _zero_infinity(row: Any) -> Claim:
    _one_node(row)
    if "RTX 4090" in row.hardware:
        # DeepSpeed's pipeline_read and pipeline_write are off by default (from memory, unverified)
        strategy = {
            **INFINITY,
            "parameter_tiles": 1,
            "fused_attention": True,
            "head_tiles": 4,
            "state_buffers": 1,
        }
        content = _content("server-1x4090", "gpt3-13b", 32, SEQUENCE, **strategy)
        return Claim(float(row.value) * 1e12, (content,), figure("model_flops_per_second_per_gpu"))
    if row.metric == "max model" and row.hardware == "one DGX-2, NVMe":
        content = _content("dgx-2", "gpt-1t-25600", 16, SEQUENCE, **INFINITY)
        # the row says that a trillion parameters fit: the model has them, or it does not fit and counts for none
        return Claim(
            float(row.value) * 1e12, (content,),
            lambda found: (found[0]["parameters"].value * (found[0]["free_memory"].value >= 0), 0.0),
        )  # fmt: skip
    if row.metric == "max model" and row.hardware == "one DGX-2, CPU offload":
        # parameters and gradients in 16 bits, each GPU its sixteenth
        content = _seeking(
            _content("dgx-2", "gpt-40b-8192", 16, SEQUENCE, **{**ZERO_3, "gradient_precision": "fp16"})
        )
        return Claim(float(row.value) * 1e9, (content,), figure("largest_model"))
    raise MemroofError(UNMODELLED)


def _one_node(row: Any) -> None:
    gpus = int(_number(r"(\d+)x V100", row.hardware) or 1)
    if gpus > 16:
        raise MemroofError(SEVERAL_NODES)


# --- CXL-aware allocation --------------------------------------------------------------------------------------------

CONTEXT = 8192
"""Tokens, inside the published 4K to 32K."""
SCALE = 100.0


def _cxl(row: Any) -> Claim:
    value = float(row.value)
    if row.metric.startswith("throughput relative to DRAM-only"):
        cards = 2 if "2 AICs" in row.strategy else 1
        contents = _host(cards, "latency-first"), _host(cards, "local")
        return Claim(value, contents, _percent(ratio("tokens_per_second")))
    if row.metric.startswith("improvement over naive interleave"):
        contents = _host(1, "latency-first"), _host(1, "interleaved")
        gain = ratio("tokens_per_second")
        return Claim(value, contents, lambda found: (SCALE * (gain(found)[0] - 1.0), gain(found)[1]))
    if row.metric.startswith("optimizer step slowdown"):
        in_cxl = {"parameters": "cxl", "states": "cxl", "gradients": "cxl"}
        return Claim(value, (_host(1, "local", **in_cxl), _host(1, "local")), ratio("update_time"))
    raise MemroofError(UNMODELLED)


def _host(cards: int, allocation: str, **places: str) -> Content:
    changes = {"components": {"cxl": {"count": cards}}}
    strategy = {"parameters": "dram", "states": "dram", "gradients": "dram", "activations": "dram", **places}
    return _content(
        {"node": "cxl-server-1s", "changes": changes}, "gpt-7b-4096", 4, CONTEXT, precision="bf16",
        gradient_precision="fp32", recompute="full", host_allocation=allocation, **strategy,
    )  # fmt: skip


def _percent(
    value: Callable[[Sequence[Metrics]], tuple[float, float]],
) -> Callable[[Sequence[Metrics]], tuple[float, float]]:
    def scaled(found: Sequence[Metrics]) -> tuple[float, float]:
        number, error = value(found)
        return SCALE * number, error

    return scaled


def _number(pattern: str, text: Any) -> str | None:
    found = re.search(pattern, str(text))
    return found.group(1) if found else None
