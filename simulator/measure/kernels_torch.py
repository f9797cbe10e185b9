"""Kernels of PyTorch by operator: each builder makes the operands of a case and returns what is to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from simulator.measure.campaign import Case
from simulator.measure.run import UnmeasurableError

Call = Callable[[], Any]
DTYPES: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def prepare(case: Case, device: torch.device) -> tuple[Call, str]:
    """Return the call of a case, its operands made, and the name of the kernel where there is a choice.

    Raises
    ------
    UnmeasurableError
        If this PyTorch has no such kernel.
    """
    return _BUILDERS[case.operator](case, device)


def random_tensor(shape: tuple[int, ...], format: str, device: torch.device) -> torch.Tensor:
    """Return normal numbers (small whole ones for int8): zeros would let the device run cooler than real data do."""
    if format == "int8":
        return torch.randint(-8, 8, shape, dtype=torch.int8, device=device)
    if format == "fp8":
        return torch.randn(shape, dtype=torch.bfloat16, device=device).to(DTYPES[format])
    return torch.randn(shape, dtype=DTYPES[format], device=device)


def _matmul(case: Case, device: torch.device) -> tuple[Call, str]:
    m, n, k = (case.sizes[name] for name in ("m", "n", "k"))
    left = random_tensor((m, k), case.format, device)
    # a linear layer holds its weight as (n, k)
    right = random_tensor((n, k), case.format, device).t()
    if case.format == "fp8":
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        ), "scaled_mm"
    if case.format == "int8":
        return lambda: torch._int_mm(left, right), "int_mm"
    out = torch.empty((m, n), dtype=left.dtype, device=device)
    if device.type == "cuda":
        reduced = case.format == "tf32"

        def product() -> None:
            torch.backends.cuda.matmul.allow_tf32 = reduced
            torch.mm(left, right, out=out)

        return product, ""
    return lambda: torch.mm(left, right, out=out), ""


def _attention(case: Case, device: torch.device) -> tuple[Call, str]:
    s = case.sizes
    query = random_tensor((s["batch"], s["heads"], s["queries"], s["head_dim"]), case.format, device)
    key, value = (
        random_tensor((s["batch"], s["kv_heads"], s["keys"], s["head_dim"]), case.format, device)
        for _ in range(2)
    )
    causal = case.operator == "attention"
    flash = _flash_attention()
    if flash is not None and device.type == "cuda" and case.format in ("fp16", "bf16"):
        # it wants (batch, positions, heads, dimension)
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
        if causal:
            return lambda: flash.flash_attn_func(q, k, v, causal=True), "flash-attn"
        return lambda: flash.flash_attn_with_kvcache(q, k, v), "flash-attn"
    options: dict[str, Any] = {"is_causal": causal}
    if s["heads"] != s["kv_heads"]:
        # a built-in without a signature
        if "enable_gqa" not in (F.scaled_dot_product_attention.__doc__ or ""):
            raise UnmeasurableError("this PyTorch has no grouped queries (2.5 has)")
        options["enable_gqa"] = True

    def attention() -> torch.Tensor:
        # the fallback would write the scores to memory: another operator
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(query, key, value, **options)

    return attention, "sdpa"


def _flash_attention() -> Any:
    try:
        import flash_attn
    except ImportError:
        return None
    return flash_attn


def _elementwise(case: Case, device: torch.device) -> tuple[Call, str]:
    kernel, rows, columns = (case.sizes[name] for name in ("kernel", "rows", "columns"))
    x = random_tensor((rows, columns), case.format, device)
    out = torch.empty_like(x)
    if kernel == "copy":
        return lambda: out.copy_(x), ""
    if kernel == "add":
        y = random_tensor((rows, columns), case.format, device)
        return lambda: torch.add(x, y, out=out), ""
    if kernel == "silu":
        return lambda: torch.ops.aten.silu.out(x, out=out), ""
    if kernel == "softmax":
        return lambda: torch.softmax(x, -1), ""
    weight, bias = (random_tensor((columns,), case.format, device) for _ in range(2))
    return lambda: F.layer_norm(x, (columns,), weight, bias), ""


def _transfer(case: Case, device: torch.device) -> tuple[Call, str]:
    if device.type != "cuda":
        raise UnmeasurableError("there is no link between host and device")
    size, pinned = case.sizes["size"], case.sizes["memory"] == "pinned"
    host = torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
    there = torch.ones(size, dtype=torch.uint8, device=device)
    if case.sizes["direction"] == "host-to-device":
        return lambda: there.copy_(host, non_blocking=pinned), "memcpy"
    return lambda: host.copy_(there, non_blocking=pinned), "memcpy"


_BUILDERS: Mapping[str, Callable[[Case, torch.device], tuple[Call, str]]] = {
    "matmul": _matmul,
    "attention": _attention,
    "decode-attention": _attention,
    "elementwise": _elementwise,
    "transfer": _transfer,
}
